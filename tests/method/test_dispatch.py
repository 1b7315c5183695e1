"""Which backend runs, what is said when one cannot, and that a checkout finds the installed extension."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import datgan_fast as dat
from datgan_fast.method import dispatch, native
from datgan_fast.method.arguments import Attack, AttackInputs, StepOutputs

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
LOGITS = torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 0.0, 1.0])


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch):
    monkeypatch.delenv("DATGAN_FAST_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_warned", set())


@pytest.fixture
def no_extension(monkeypatch):
    monkeypatch.setattr(native, "extension", None)
    monkeypatch.setattr(native, "problem", "the native extension could not be loaded (a test says so)")


def test_backends_says_what_can_be_used():
    usable = dat.backends()
    assert list(usable) == ["reference", "cpu", "cuda", "triton"]
    assert usable["reference"] is None
    assert usable["cpu"] is None  # the suite is pointless without the kernels
    for name in ("cuda", "triton"):
        assert usable[name] is None or usable[name] == "no CUDA device" or torch.cuda.is_available()


def test_the_extension_shares_torchs_threads():
    instruction_set, has_openmp = native.extension.cpu_info()
    assert instruction_set in ("baseline", "avx2", "avx512")
    assert has_openmp == torch.backends.openmp.is_available()


# who decides


def test_the_best_usable_is_the_default():
    assert dispatch.resolve(CPU) == "cpu"


def test_use_backend_nests():
    with dat.use_backend("reference"):
        assert dispatch.resolve(CPU) == "reference"
        with dat.use_backend("cpu"):
            assert dispatch.resolve(CPU) == "cpu"
            with dat.use_backend(None):
                assert dispatch.resolve(CPU) == "cpu"
        assert dispatch.resolve(CPU) == "reference"
        with dat.use_backend(None):
            assert dispatch.resolve(CPU) == "cpu"
    assert dispatch.resolve(CPU) == "cpu"


def leave_by_exception():
    with dat.use_backend("reference"):
        raise KeyError


def test_use_backend_ends_with_an_exception():
    with pytest.raises(KeyError):
        leave_by_exception()
    assert dispatch.resolve(CPU) == "cpu"


def test_impl_before_use_backend_before_the_environment(monkeypatch):
    monkeypatch.setenv("DATGAN_FAST_BACKEND", "reference")
    assert dispatch.resolve(CPU) == "reference"
    with dat.use_backend("cpu"):
        assert dispatch.resolve(CPU) == "cpu"
        assert dispatch.resolve(CPU, "reference") == "reference"
    monkeypatch.setenv("DATGAN_FAST_BACKEND", "")
    assert dispatch.resolve(CPU) == "cpu"


OPS = {
    "attack_loss": lambda **options: dat.attack_loss(*LOGITS, **options),
    "perturb": lambda **options: dat.perturb(torch.zeros(2, 3), torch.ones(2, 3), 0.5, **options),
    "attack_step": lambda **options: dat.attack_step(
        torch.zeros(2, 3), torch.zeros(3, 3), torch.ones(2, 3), torch.ones(3, 3), *LOGITS, 0.5, **options
    ),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("how", ["impl", "use_backend", "environment"])
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_the_chosen_backend_runs(monkeypatch, op, how, name):
    ran = []

    def watch(backend, label):
        original = getattr(backend, op)
        monkeypatch.setattr(backend, op, lambda *a, **k: (ran.append(label), original(*a, **k))[1])

    watch(dispatch.backend(CPU, "cpu"), "cpu")
    watch(dispatch.backend(CPU, "reference"), "reference")
    if how == "impl":
        OPS[op](impl=name)
    elif how == "use_backend":
        with dat.use_backend(name):
            OPS[op]()
    else:
        monkeypatch.setenv("DATGAN_FAST_BACKEND", name)
        OPS[op]()
    assert ran == [name]


# what is said


@pytest.mark.parametrize("op", OPS)
def test_impl_that_cannot_be_used(op):
    with pytest.raises(
        dat.BackendError, match="impl: 'gpu' is not a backend; choose one of reference, cpu, cuda, triton"
    ):
        OPS[op](impl="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(dat.BackendError, match="impl: backend 'cuda' cannot be used here: no CUDA device"):
            OPS[op](impl="cuda")


def test_use_backend_that_cannot_be_used(no_extension):
    with pytest.raises(dat.BackendError, match=r"use_backend: backend 'cpu' cannot be used here: .*a test says so"):
        dat.use_backend("cpu").__enter__()
    with pytest.raises(dat.BackendError, match="use_backend: 'tpu' is not a backend"):
        dat.use_backend("tpu").__enter__()


def test_environment_that_cannot_be_used(monkeypatch, no_extension):
    monkeypatch.setenv("DATGAN_FAST_BACKEND", "cpu")
    with pytest.raises(
        dat.BackendError, match=r"DATGAN_FAST_BACKEND: backend 'cpu' cannot be used here: .*a test says"
    ):
        dat.attack_loss(*LOGITS)
    monkeypatch.setenv("DATGAN_FAST_BACKEND", "typo")
    with pytest.raises(dat.BackendError, match="DATGAN_FAST_BACKEND: 'typo' is not a backend"):
        dat.attack_loss(*LOGITS)


def test_a_backend_of_another_device():
    with pytest.raises(dat.BackendError, match="impl: backend 'cpu' does not work on tensors on cuda"):
        dispatch.resolve(torch.device("cuda", 0), "cpu")


def test_one_warning_names_the_cause_of_a_fallback(no_extension):
    with pytest.warns(
        UserWarning, match=r"slower reference implementation on cpu tensors \(cpu: .*a test says so"
    ) as seen:
        results = [op() for op in 2 * list(OPS.values())]
    assert len(seen) == 1
    assert results[0] == results[3] == dat.attack_loss(*LOGITS, impl="reference")


def test_no_warning_without_a_fallback(monkeypatch, no_extension):
    """The reference by name is no fallback."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dat.attack_loss(*LOGITS, impl="reference")
        with dat.use_backend("reference"):
            dat.attack_loss(*LOGITS)
        monkeypatch.setenv("DATGAN_FAST_BACKEND", "reference")
        dat.attack_loss(*LOGITS)


