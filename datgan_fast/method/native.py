"""The native extension as Python sees it: loading it, explaining why it cannot be used, handing tensors over.

Devices, shapes and dtypes have been checked in registered.py before anything here runs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .arguments import (
    FLOATS,
    Attack,
    AttackInputs,
    Logits,
    LogitTerms,
    LossOutputs,
    Pair,
    Perturbation,
    StepOutputs,
    TermOutputs,
)
from .backend import missing_kernel

OLDEST_CAPABILITY = (7, 0)  # below it the CUDA kernels do not compile, see csrc/cuda/architectures.cmake


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        extension = importlib.import_module("datgan_fast._native")
    except ImportError as error:
        if error.name == "datgan_fast._native":
            how = "the package was installed with DATGAN_FAST_NATIVE=0, or not at all"
            return None, f"there is no native extension ({how}); install the package with: pip install ."
        return None, f"the native extension could not be loaded ({error}); install the package with: pip install ."
    sources = Path(__file__).resolve().parents[2] / "csrc"
    if sources.is_dir() and _digest(sources) != extension.SOURCE_DIGEST:
        return (
            None,
            "the installed native extension was built from other sources than this checkout's csrc/; run: pip install .",
        )
    missing = _missing(extension)
    return (None, f"the native extension has {missing}; run: pip install .") if missing else (extension, None)


def _missing(extension: ModuleType) -> str | None:
    """What the extension cannot compute of all that it should, in words."""
    dtypes = [getattr(torch, name) for name in extension.DTYPES]
    absent = next((f"no kernels for {dtype}" for dtype in FLOATS if dtype not in dtypes), None)
    return absent or missing_kernel(extension.OBJECTIVES, extension.FORMULATIONS, extension.NORMS)


def _digest(sources: Path) -> str:
    """The same sum as CMakeLists.txt's: of a list like sha256sum's, in the order of the names' bytes."""
    files = {p.relative_to(sources.parent).as_posix(): p for p in sources.rglob("*") if p.is_file()}
    sums = "".join(f"{hashlib.sha256(files[name].read_bytes()).hexdigest()}  {name}\n" for name in sorted(files))
    return hashlib.sha256(sums.encode()).hexdigest()[:16]


extension, problem = _load()


def cpu_problem() -> str | None:
    return problem


def instruction_set() -> str:
    """What the CPU kernels are using: "baseline", "avx2" or "avx512"."""
    return extension.cpu_info()[0]  # type: ignore[union-attr]


def cuda_problem() -> str | None:
    """Why the CUDA kernels cannot be used on the current device, None if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if extension is None:
        return problem
    if not hasattr(extension, "cuda_attack_step"):
        return "the extension was built without CUDA kernels"
    return _device_problem(torch.cuda.current_device())


@functools.cache
def _device_problem(index: int) -> str | None:
    failure = extension.cuda_device_problem()  # type: ignore[union-attr]
    if failure:  # torch sees a device: the driver is too old for the CUDA that the extension was built with
        return f"the extension's CUDA runtime cannot use it ({failure})"
    built = extension.CUDA_ARCHITECTURES  # type: ignore[union-attr]
    capability = torch.cuda.get_device_capability(index)
    if covers(built, capability):
        return None
    if capability < OLDEST_CAPABILITY:
        return "the CUDA kernels need a GPU of compute capability {}.{} or newer; this one has {}.{}".format(
            *OLDEST_CAPABILITY, *capability
        )
    return (
        f"the extension was built for the CUDA architectures {built}, which do not cover this GPU's "
        f"{capability[0]}{capability[1]}; rebuild with DATGAN_FAST_CUDA_ARCHS={capability[0]}{capability[1]}"
    )


def covers(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code built for CMake's list of architectures ("80-real,90") runs on a GPU of this capability.

    Machine code runs on its own major version from its own minor version up, PTX on everything newer; a number
    alone stands for both. Code for 90a or 100f uses one family's features and is taken for the exact GPU only.
    """
    for entry in architectures.split(","):
        number, _, kind = entry.partition("-")
        if not number[-1:].isdigit():
            if number[:-1] == f"{capability[0]}{capability[1]}":
                return True
            continue
        built = divmod(int(number), 10)
        if kind != "virtual" and built[0] == capability[0] and built[1] <= capability[1]:
            return True
        if kind != "real" and built <= capability:
            return True
    return False


Call = Callable[..., None]  # (operation, device, *arguments)


