"""The native extension as Python sees it: loading it, explaining why it cannot be used, handing tensors over.

Devices, shapes and dtypes have been checked in ops.py before anything here runs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .arguments import Attack, AttackInputs, OptionalPair, Pair
from .formulas import FORMULATIONS, NORMS, OBJECTIVES, Bound

OLDEST_CAPABILITY = (7, 0)  # below it the CUDA kernels do not compile, see csrc/cuda/architectures.cmake
DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        extension = importlib.import_module("datgan_fast._native")
    except ImportError as error:
        return None, f"the native extension could not be loaded ({error}); install the package with: pip install ."
    sources = Path(__file__).resolve().parents[2] / "csrc"
    if sources.is_dir() and _digest(sources) != extension.SOURCE_DIGEST:
        return (
            None,
            "the installed native extension was built from other sources than this checkout's csrc/; run: pip install .",
        )
    return extension, None


def _digest(sources: Path) -> str:
    """The same sum as setup.py's source_digest."""
    digest = hashlib.sha256()
    for path in sorted(sources.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(sources.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


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


def _view(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return extension.Tensor(tensor.data_ptr(), DTYPES[tensor.dtype], tensor.shape, tensor.stride())  # type: ignore[union-attr]


def _logits(
    real: Tensor, fake: Tensor, reference_real: Tensor, reference_fake: Tensor, objective: str, formulation: str
) -> Any:
    return extension.Logits(  # type: ignore[union-attr]
        _view(real),
        _view(fake),
        _view(reference_real),
        _view(reference_fake),
        OBJECTIVES.index(objective),
        FORMULATIONS.index(formulation),
    )


def _perturbation(eps: float, norm: str, clip_min: Bound, clip_max: Bound) -> Any:
    return extension.Perturbation(eps, NORMS.index(norm), clip_min, clip_max)  # type: ignore[union-attr]


class CpuBackend:
    """The three operations on CPU tensors; outputs are written into tensors that the caller made."""

    @staticmethod
    def run(operation: str, device: torch.device, *arguments: Any) -> None:
        getattr(extension, f"cpu_{operation}")(*arguments)

    @staticmethod
    def workspace(logits: Pair) -> tuple[Any, ...]:
        """What attack_step takes beyond the common arguments."""
        return ()

    @classmethod
    def attack_loss(
        cls,
        real: Tensor,
        fake: Tensor,
        reference_real: Tensor,
        reference_fake: Tensor,
        objective: str,
        formulation: str,
        losses: Tensor,
        coefficient_real: Tensor,
        coefficient_fake: Tensor,
    ) -> None:
        cls.run(
            "attack_loss",
            real.device,
            _logits(real, fake, reference_real, reference_fake, objective, formulation),
            _view(losses),
            _view(coefficient_real),
            _view(coefficient_fake),
        )

    @classmethod
    def perturb(
        cls, x: Tensor, grad: Tensor, eps: float, norm: str, clip_min: float | None, clip_max: float | None, out: Tensor
    ) -> None:
        images = extension.Images(_view(x), _view(grad), _view(out), None, None, None)  # type: ignore[union-attr]
        cls.run("perturb", x.device, images, _perturbation(eps, norm, clip_min, clip_max))

    @classmethod
    def attack_step(
        cls, inputs: AttackInputs, attack: Attack, adv: Pair, grads: OptionalPair, norms: OptionalPair, losses: Tensor
    ) -> None:
        x, v, logits, references, weights = inputs
        sides = [
            extension.Images(*map(_view, side))  # type: ignore[union-attr]
            for side in zip(x, v, adv, grads, norms, weights, strict=True)
        ]
        cls.run(
            "attack_step",
            x[0].device,
            _logits(*logits, *references, attack.objective, attack.formulation),
            *sides,
            _perturbation(attack.eps, attack.norm, attack.clip_min, attack.clip_max),
            _view(losses),
            *cls.workspace(logits),
        )


class CudaBackend(CpuBackend):
    """The same on CUDA tensors: on the tensors' device, and on the stream that is current at the call."""

    @staticmethod
    def run(operation: str, device: torch.device, *arguments: Any) -> None:
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            getattr(extension, f"cuda_{operation}")(*arguments, device.index, stream)

    @staticmethod
    def workspace(logits: Pair) -> tuple[Any, ...]:
        """Room for the coefficients of large batches. It may be freed while the launch is still queued: torch's
        allocator hands it out again on the same stream only, behind the launch.
        """
        real, fake = logits
        numel = extension.cuda_workspace_numel(len(real), len(fake))  # type: ignore[union-attr]
        return (_view(torch.empty(numel, dtype=torch.float64, device=real.device)) if numel else None,)
