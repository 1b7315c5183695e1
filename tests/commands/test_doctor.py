"""The doctor: what it finds here, whether its self-test sees faults, and what it says to do."""

import json

import pytest
import torch

from datgan_fast import doctor
from datgan_fast.method import self_test
from datgan_fast.method.dispatch import backends
from datgan_fast.method.formulas import NORMS, OBJECTIVES


@pytest.fixture
def only_cpu(monkeypatch):
    monkeypatch.setattr(doctor, "testable", lambda: ["cpu"])


@pytest.fixture
def one_case(only_cpu, monkeypatch):
    monkeypatch.setattr(self_test, "_all_cases", lambda: [("vanilla", "eq10", "none")])
    monkeypatch.setattr(self_test, "_STEPS", (("vanilla", "eq10"),))


def test_all_is_well_here(only_cpu, capsys):
    states = torch.get_rng_state()
    assert doctor.main(["--json"]) == 0
    assert torch.equal(torch.get_rng_state(), states)
    found = json.loads(capsys.readouterr().out)
    assert (found["torch"], found["backends"]) == (torch.__version__, backends())
    assert (
        found["extension"]["instruction_set"] in ("baseline", "avx2", "avx512")
        and found["extension"]["of_this_checkout"]
    )
    tested = {(t["what"], t["dtype"]): t for t in found["self_test"]}
    for operation in ("attack_step", "attack_loss", "perturb"):
        for dtype in ("float64", "float32", "float16", "bfloat16"):
            assert tested[operation, dtype]["passed"] and tested[operation, dtype]["backend"] == "cpu"
    assert 1e-17 < tested["discriminator_step", "float64"]["error"] < 1e-12
    assert tested["gradient_penalty", "float64"]["passed"]
    assert found["next"] == ["all is well; next: python -m datgan_fast.train --fused"]


def test_lines(one_case, capsys):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    for name in backends():
        assert f"\n  {name} " in out
    assert "pass  attack_step" in out and "FAIL" not in out
    assert out.splitlines()[-1].startswith("all is well")


@pytest.mark.parametrize("name", ["attack_step", "attack_loss", "perturb", "discriminator_step", "gradient_penalty"])
@pytest.mark.parametrize("fault", [1.0001, float("nan")], ids=["wrong", "nan"])
def test_a_fault_is_seen(one_case, monkeypatch, capsys, name, fault):
    if name == "discriminator_step":
        right = self_test.discriminator_step

        def wrong(d, *images, fused, **options):
            right(d, *images, fused=fused, **options)
            if fused:
                next(d.parameters()).grad.mul_(fault)

        monkeypatch.setattr(self_test, name, wrong)
    elif name == "gradient_penalty":
        call = type(self_test.penalties.gradient_penalty()).__call__
        kind = type(self_test.penalties.gradient_penalty())
        monkeypatch.setattr(kind, "__call__", lambda *given: call(*given) * fault)
    else:
        right = getattr(self_test, name)

        def wrong(*given, **options):
            found = right(*given, **options)
            return (
                found * fault
                if isinstance(found, torch.Tensor)
                else type(found)((found[0] * fault, *found[1:]))
                if name == "attack_loss"
                else found._replace(adv_fake=found.adv_fake * fault)
            )

        monkeypatch.setattr(self_test, name, wrong)
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"  FAIL  {name}") for line in lines)
    assert lines[-1].startswith("cpu: computes something else") and "DATGAN_FAST_BACKEND=reference" in lines[-1]


def test_few_cases_have_every_name():
    objectives, formulations, norms = map(set, zip(*self_test._some_cases(), strict=True))
    assert objectives == set(OBJECTIVES) and norms == set(NORMS) and len(formulations) == 3


HERE = {
    "torch": "2.14.1", "cuda": "13.0", "driver": [], "gpus_of_driver": [], "gpus": [], "cache": {"problem": None},
    "backends": {"reference": None, "cpu": None, "cuda": "no CUDA device", "triton": "no CUDA device"},
}  # fmt: skip
TOO_OLD = "the extension was built for the CUDA architectures 75, which do not cover this GPU's 90; rebuild with ..."


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "all is well; next: "),
        ({"gpus": ["H"], "backends": {**HERE["backends"], "cuda": None, "triton": None}}, "all is well; next: "),
        (
            {"gpus": ["H"], "backends": {**HERE["backends"], "cuda": TOO_OLD, "triton": None}},
            f"the CUDA kernels cannot be used, the Triton kernels run instead: {TOO_OLD}",
        ),
        (
            {"gpus": ["H"], "backends": {**HERE["backends"], "cuda": TOO_OLD, "triton": "not installed"}},
            f"the CUDA kernels cannot be used, the slower reference runs: {TOO_OLD}",
        ),
        (
            {"gpus_of_driver": ["H"], "driver": ["550.1"]},
            "torch cannot use this machine's GPU (H): torch 2.14.1 is built for CUDA 13.0, the driver is 550.1; install ",
        ),
        ({"gpus_of_driver": ["H"], "driver": ["550.1"], "cuda": None}, "torch cannot use this machine's GPU (H): torch 2.14.1 "
            "is built without CUDA"),
        ({"backends": {**HERE["backends"], "cpu": "run: pip install ."}}, "the CPU kernels cannot be used"),
        ({"cache": {"problem": "/x cannot be written (read-only)"}}, "/x cannot be written (read-only); name another folder"),
    ],
)  # fmt: skip
def test_what_to_do(found, said):
    (advice,) = doctor.what_to_do({**HERE, **found}, [])
    assert advice.startswith(said)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DATGAN_FAST_CACHE", str(tmp_path / "file" / "cache"))
    assert doctor.cache() == {
        "folder": f"{tmp_path}/file/cache",
        "problem": f"{tmp_path}/file cannot be written (Not a directory)",
    }
    monkeypatch.setenv("DATGAN_FAST_CACHE", str(tmp_path / "new" / "cache"))
    assert doctor.cache()["problem"] is None
    assert not (tmp_path / "new").exists()
