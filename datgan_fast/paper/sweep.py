"""What a sweep of DAT's options shows: how far each option's images are from real ones, relative to plain training.

A run's distance is the Frechet distance of classifier features (images) or the exact Wasserstein distance (points), its mean
over the last quarter of training. An option's value is the logarithm of distance with DAT / distance of the plain run of the
same seed, which has no unit, so that data sets can be averaged. Of the options of a baseline the one-standard-error rule
(Breiman et al., 1984, Classification and Regression Trees, section 3.4.3) chooses the simplest of those that cannot well be
told from the best: the text's formulation and weights, and the perturbation that is closest to plain training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics.catalogue import best_first
from .claims import final
from .experiments import PLAIN
from .results import Result

EXPLANATION = (
    "Each option's distance to the real data, divided by that of plain training with the same seed: the Frechet distance of "
    "classifier features (or the FID, where it was measured), for points the exact Wasserstein distance, mean over the last "
    "quarter of training. Of the options whose geometric mean over all runs is within one standard error of the lowest, the "
    "chosen one is the first by: eq10 before alg1 before batch_mean, weights of 1 and 1 as in Eq. 8 before others, a smaller "
    "eps before a larger one. Options with which some runs did not finish are not chosen. The lowest of many is lower than it "
    "would be again."
)


@dataclass(frozen=True)
class Option:
    """A variant of the sweep for one baseline, against plain training."""

    variant: str
    formulation: str
    eps: float
    lambda_clean: float
    lambda_adv: float
    log_ratios: dict[str, list[float]]  # data set -> its seeds'

    def ratio(self, dataset: str) -> float:
        """Geometric mean over seeds; NaN where nothing was measured."""
        values = self.log_ratios.get(dataset)
        return math.exp(np.mean(values)) if values else math.nan

    @property
    def runs(self) -> int:
        return sum(map(len, self.log_ratios.values()))

    @property
    def log_overall(self) -> float:
        """Mean of all runs' log ratios."""
        return sum(map(sum, self.log_ratios.values())) / self.runs

    @property
    def overall(self) -> float:
        return math.exp(self.log_overall)

    @property
    def standard_error(self) -> float:
        """Of log_overall, from the spread of the seeds within data sets; 0 for one seed, which says nothing of it."""
        values = np.concatenate([np.subtract(v, np.mean(v)) for v in self.log_ratios.values()])
        freedom = self.runs - len(self.log_ratios)  # data sets differ by more than noise
        return math.sqrt(float((values**2).sum()) / freedom / self.runs) if freedom > 0 else 0.0


def options(found: Sequence[Result]) -> dict[str, list[Option]]:
    """Setting -> its options, in the sweep's order, from those of these finished runs that have a plain run of the same seed."""
    plain = {_pair(r): r for r in found if r.experiment.variant == PLAIN}
    grouped: dict[tuple[str, str], list[Result]] = {}
    for r in found:
        if r.experiment.variant != PLAIN and _pair(r) in plain:
            grouped.setdefault((r.experiment.setting, r.experiment.variant), []).append(r)
    by_baseline: dict[str, list[Option]] = {}
    for (baseline, variant), runs in grouped.items():
        ratios: dict[str, list[float]] = {}
        for r in runs:
            ratio = distance(r) / distance(plain[_pair(r)])
            if ratio > 0 and math.isfinite(ratio):
                ratios.setdefault(r.experiment.dataset, []).append(math.log(ratio))
        config = runs[0].experiment.config
        if ratios:
            option = Option(variant, config.formulation, config.eps, config.lambda_clean, config.lambda_adv, ratios)
            by_baseline.setdefault(baseline, []).append(option)
    return by_baseline


def _pair(r: Result) -> tuple[str, str, int]:
    return r.experiment.dataset, r.experiment.setting, r.experiment.seed


def distance(r: Result) -> float:
    """A run's distance to the real data; NaN if it measured none."""
    name = distance_name(r)
    return final(r.metric(name)) if name else math.nan


def distance_name(r: Result) -> str | None:
    """The best distance that the run measured."""
    measured = {m["metric"] for m in r.metrics}
    return next((m.name for m in best_first() if m.distance and m.name in measured), None)


def best(of_baseline: Sequence[Option]) -> Option:
    """The lowest mean of those that the most runs finished with: one that diverges with some seeds is not a choice."""
    most = max(o.runs for o in of_baseline)
    return min((o for o in of_baseline if o.runs == most), key=lambda o: o.log_overall)


def choose(of_baseline: Sequence[Option]) -> Option:
    """By the one-standard-error rule; EXPLANATION says what counts as simpler."""
    formulations = ("eq10", "alg1", "batch_mean")
    return simplest(of_baseline, lambda o: (formulations.index(o.formulation), -o.lambda_clean, -o.lambda_adv, o.eps))


def simplest(tried: Sequence[Option], order: Callable[[Option], Any]) -> Option:
    """The first in this order of those within one standard error of the lowest."""
    lowest = best(tried)
    bound = lowest.log_overall + lowest.standard_error
    return min((o for o in tried if o.runs == lowest.runs and o.log_overall <= bound), key=order)