class NativeBackend:
    """The extension's operations on tensors; outputs are written into tensors that the caller made.

    Args:
        extension: the loaded module. Its numbers for names and dtypes are those of its own lists.
        call: runs one of its operations on a device.
        workspace: what attack_step takes beyond the common arguments, by the logits.
    """

    def __init__(self, extension: ModuleType, call: Call, workspace: Callable[[Pair], tuple[Any, ...]]) -> None:
        self._call, self._workspace = call, workspace
        self._new_tensor, self._new_images = extension.Tensor, extension.Images
        self._new_logits, self._new_perturbation = extension.Logits, extension.Perturbation
        self._new_weighting, self._new_term_outputs = extension.Weighting, extension.TermOutputs
        self._new_samples = extension.Samples
        self.objectives = _numbers(extension.OBJECTIVES)
        self.formulations = _numbers(extension.FORMULATIONS)
        self.norms = _numbers(extension.NORMS)
        self._dtypes = {getattr(torch, name): number for name, number in _numbers(extension.DTYPES).items()}

    def attack_loss(self, logits: Logits, objective: Any, formulation: str, out: LossOutputs) -> None:
        self._call(
            "attack_loss",
            logits.own[0].device,
            self._logits(logits, objective, formulation),
            *map(self._tensor, (out.losses, *out.coefficients)),
        )

    def logit_terms(self, logits: Pair, how: LogitTerms, out: TermOutputs) -> None:
        real, fake = map(self._tensor, logits)
        self._call(
            "logit_terms",
            logits[0].device,
            self._new_logits(real, fake, real, fake, *self._numbers(how.objective, how.formulation)),
            self._new_weighting(how.weight, how.floor),
            self._new_term_outputs(*map(self._tensor, (*out.weights, out.sums, *out.coefficients))),
        )

    def perturb(self, x: Tensor, grad: Tensor, how: Perturbation, out: Tensor) -> None:
        self._call("perturb", x.device, self._images(x, grad, out, None, None, None), self._perturbation(how))

    def attack_step(self, inputs: AttackInputs, attack: Attack, out: StepOutputs) -> None:
        x, v, logits, _, weights = inputs
        self._call(
            "attack_step",
            x[0].device,
            self._logits(inputs.scores, attack.objective, attack.formulation),
            *(self._images(*side) for side in zip(x, v, out.adv, out.grads, out.norms, weights, strict=True)),
            self._perturbation(attack.perturbation),
            self._tensor(out.losses),
            *map(self._tensor, self._workspace(logits)),
        )

    def sample_images(self, images: Tensor, index: Tensor, mirrored: Tensor | None, out: Tensor) -> None:
        mirror = (0, 0) if mirrored is None else (mirrored.data_ptr(), mirrored.stride(0))
        samples = self._new_samples(
            images.data_ptr(),
            images.shape,
            images.stride(),
            index.data_ptr(),
            index.stride(0),
            *mirror,
            self._tensor(out),
        )
        self._call("sample_images", images.device, samples)

    def _tensor(self, t: Tensor | None) -> Any:
        if t is None:
            return None
        return self._new_tensor(t.data_ptr(), self._dtypes[t.dtype], t.shape, t.stride())

    def _images(self, *tensors: Tensor | None) -> Any:
        return self._new_images(*map(self._tensor, tensors))

    def _logits(self, logits: Logits, objective: Any, formulation: str) -> Any:
        tensors = map(self._tensor, logits.own + logits.targets)
        return self._new_logits(*tensors, *self._numbers(objective, formulation))

    def _numbers(self, objective: Any, formulation: str) -> tuple[int, int]:
        """Of an objective's name; others do not come here."""
        return self.objectives[objective], self.formulations[formulation]

    def _perturbation(self, how: Perturbation) -> Any:
        return self._new_perturbation(how.eps, self.norms[how.norm], how.clip_min, how.clip_max)


def _numbers(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _call_cpu(operation: str, device: torch.device, *arguments: Any) -> None:
    getattr(extension, f"cpu_{operation}")(*arguments)


def _call_cuda(operation: str, device: torch.device, *arguments: Any) -> None:
    """On the tensors' device, and on the stream that is current at the call."""
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        getattr(extension, f"cuda_{operation}")(*arguments, device.index, stream)


def _cuda_workspace(logits: Pair) -> tuple[Tensor | None]:
    """Room for the coefficients of large batches. It may be freed while the launch is still queued: torch's
    allocator hands it out again on the same stream only, behind the launch.
    """
    real, fake = logits
    numel = extension.cuda_workspace_numel(len(real), len(fake))  # type: ignore[union-attr]
    return (torch.empty(numel, dtype=torch.float64, device=real.device) if numel else None,)


@functools.cache
def cpu_backend() -> NativeBackend:
    assert extension is not None
    return NativeBackend(extension, _call_cpu, lambda logits: ())


@functools.cache
def cuda_backend() -> NativeBackend:
    assert extension is not None
    return NativeBackend(extension, _call_cuda, _cuda_workspace)
