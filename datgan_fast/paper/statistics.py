"""The effect of paired differences, float64 [settings, seeds]: how large it is, and whether it can be told from nothing.

What is repeated is the seed; settings share it. The effect is the mean over all pairs. NaN is a pair that was not measured.
Two methods with unlike weaknesses judge it: a permutation test, exact for any distribution that is symmetric under the null
but blind to size, and a bootstrap interval, which has the size but is too narrow for few seeds. Everything is deterministic.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
from scipy import stats

ENUMERATED = 16  # seeds: of more, as many sign flips are drawn as these have
RESAMPLES = 9999


def measured(differences: np.ndarray) -> np.ndarray:
    """Without the settings and seeds of which nothing is finite; what else is not finite becomes NaN."""
    d = np.where(np.isfinite(differences), differences, np.nan).astype(np.float64)
    d = d[~np.isnan(d).all(axis=1)]
    return d[:, ~np.isnan(d).all(axis=0)]


def mean(differences: np.ndarray) -> float:
    d = measured(differences)
    return float(np.nanmean(d)) if d.size else np.nan


def interquartile_mean(differences: np.ndarray) -> float:
    """Of the pairs between the quartiles (Agarwal et al. 2021, as their rliable has it): one wild run does not move it."""
    x = differences[np.isfinite(differences)]
    return float(stats.trim_mean(x, 0.25)) if x.size else np.nan


def probability_of_improvement(differences: np.ndarray) -> float:
    """Share of pairs above 0, ties half (Agarwal et al. 2021, over pairs of the same seed)."""
    x = differences[np.isfinite(differences)]
    return float(np.mean((np.sign(x) + 1) / 2)) if x.size else np.nan


def permutation_p(differences: np.ndarray) -> float:
    """Two-sided p of the sign-flip test over seeds: all settings of a seed change their sign together.

    By hand, because scipy.stats.permutation_test goes through the flips in Python, and the null simulation asks for a hundred
    thousand tests; the tests compare.
    """
    by_seed = np.nansum(measured(differences), axis=0)
    null = np.abs(_signs(len(by_seed)) @ by_seed)
    rounding = 1e-12 * np.abs(by_seed).sum()  # equal sums, added up in another order
    return float(np.mean(null >= null[0] - rounding))


def smallest_p(seeds: int) -> float:
    """That of seeds that all agree: 2^(1 - seeds) while all flips are enumerated."""
    return permutation_p(np.ones((1, seeds)))


@lru_cache
def _signs(seeds: int) -> np.ndarray:
    """[flips, seeds], the first of which flips nothing."""
    if seeds <= ENUMERATED:
        return np.array(list(product((1.0, -1.0), repeat=seeds)))
    drawn = np.random.default_rng(0).choice((1.0, -1.0), (2**ENUMERATED, seeds))
    drawn[0] = 1.0
    return drawn


def interval(differences: np.ndarray, level: float) -> tuple[float, float]:
    """BCa bootstrap interval of the mean, resampling seeds and settings (Efron 1987; two ways: Owen 2007).

    Infinite for fewer than two seeds. Of one setting only seeds are resampled.
    """
    d = measured(differences)
    settings, seeds = d.shape
    if seeds < 2:
        return -np.inf, np.inf
    observed = np.nanmean(d)
    if np.nanmax(np.abs(d - observed)) <= 1e-12 * abs(observed):
        return observed, observed  # no spread, of which scipy makes NaN
    known, values = np.isfinite(d), np.nan_to_num(d)

    def means(*drawn: np.ndarray, axis: int) -> np.ndarray:
        """Of seeds [..., seeds] and settings [..., settings], as scipy draws them: two samples, whose values are indices."""
        columns, *rows = (x.astype(int) for x in drawn)
        cells = (*(r[..., :, None] for r in rows), columns[..., None, :]) if rows else (0, columns[..., None, :])
        count = known[cells].sum(axis=(-2, -1))
        total = values[cells].sum(axis=(-2, -1))
        return np.where(count > 0, total / np.maximum(count, 1), observed)  # all drawn pairs missing: says nothing

    samples = (np.arange(seeds), np.arange(settings)) if settings > 1 else (np.arange(seeds),)
    found = stats.bootstrap(
        samples, means, vectorized=True, confidence_level=level, n_resamples=RESAMPLES, batch=1000, method="BCa",
        random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def detectable(differences: np.ndarray, p: float) -> float:
    """The smallest mean, on the side where the mean is, that both methods had told from 0, were the spread the same.

    p    what the permutation test may have at most; the interval's level is 1 - p

    Infinite where no mean is large enough.
    """
    d = measured(differences)
    if not d.size or smallest_p(d.shape[1]) > p:
        return np.inf
    d = d * (1 if mean(d) >= 0 else -1)
    by_interval = mean(d) - interval(d, 1 - p)[0]
    d = d - mean(d)
    none, enough = 0.0, float(np.abs(np.nanmean(d, axis=0)).max())  # with which all seeds agree
    for _ in range(40):  # p falls as the mean grows
        half = (none + enough) / 2
        none, enough = (none, half) if permutation_p(d + half) <= p else (half, enough)
    return max(by_interval, enough)


def holm(p: np.ndarray) -> np.ndarray:
    """A family's p, corrected by Holm's (1979) method."""
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected


def allowed(p: np.ndarray, which: int, errors: float) -> float:
    """The largest p with which this member of a family would be significant, the others' being what they are."""
    for correction in range(1, len(p)):
        tried = np.where(np.arange(len(p)) == which, errors / correction, p)
        if holm(tried)[which] <= errors * (1 + 1e-12):
            return errors / correction
    return errors / len(p)  # with which the smallest is significant
