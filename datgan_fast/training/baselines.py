"""The baselines: what is trained, by which optimiser and under which Lipschitz control, as a row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..method import penalties
from ..method.formulas import Bound, FormulationName, ObjectiveName
from ..method.reference import Penalty

BaselineName = Literal["dcgan", "wgan", "wgan-gp", "wgan-lp", "wgan-alp"]
OptimizerName = Literal["adam", "rmsprop"]


@dataclass(frozen=True)
class Baseline:
    """A row of the README's table of baselines.

    penalty     (weight, least pixel, largest pixel) -> the penalty on the discriminator, None for none
    clamps      whether weights are clamped to +- --clamp after each step
    on_points   options that differ on points in the plane
    """

    objective: ObjectiveName
    optimizer: OptimizerName
    lr: float
    betas: tuple[float, float]
    n_dis: int
    batch_norm: bool
    formulation: FormulationName  # DAT's, on images; this and eps were chosen by a sweep: docs/reproduction/sweep
    eps: float
    penalty: Callable[[float, Bound, Bound], Penalty] | None = None
    clamps: bool = False
    on_points: Mapping[str, Any] = field(default_factory=dict)

    def defaults(self) -> dict[str, Any]:
        """Its options, by name."""
        names = ("objective", "optimizer", "lr", "n_dis", "batch_norm", "formulation", "eps")
        return {name: getattr(self, name) for name in names} | {"beta1": self.betas[0], "beta2": self.betas[1]}


def _two_sided(weight: float, low: Bound, high: Bound) -> Penalty:
    return penalties.gradient_penalty(weight)


def _one_sided(weight: float, low: Bound, high: Bound) -> Penalty:
    return penalties.gradient_penalty(weight, one_sided=True)


def _adversarial(weight: float, low: Bound, high: Bound) -> Penalty:
    return penalties.adversarial_lipschitz(weight, clip_min=low, clip_max=high)


_LIGHTER = {"penalty_weight": 0.1}  # points lie closer together than images

BASELINES: dict[str, Baseline] = {
    "dcgan": Baseline("vanilla", "adam", 2e-4, (0.5, 0.999), 1, True, "alg1", 1.0),
    "wgan": Baseline("wasserstein", "rmsprop", 5e-5, (0.0, 0.99), 5, False, "eq10", 10.0, clamps=True),
    "wgan-gp": Baseline("wasserstein", "adam", 1e-4, (0.5, 0.9), 5, False, "eq10", 1.0, _two_sided, on_points=_LIGHTER),
    "wgan-lp": Baseline("wasserstein", "adam", 1e-4, (0.5, 0.9), 5, False, "eq10", 1.0, _one_sided, on_points=_LIGHTER),
    "wgan-alp": Baseline("wasserstein", "adam", 2e-4, (0.0, 0.9), 5, False, "eq10", 1.0, _adversarial),
}
