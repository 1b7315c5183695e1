"""The native extension as Python sees it: loading it, explaining why it cannot be used, handing tensors over.

Devices, shapes and dtypes have been checked in ops.py before anything here runs.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from .reference import FORMULATIONS, NORMS, OBJECTIVES

DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        extension = importlib.import_module("datgan_fast._native")
    except ImportError as error:
        return None, f"the native extension could not be loaded ({error}); install the package with: pip install ."
    sources = Path(__file__).resolve().parent.parent / "csrc"
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


def cuda_problem() -> str | None:
    """Why the CUDA kernels cannot be used here, None if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    if extension is None:
        return problem
    if not hasattr(extension, "cuda_attack_step"):
        return "the extension was built without CUDA kernels"
    return None


def _view(tensor: Tensor | None):
    if tensor is None:
        return None
    return extension.Tensor(tensor.data_ptr(), DTYPES[tensor.dtype], tensor.shape, tensor.stride())  # type: ignore[union-attr]


def _logits(
    real: Tensor, fake: Tensor, reference_real: Tensor, reference_fake: Tensor, objective: str, formulation: str
):
    return extension.Logits(  # type: ignore[union-attr]
        _view(real),
        _view(fake),
        _view(reference_real),
        _view(reference_fake),
        OBJECTIVES.index(objective),
        FORMULATIONS.index(formulation),
    )


def _perturbation(eps: float, norm: str, clip_min: float | None, clip_max: float | None):
    return extension.Perturbation(eps, NORMS.index(norm), clip_min, clip_max)  # type: ignore[union-attr]


class CpuBackend:
    """The three operations on CPU tensors; outputs are written into tensors that the caller made."""

    @staticmethod
    def attack_loss(
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
        extension.cpu_attack_loss(  # type: ignore[union-attr]
            _logits(real, fake, reference_real, reference_fake, objective, formulation),
            _view(losses),
            _view(coefficient_real),
            _view(coefficient_fake),
        )

    @staticmethod
    def perturb(
        x: Tensor, grad: Tensor, eps: float, norm: str, clip_min: float | None, clip_max: float | None, out: Tensor
    ) -> None:
        images = extension.Images(_view(x), _view(grad), _view(out), None, None, None)  # type: ignore[union-attr]
        extension.cpu_perturb(images, _perturbation(eps, norm, clip_min, clip_max))  # type: ignore[union-attr]

    @staticmethod
    def attack_step(
        x: tuple[Tensor, Tensor],
        v: tuple[Tensor, Tensor],
        logits: tuple[Tensor, Tensor],
        references: tuple[Tensor, Tensor],
        weights: tuple[Tensor | None, Tensor | None],
        eps: float,
        objective: str,
        formulation: str,
        norm: str,
        clip_min: float | None,
        clip_max: float | None,
        adv: tuple[Tensor, Tensor],
        grads: tuple[Tensor | None, Tensor | None],
        norms: tuple[Tensor | None, Tensor | None],
        losses: Tensor,
    ) -> None:
        sides = [
            extension.Images(*map(_view, side))  # type: ignore[union-attr]
            for side in zip(x, v, adv, grads, norms, weights, strict=True)
        ]
        extension.cpu_attack_step(  # type: ignore[union-attr]
            _logits(*logits, *references, objective, formulation),
            *sides,
            _perturbation(eps, norm, clip_min, clip_max),
            _view(losses),
        )