def test_kernels_run_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for op in OPS.values():
            op()


# loading the extension


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ModuleNotFoundError("No module named 'datgan_fast._native'", name="datgan_fast._native"),
            "there is no native extension (the package was installed with DATGAN_FAST_NATIVE=0, or not at all)",
        ),
        (
            ImportError("libm.so.6: version `GLIBC_2.99' not found"),
            "the native extension could not be loaded (libm.so.6: version `GLIBC_2.99' not found)",
        ),
    ],
    ids=["missing", "unusable"],
)
def test_an_extension_that_is_not_there_explains_itself(monkeypatch, error, reason):
    def import_module(name):
        raise error

    monkeypatch.setattr(native.importlib, "import_module", import_module)
    assert native._load() == (None, f"{reason}; install the package with: pip install .")


# names and dtypes are compared when the kernels are loaded


class Renumbered:
    """The extension with a list of its own in another order."""

    def __init__(self, **lists):
        self.__dict__.update(lists)

    def __getattr__(self, name):
        return getattr(native.extension, name)


LISTS = ("OBJECTIVES", "FORMULATIONS", "NORMS", "DTYPES")


@pytest.mark.parametrize("name", LISTS)
def test_an_extension_without_one_of_our_names_is_refused(monkeypatch, name):
    *others, last = getattr(native.extension, name)
    monkeypatch.setitem(sys.modules, "datgan_fast._native", Renumbered(**{name: tuple(others)}))
    extension, problem = native._load()
    assert extension is None
    assert last in problem
    assert problem.startswith("the native extension has no kernel")
    assert problem.endswith("pip install .")


def test_an_extension_with_more_names_is_taken(monkeypatch):
    more = Renumbered(NORMS=(*native.extension.NORMS, "l3"))
    monkeypatch.setitem(sys.modules, "datgan_fast._native", more)
    assert native._load() == (more, None)


