"""What the runs of a reproduction measured, as series over discriminator updates, and which of them belong together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.catalogue import best_first
from .experiments import DAT, FIGURES, PLAIN, Experiment, Setting

Series = tuple[np.ndarray, np.ndarray]  # discriminator updates, values
Lines = list[dict[str, Any]]  # each has its "step"


@dataclass(frozen=True)
class Result:
    """A run and the lines that it wrote."""

    experiment: Experiment
    stats: Lines
    metrics: Lines
    path: Path | None = None  # its folder, where that is here
    attacks: Lines = field(default_factory=list)  # figure 1's, one for each of its protocols
    theory: Lines = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return bool(self.stats) and self.stats[-1]["step"] == self.experiment.config.steps

    def statistic(self, name: str) -> Series:
        return self._series((r["step"], r.get(name)) for r in self.stats)

    def metric(self, name: str) -> Series:
        return self._series((r["step"], r["value"]) for r in self.metrics if r["metric"] == name)

    def penalty_added(self) -> Series:
        """What DAT adds to the discriminator's loss: that of the perturbed images less that of the clean ones."""
        updates, adversarial = self.statistic("loss_adv")
        return updates, adversarial - self.statistic("loss_clean")[1]

    def _series(self, pairs: Iterable[tuple[int, float | None]]) -> Series:
        """Values that were not finite, null in the files, are NaN."""
        found = list(pairs)
        updates = np.array([step for step, _ in found]) * self.experiment.config.n_dis
        return updates, np.array([np.nan if value is None else value for _, value in found], dtype=float)


def pairs(results: Iterable[Result], variant: str = DAT, against: str = PLAIN) -> list[tuple[Result, Result]]:
    """(against, variant) of the same data set, setting and seed, where both finished."""
    by_variant: dict[str, dict[tuple[str, str, int], Result]] = {against: {}, variant: {}}
    for r in results:
        e = r.experiment
        if r.finished and e.variant in by_variant:
            by_variant[e.variant][e.dataset, e.setting, e.seed] = r
    one, other = by_variant[against], by_variant[variant]
    return [(one[key], other[key]) for key in one if key in other]


def in_order() -> list[Setting]:
    """The figures' settings, each where it belongs."""
    return [s for name, figure in FIGURES.items() for s in figure.settings if s.figure == name]


def datasets(results: Iterable[Result]) -> list[str]:
    """The data sets among these results, in their order there."""
    return list(dict.fromkeys(r.experiment.dataset for r in results))


def settings(results: Iterable[Result]) -> list[str]:
    """Names of the settings among these results, in the order of their figures."""
    present = {r.experiment.setting for r in results}
    return [s.name for s in in_order() if s.name in present]


def score_name(results: Iterable[Result]) -> str | None:
    """What stands in for the paper's Inception Score: the best that all these runs measured; None if there is none."""
    measured = [{m["metric"] for m in r.metrics} for r in results]
    return next(
        (m.name for m in best_first() if m.score and measured and all(m.name in of_run for of_run in measured)), None
    )
