"""How often a report says something where there is nothing to say: recorded runs with plain and DAT swapped at random.

All of a seed's pairs are swapped together, which changes the sign of their differences and makes DAT equal to plain training
whatever it did; a claim that asks for more than some effect is mirrored about that effect, as if it were what DAT has. Any
verdict is false then. The rule of verdicts.py is scored, and the one before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from .verdicts import CANNOT_TELL, DOES_NOT, HOLDS, Claim, Differences, decide


@dataclass(frozen=True)
class Rates:
    """Shares of reports with at least one false verdict."""

    times: int
    rule: float
    former_rule: float

    def __str__(self) -> str:
        error = math.sqrt(self.rule * (1 - self.rule) / self.times)
        return (
            f"plain and DAT swapped at random, {self.times} times: a false verdict in {self.rule:.1%} of the reports "
            f"(± {error:.1%}); by the former rule (Student's interval over pairs, uncorrected) in {self.former_rule:.1%}"
        )


def simulate(claims: Mapping[str, Sequence[Claim]], times: int) -> Rates:
    """Of each data set's claims, as report.measure gives them."""
    draw = np.random.default_rng(0)
    recorded = {name: [c for c in of_dataset if c.seeds] for name, of_dataset in claims.items()}
    wrong = []
    for _ in range(times):
        family: list[Claim] = []
        for of_dataset in recorded.values():
            # A seed's is the same for all claims of a data set: what hangs together does so here.
            seeds = sorted({seed for c in of_dataset for seed in c.of_pairs.seeds})
            signs = dict(zip(seeds, draw.choice((1.0, -1.0), len(seeds)), strict=True))
            family += [_swapped(c, signs) for c in of_dataset]
        wrong.append([any(v != CANNOT_TELL for v in rule(family)) for rule in (decide, former_rule)])
    return Rates(times, *np.mean(wrong, axis=0).tolist())


def _swapped(c: Claim, signs: Mapping[int, float]) -> Claim:
    own = np.array([signs[seed] for seed in c.of_pairs.seeds])
    return replace(c, of_pairs=Differences(c.bound + (c.differences - c.bound) * own, c.of_pairs.seeds))


def former_rule(family: Sequence[Claim]) -> list[str]:
    """Student's 95 % interval for the mean over pairs as if they were independent, each claim by itself."""
    return [_at_every_setting(c.towards) if c.every_setting else _student(c.towards, 0.95) for c in family]


def _student(differences: np.ndarray, level: float) -> str:
    x = differences[np.isfinite(differences)]
    if len(x) < 3:
        return CANNOT_TELL
    half = stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return HOLDS if x.mean() > half else DOES_NOT if x.mean() < -half else CANNOT_TELL


def _at_every_setting(differences: np.ndarray) -> str:
    strict = 1 - 0.05 / len(differences)
    if all(_student(d, 0.95) == HOLDS for d in differences):
        return HOLDS
    against = [_student(differences, 0.95), *(_student(d, strict) for d in differences)]
    return DOES_NOT if DOES_NOT in against else CANNOT_TELL
