"""What every backend is: operations on records, and the names that it has kernels for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, Protocol, get_args

from torch import Tensor

from .arguments import (
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
from .formulas import OBJECTIVES, FormulationName, NormName, ObjectiveName

BackendName = Literal["reference", "cpu", "cuda", "triton"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)


class Backend(Protocol):
    """Outputs are written into tensors that the caller made; devices, shapes and dtypes have been checked. An objective that is
    no name comes to the reference only."""

    @property
    def objectives(self) -> Collection[str]: ...

    @property
    def formulations(self) -> Collection[str]: ...

    @property
    def norms(self) -> Collection[str]: ...

    def attack_loss(self, logits: Logits, objective: Any, formulation: str, out: LossOutputs) -> None: ...

    def logit_terms(self, logits: Pair, how: LogitTerms, out: TermOutputs) -> None: ...

    def perturb(self, x: Tensor, grad: Tensor, how: Perturbation, out: Tensor) -> None: ...

    def attack_step(self, inputs: AttackInputs, attack: Attack, out: StepOutputs) -> None: ...

    def sample_images(self, images: Tensor, index: Tensor, mirrored: Tensor | None, out: Tensor) -> None:
        """Raises IndexError on a CPU for an index that is none; elsewhere it is taken for the nearest that is."""


def missing_kernel(objectives: Collection[str], formulations: Collection[str], norms: Collection[str]) -> str | None:
    """The first of the built-in names that kernels for these do not cover, in words."""
    for kind, built_in, known in (
        ("objective", [OBJECTIVES[name].kernels for name in get_args(ObjectiveName)], objectives),
        ("formulation", get_args(FormulationName), formulations),
        ("norm", get_args(NormName), norms),
    ):
        for name in built_in:
            if name not in known:
                return f"no kernel for {kind} {name!r}"
    return None
