"""The verdict on a claim, from its paired differences and those of all other claims that a report measured.

These are one family, on all data sets of the report together. A claim holds if the mean lies on the claimed side of the bound
(0 unless the claim says more) by both methods of statistics.py after Holm's correction over the family: by the permutation
test's p, and by the bootstrap interval at the level that this correction leaves. It does not if the mean lies on the other side
by both. Otherwise we cannot tell, and say which effect could have been seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from . import statistics

HOLDS, DOES_NOT, CANNOT_TELL, NOT_MEASURED = "holds", "does not", "cannot tell", "not measured"
ERRORS = 0.05  # the chance of any false verdict in a report


class Differences(NamedTuple):
    """Of DAT and plain training."""

    values: np.ndarray  # float64 [settings, seeds], NaN where there is no pair
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Claim:
    """What is claimed of which differences."""

    name: str  # "C3"
    text: str
    paper: str
    measured_by: str
    effect: str  # the mean in words: "{:.3g} times with DAT"
    of_pairs: Differences
    above: bool  # whether the mean is claimed to be above the bound or below it
    bound: float = 0.0
    logarithm: bool = False  # of a ratio, which is what is told
    every_setting: bool = False  # claimed of each setting rather than of their mean

    @property
    def differences(self) -> np.ndarray:
        return self.of_pairs.values

    @cached_property
    def towards(self) -> np.ndarray:
        """The differences, above 0 where they are as claimed; without the settings and seeds that have none."""
        d = statistics.measured(self.differences) - self.bound
        return d if self.above else -d

    @cached_property
    def decisive(self) -> tuple[np.ndarray, int]:
        """The differences that decide, and of how many they were picked.

        "At every setting" holds if it does at the one where it is told least, and needs no correction for that; it does not
        if it does not at some setting, of as many as there are (Bonferroni).
        """
        if not self.every_setting or not self.towards.size:
            return self.towards, 1
        each = [self.towards[[i]] for i in range(len(self.towards))]
        behind = [d for d in each if statistics.mean(d) <= 0]
        if behind:
            return min(behind, key=statistics.permutation_p), len(each)
        return max(each, key=statistics.permutation_p), 1

    @property
    def deciding(self) -> np.ndarray:
        """The differences that decide, as they were measured."""
        d, _ = self.decisive
        return (d if self.above else -d) + self.bound

    @property
    def seeds(self) -> int:
        return self.towards.shape[1]

    @cached_property
    def p(self) -> float:
        """Before Holm's correction."""
        d, picked_of = self.decisive
        return min(1.0, picked_of * statistics.permutation_p(d))

    def told(self, mean: float) -> str:
        """A mean of differences, in words."""
        return self.effect.format(math.exp(mean) if self.logarithm else mean)


@dataclass(frozen=True)
class Verdict:
    """A line of the report's table."""

    claim: Claim
    verdict: str
    corrected_p: float  # by Holm's method, over the report's family
    interval: tuple[float, float]  # of the deciding differences' mean, at the corrected level
    detectable: str  # the effect that could have been seen

    @property
    def effect(self) -> str:
        """The mean in words and its interval; of a claim about every setting those of the one that decides, too."""
        c = self.claim
        text = c.told(statistics.mean(c.differences))
        if c.every_setting:
            better = sum(statistics.mean(d[None]) > 0 for d in c.towards)
            text += f" on average, in {better} of {counted(len(c.towards), 'setting')}"
            text += f"; at the one that decides {c.told(statistics.mean(c.deciding))}"
        low, high = (f"{math.exp(x) if c.logarithm else x:.3g}" for x in self.interval)
        return text + (f" ({low} to {high})" if math.isfinite(self.interval[0]) else "")

    @property
    def ours(self) -> str:
        """Effect, interquartile mean, and the share of pairs that are as claimed."""
        c = self.claim
        if self.verdict == NOT_MEASURED:
            return NOT_MEASURED
        inner = statistics.interquartile_mean(c.differences)
        parts = [
            self.effect,
            f"interquartile mean {math.exp(inner) if c.logarithm else inner:.3g}",
            f"as claimed in {statistics.probability_of_improvement(c.towards):.0%} of "
            f"{counted(int(np.isfinite(c.towards).sum()), 'pair')}",
        ]
        return "; ".join(parts)

    @property
    def certainty(self) -> str:
        return (
            f"{counted(self.claim.seeds, 'seed')}, corrected p {self.corrected_p:.2g}, could be seen: {self.detectable}"
        )


# Verdicts


def judge(claims: Mapping[str, Sequence[Claim]]) -> dict[str, list[Verdict]]:
    """The verdicts on each data set's claims; all that were measured are one family."""
    family = [c for of_dataset in claims.values() for c in of_dataset if c.seeds]
    p = np.array([c.p for c in family])
    verdicts = {}
    for i, (c, verdict, corrected) in enumerate(zip(family, decide(family), statistics.holm(p), strict=True)):
        allowed = statistics.allowed(p, i, ERRORS)
        interval = statistics.interval(c.deciding, 1 - allowed / c.decisive[1])
        verdicts[id(c)] = Verdict(c, verdict, float(corrected), interval, _detectable(c, allowed))
    unknown = (math.nan, math.nan)
    return {
        dataset: [verdicts.get(id(c)) or Verdict(c, NOT_MEASURED, math.nan, unknown, "") for c in of_dataset]
        for dataset, of_dataset in claims.items()
    }


def decide(family: Sequence[Claim]) -> list[str]:
    """HOLDS, DOES_NOT or CANNOT_TELL for each."""
    p = np.array([c.p for c in family])
    return [
        _by_interval(c, statistics.allowed(p, i, ERRORS)) if corrected <= ERRORS else CANNOT_TELL
        for i, (c, corrected) in enumerate(zip(family, statistics.holm(p), strict=True))
    ]


def _by_interval(c: Claim, allowed: float) -> str:
    d, picked_of = c.decisive
    low, high = statistics.interval(d, 1 - allowed / picked_of)
    return HOLDS if low > 0 else DOES_NOT if high < 0 else CANNOT_TELL


def _detectable(c: Claim, allowed: float) -> str:
    d, picked_of = c.decisive
    size = statistics.detectable(d, allowed / picked_of)
    if math.isinf(size):
        least = min(1.0, picked_of * statistics.smallest_p(statistics.measured(d).shape[1]))
        return f"none: p of {counted(c.seeds, 'seed')} is {least:.2g} at least, {allowed:.2g} is needed"
    text = f"a factor of {math.exp(size):.3g}" if c.logarithm else f"{size:.2g}"
    if c.bound:
        text += f" from {math.exp(c.bound) if c.logarithm else c.bound:.3g}"
    return text + (" at the setting that decides" if c.every_setting else "")


# In words


def counted(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")
