"""The statistics of paired differences, against definitions written out, formulas on small cases, and scipy."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from datgan_fast.paper import statistics

NAN = math.nan


def noise(settings, seeds, shift=0.0):
    return np.random.default_rng(5).normal(shift, 1.0, (settings, seeds))


# The permutation test


def enumerated_p(differences):
    """Every way to swap plain and DAT in whole seeds, one after the other."""
    observed, ways, as_far = np.nanmean(differences), 0, 0
    for flips in itertools.product((1, -1), repeat=differences.shape[1]):
        swapped = differences * np.array(flips)
        ways += 1
        as_far += abs(np.nanmean(swapped)) >= abs(observed) - 1e-9
    return as_far / ways


@pytest.mark.parametrize(("settings", "seeds"), [(1, 1), (1, 5), (4, 6), (3, 7)])
@pytest.mark.parametrize("shift", [0.0, 0.7, 5.0])
def test_p_is_the_share_of_sign_flips_that_go_as_far(settings, seeds, shift):
    differences = noise(settings, seeds, shift)
    assert statistics.permutation_p(differences) == enumerated_p(differences)
    differences[0, 0] = NAN
    differences = differences[:, -(seeds - 1) :] if settings == 1 and seeds > 1 else differences
    if np.isfinite(differences).any():
        assert statistics.permutation_p(differences) == enumerated_p(differences)


def test_p_is_scipys_of_the_seeds_sums():
    sums = noise(3, 8, 0.4)
    found = stats.permutation_test(
        (sums.sum(axis=0),), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert statistics.permutation_p(sums) == pytest.approx(found.pvalue, abs=1e-12)


def test_many_settings_do_not_replace_seeds():
    assert statistics.permutation_p(np.ones((50, 3))) == 0.25
    assert [statistics.smallest_p(n) for n in (1, 2, 6, 12)] == [1.0, 0.5, 2**-5, 2**-11]
    assert statistics.permutation_p(np.zeros((2, 6))) == 1.0


def test_of_many_seeds_flips_are_drawn():
    assert statistics.smallest_p(30) == 2**-16
    differences = noise(2, 24, 0.25)
    as_normal = 2 * stats.norm.sf(abs(differences.sum()) / math.sqrt((differences.sum(axis=0) ** 2).sum()))
    assert statistics.permutation_p(differences) == pytest.approx(as_normal, abs=0.02)


# The interval


def test_interval_is_bca_by_its_formula():
    """Of one setting: Efron and Tibshirani 1993, Equations 14.9 to 14.15, on resamples of our own."""
    x = noise(1, 10, 0.5)[0] ** 3  # skewed
    means = np.random.default_rng(1).choice(x, (200_000, len(x))).mean(axis=1)
    z0 = stats.norm.ppf(np.mean(means < x.mean()))
    left_out = np.array([np.delete(x, i).mean() for i in range(len(x))])
    away = left_out.mean() - left_out
    a = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    assert abs(z0) > 0.02 and abs(a) > 0.02  # or plain percentiles would do
    ends = []
    for z in stats.norm.ppf([0.025, 0.975]):
        ends.append(np.quantile(means, stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))))
    assert statistics.interval(x[None], 0.95) == pytest.approx(ends, abs=0.05 * (ends[1] - ends[0]))
    percentile = np.quantile(means, [0.025, 0.975])
    assert abs(percentile - ends).max() > 0.05 * (ends[1] - ends[0])


def test_interval_resamples_seeds_and_settings():
    """Its width follows from the spread of both: differences that are a setting's part plus a seed's."""
    draw = np.random.default_rng(2)
    of_setting, of_seed = draw.normal(0, 3, (30, 1)), draw.normal(0, 1, (1, 40))
    for part, spread in (
        (of_setting + 0 * of_seed, of_setting.std() / math.sqrt(30)),
        (0 * of_setting + of_seed, of_seed.std() / math.sqrt(40)),
        (of_setting + of_seed, math.hypot(of_setting.std() / math.sqrt(30), of_seed.std() / math.sqrt(40))),
    ):
        low, high = statistics.interval(part, 0.9)
        assert (high - low) / (2 * stats.norm.ppf(0.95)) == pytest.approx(spread, rel=0.05)


def test_pairs_that_are_missing_are_left_out():
    differences = noise(3, 6)
    padded = np.full((4, 8), NAN)
    padded[:3, :6] = differences
    for of in (statistics.mean, statistics.permutation_p, lambda d: statistics.interval(d, 0.9)):
        assert of(padded) == of(differences)
    differences[1, 2] = math.inf
    known = differences[np.isfinite(differences)]
    assert statistics.mean(differences) == pytest.approx(known.mean())
    low, high = statistics.interval(differences, 0.9)
    assert low < known.mean() < high
    nothing = np.full((2, 2), NAN)
    assert math.isnan(statistics.mean(nothing)) and statistics.measured(nothing).shape == (0, 0)


def test_interval_without_spread_or_seeds():
    assert statistics.interval(np.full((2, 4), 0.3), 0.99) == (pytest.approx(0.3), pytest.approx(0.3))
    assert statistics.interval(np.array([[1.0], [2.0]]), 0.95) == (-math.inf, math.inf)
    assert statistics.interval(noise(3, 6), 0.95) == statistics.interval(noise(3, 6), 0.95)  # the same every time


# The rest


def test_interquartile_mean_is_that_of_the_middle_half():
    x = noise(4, 5)
    assert statistics.interquartile_mean(x) == pytest.approx(np.sort(x.ravel())[5:15].mean())
    assert statistics.interquartile_mean(np.array([[1.0, 2.0, 3.0, 1e9, NAN]])) == 2.5


def test_probability_of_improvement_counts_ties_half():
    assert statistics.probability_of_improvement(np.array([[1.0, -1.0, 0.0], [2.0, NAN, 3.0]])) == (3 + 0.5) / 5


def holm_by_steps(p):
    """Holm 1979: the smallest p times the family's size, the next times one less, never below one before it."""
    corrected, last = [0.0] * len(p), 0.0
    for i, at in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        last = max(last, min(1.0, p[at] * (len(p) - i)))
        corrected[at] = last
    return corrected


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.01, 0.01, 0.5, 0.01], [0.9, 0.8], [0.2], []])
def test_holm_step_by_step(p):
    assert statistics.holm(np.array(p)).tolist() == pytest.approx(holm_by_steps(p))


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.01, 0.01, 0.5, 0.01], [0.001, 0.9, 0.8], [0.2]])
def test_what_holm_allows_is_the_largest_p_that_is_significant(p):
    for which in range(len(p)):
        found = statistics.allowed(np.array(p), which, 0.05)
        for tried, significant in ((found * 0.999999, True), (found * 1.000001, False)):
            others = [tried if i == which else x for i, x in enumerate(p)]
            assert (holm_by_steps(others)[which] <= 0.05) == significant


@pytest.mark.parametrize(("settings", "seeds", "p"), [(1, 8, 0.05), (3, 9, 0.02), (1, 12, 0.001)])
@pytest.mark.parametrize("side", [1, -1])
def test_the_smallest_effect_that_both_methods_tell(settings, seeds, p, side):
    differences = side * noise(settings, seeds, 0.1)
    size = statistics.detectable(differences, p)
    about_0 = differences - differences.mean()
    direction = np.sign(differences.mean())

    def told(mean):
        shifted = about_0 + direction * mean
        low, high = statistics.interval(shifted, 1 - p)
        return statistics.permutation_p(shifted) <= p and (low > 0 or high < 0)

    assert told(1.001 * size) and told(2 * size) and not told(0.999 * size)
    assert math.isinf(statistics.detectable(differences, 0.9 * 2.0 ** (1 - seeds)))