@pytest.mark.parametrize("name", LISTS)
def test_numbers_are_those_of_the_extensions_own_lists(name):
    """The same arguments, in the numbers of an extension that counts backwards."""
    seen = []
    for names in (getattr(native.extension, name), tuple(reversed(getattr(native.extension, name)))):
        calls = Renumbered(
            **{name: names},
            Tensor=lambda address, dtype, shape, strides: dtype,
            Logits=lambda *arguments: arguments[-2:],
            Images=lambda *arguments: arguments[0],
            Perturbation=lambda eps, norm, low, high: norm,
        )
        backend = native.NativeBackend(calls, lambda operation, device, *given: seen.append(given), lambda logits: ())
        x, logits = (torch.zeros(2, 3),) * 2, (torch.zeros(2),) * 2
        attack = Attack(0.1, "vanilla", "eq10", "none", None, None)
        none = (None, None)
        backend.attack_step(AttackInputs(x, x, logits, logits), attack, StepOutputs(x, none, none, torch.zeros(2)))
    ours, theirs = ((objective, formulation, dtype, norm) for (objective, formulation), dtype, _, norm, _ in seen)
    differs = {LISTS[i] for i in (0, 1) if ours[i] != theirs[i]}
    differs |= {"DTYPES"} if ours[2] != theirs[2] else set()
    differs |= {"NORMS"} if ours[3] != theirs[3] else set()
    assert differs == {name}


def test_triton_kernels_without_one_of_our_names_are_refused(monkeypatch):
    kernels = pytest.importorskip("datgan_fast.kernels")
    monkeypatch.setattr(type(kernels.BACKEND), "objectives", ("vanilla",))
    dispatch._kernels_problem.cache_clear()
    try:
        assert (
            dispatch._kernels_problem() == "the Triton kernels have no kernel for objective 'fgan'; run: pip install ."
        )
    finally:
        dispatch._kernels_problem.cache_clear()


def python(code, cwd, *flags):
    """Output of a fresh interpreter started in a folder, with this one's packages."""
    environment = {key: value for key, value in os.environ.items() if key != "DATGAN_FAST_BACKEND"}
    result = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.process
def test_a_checkout_uses_the_installed_extension():
    """From the root Python imports the source folder; extension and kernels are in the installed one."""
    code = """if True:
        import datgan_fast, datgan_fast.kernels, datgan_fast._native as native
        print(datgan_fast.__file__)
        print(datgan_fast.backends()["cpu"])
        print(native.__file__)
        print(datgan_fast.kernels.__file__)
    """
    source, problem, extension, kernels = python(code, ROOT)
    assert Path(source).parent == ROOT / "datgan_fast"
    assert problem == "None"
    assert ROOT not in Path(extension).parents
    assert Path(kernels).parent.parent == Path(extension).parent


@pytest.fixture
def checkout(tmp_path):
    for folder in ("datgan_fast", "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.process
def test_an_extension_built_from_other_sources_is_refused(checkout):
    """Edited C++ sources beside the package without a new install would test and train something else."""
    (checkout / "csrc" / "formulas.h").open("a").write("// edited\n")
    code = """if True:
        import warnings, torch, datgan_fast as dat
        print(dat.backends()["cpu"])
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            dat.attack_loss(torch.ones(2), torch.zeros(2))
        print(len(seen), seen[0].message)
    """
    problem, warning = python(code, checkout)
    assert problem.startswith("the installed native extension was built from other sources than this checkout")
    assert problem.endswith("pip install .")
    assert warning.startswith("1 datgan_fast runs its slower reference implementation")
    assert problem in warning


def test_digests_agree_between_build_and_package(checkout):
    """CMakeLists.txt stamps the extension with the sum that native.py compares."""
    assert native._digest(ROOT / "csrc") == native.extension.SOURCE_DIGEST
    assert native._digest(checkout / "csrc") == native.extension.SOURCE_DIGEST  # wherever the checkout lies
    (checkout / "csrc" / "new.h").touch()
    assert native._digest(checkout / "csrc") != native.extension.SOURCE_DIGEST
