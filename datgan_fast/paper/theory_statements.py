"""The paper's statements of theory, each beside how it was measured and what came out.

A statement counts as measured so where it was in at least ENOUGH of the seeds, each by its own rule, and as measured otherwise
where it was otherwise in as many; between these the seeds differ. These are descriptions of the runs that were made and not
tests: there is no error rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .experiments import DAT, PLAIN
from .theory_records import Records, Runs, together, values

SO, OTHERWISE, DIFFER = "measured so", "measured otherwise", "seeds differ"
NOT_MEASURABLE = "not measurable"
ENOUGH = 0.8  # of the seeds
FEW = 3  # seeds with a number, of as many or more: fewer say nothing of the others
EXPLAINED = 0.8  # of what DAT adds, for a formula that describes it
FOLLOWS = 0.7  # a correlation of logarithms: half of the variance
VARIES = 1.1  # the factor by which a weight varies at least that can follow anything
USUALLY = 0.5  # a share of images
ENDS = 0.5  # the part of a run's records, its last, over which variants are compared


class Row(NamedTuple):
    statement: str
    measured_by: str
    outcome: str
    judged: str  # SO, OTHERWISE, DIFFER, or NOT_MEASURABLE with the reason


class _OfSeeds(NamedTuple):
    """A number for each seed, NaN for none, and whether the statement is so by it."""

    numbers: np.ndarray
    holds: Callable[[np.ndarray], np.ndarray]
    form: str  # of a number: ".0%"
    told: str  # "{} of it"
    missing: str  # why it cannot be measured where no seed has a number
    beside: str = ""  # what else there is to tell


def statements(runs: Runs) -> list[Row]:
    """A row for each statement, in the paper's order of thought.

    runs: plain and DAT of one setting, each with the same seeds in the same order; one of them may be missing.
    """
    dat = list(runs.get(DAT, ()))
    return [*_of_the_terms(dat), *_of_the_sign(dat), *_of_pairs(runs), _of_the_limit()]


# What DAT adds


def _of_the_terms(dat: Sequence[Records]) -> list[Row]:
    no_term = "the runs have no such terms (no DAT, a norm, several attack steps, or a loss over pairs)"
    rule = f"at least {EXPLAINED:.0%} in {ENOUGH:.0%} of the seeds"
    part = "1 - sum |difference| / sum |exact| over a run's evaluations, {}; " + rule
    above: Callable[[np.ndarray], np.ndarray] = lambda x: x >= EXPLAINED  # noqa: E731
    first = _over(dat, lambda r: _explained(r, "first_order", ("ahead", "behind")))
    ahead = _over(dat, lambda r: _explained(r, "penalty", ("ahead",)))
    return [
        _row(
            "DAT's loss is the clean loss and a first-order term in eps",
            part.format("exact and first order, both signs"),
            _OfSeeds(first, above, ".0%", "{} of what DAT adds is explained", no_term),
        ),
        _row(
            "Where s >= 0 DAT is a zero-centred gradient penalty",
            part.format("exact and penalty where s >= 0"),
            _OfSeeds(ahead, above, ".0%", "{} is explained", no_term, _correlations(dat, "ahead")),
        ),
        _row(
            "Where s < 0 it acts the other way",
            f"share of a run's evaluations with s < 0 in which DAT lowers these images' loss; more than {USUALLY:.0%} "
            f"in {ENOUGH:.0%} of the seeds",
            _OfSeeds(
                _over(dat, _lowered),
                lambda x: x > USUALLY,
                ".0%",
                "the loss falls in {} of the evaluations",
                "no image had s < 0" if dat else no_term,
                _correlations(dat, "behind"),
            ),
        ),
        _row(
            "The penalty is adaptive: its weight follows the slope of the objective",
            "correlation over a run's evaluations (s >= 0) of log weights: exact / squared gradient, and the formula's; "
            f"at least {FOLLOWS} in {ENOUGH:.0%} of the seeds",
            _OfSeeds(
                _over(dat, _weight_follows),
                lambda x: x >= FOLLOWS,
                ".2f",
                "correlation {}",
                f"the formula's weight varies by less than {VARIES - 1:.0%}, as a linear objective's does"
                if dat
                else no_term,
            ),
        ),
    ]


def _explained(records: Records, formula: str, signs: Sequence[str]) -> float:
    exact, other = (np.concatenate([values(records, f"{name}_{s}") for s in signs]) for name in ("exact", formula))
    known = np.isfinite(exact) & np.isfinite(other)
    total = np.abs(exact[known]).sum()
    return float(1 - np.abs(exact - other)[known].sum() / total) if total else np.nan


def _lowered(records: Records) -> float:
    there = values(records, "square_behind") > 0
    exact = values(records, "exact_behind")[there]
    exact = exact[np.isfinite(exact)]
    return float((exact < 0).mean()) if exact.size else np.nan


def _weight_follows(records: Records) -> float:
    exact, formula, square = (values(records, f"{name}_ahead") for name in ("exact", "penalty", "square"))
    known = (exact > 0) & (formula > 0) & (square > 0)
    if known.sum() < 3:
        return np.nan
    acting, formula = (np.log(a[known] / square[known]) for a in (exact, formula))
    if np.ptp(formula) < np.log(VARIES) or not np.ptp(acting):
        return np.nan
    return float(np.corrcoef(acting, formula)[0, 1])


def _correlations(dat: Sequence[Records], sign: str) -> str:
    every = np.concatenate([values(r, f"correlation_{sign}") for r in dat]) if dat else np.zeros(0)
    every = every[np.isfinite(every)]
    return f"; image by image exact and penalty correlate by {np.median(every):.2f} (median)" if every.size else ""


def _of_the_sign(dat: Sequence[Records]) -> list[Row]:
    def share(records: Records) -> float:
        both = (values(records, "share_ahead_real") + values(records, "share_ahead_fake")) / 2
        return float(np.nanmean(both)) if np.isfinite(both).any() else np.nan

    return [
        _row(
            "s >= 0 is the usual case",
            f"mean share of the images over a run's evaluations; more than {USUALLY:.0%} in {ENOUGH:.0%} of the seeds",
            _OfSeeds(_over(dat, share), lambda x: x > USUALLY, ".0%", "{} of the images", "there is no run with DAT"),
        )
    ]


# With and without DAT

_LOWERED = (  # statement, quantity, its reading
    ("DAT lowers the discriminator's slope at images", "gradient_norm", "mean input-gradient norm"),
    ("DAT lowers its slope near images", "lipschitz_local", "largest slope found near images"),
    ("DAT lowers the bound of its Lipschitz constant", "lipschitz_bound", "product of the layers' constants"),
    ("DAT makes the generator's gradient smaller (Eq. 16)", "generator_gradient", "gradient norm"),
    ("DAT makes the generator's updates smaller (Eq. 16)", "generator_movement", "length of an update"),
)


def _of_pairs(runs: Runs) -> list[Row]:
    plain, dat = list(runs.get(PLAIN, ())), list(runs.get(DAT, ()))
    if plain and dat and len(plain) != len(dat):
        raise ValueError(f"runs must have the same seeds with and without DAT; got {len(dat)} and {len(plain)}")
    pairs = list(zip(plain, dat, strict=False))
    missing = "there is no pair of runs that has this number"
    rule = f"below 1 in {ENOUGH:.0%} of the seeds; the last {ENDS:.0%} of the evaluations"

    def row(statement: str, measured_by: str, ratio: Callable[[np.ndarray, np.ndarray], float], name: str) -> Row:
        logs = np.array([_compared(pair, name, ratio) for pair in pairs], dtype=np.float64)
        told = "{} times plain training's"
        return _row(
            statement, measured_by, _OfSeeds(np.exp(logs), lambda x: x < 1, ".3g", told, missing), geometric=True
        )

    rows = [row(s, f"{reading}, DAT over plain, {rule}", _log_ratio, name) for s, name, reading in _LOWERED]
    steadier = (
        "standard deviation of the logarithm of an update's length from evaluation to evaluation, DAT over plain, "
    )
    return [
        *rows,
        row("DAT makes its updates steadier (Eq. 16)", steadier + rule, _log_ratio_of_spread, "generator_movement"),
    ]


def _compared(pair: tuple[Records, Records], name: str, ratio: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """Over the end of what both have recorded."""
    _, both = together(pair, name)
    both = both[:, both.shape[1] - int(np.ceil(ENDS * both.shape[1])) :]
    known = ((both > 0) & np.isfinite(both)).all(0)
    return ratio(*np.log(both[:, known])) if known.any() else np.nan


def _log_ratio(plain: np.ndarray, dat: np.ndarray) -> float:
    return float((dat - plain).mean())


def _log_ratio_of_spread(plain: np.ndarray, dat: np.ndarray) -> float:
    spreads = plain.std(), dat.std()
    return float(np.log(spreads[1] / spreads[0])) if min(spreads) > 0 else np.nan


# What no run shows


def _of_the_limit() -> Row:
    return Row(
        "Training with DAT converges (in the limit)",
        "not at all",
        "a run makes finitely many updates of finite size, with a discriminator that is never optimal",
        f"{NOT_MEASURABLE}: the guarantee is of a limit and of assumptions that no run meets",
    )


# Judging


def _over(runs: Sequence[Records], number: Callable[[Records], float]) -> np.ndarray:
    return np.array([number(records) for records in runs], dtype=np.float64)


def _row(statement: str, measured_by: str, of: _OfSeeds, geometric: bool = False) -> Row:
    known = of.numbers[np.isfinite(of.numbers)]
    if not known.size:
        return Row(statement, measured_by, "no number", f"{NOT_MEASURABLE}: {of.missing}")
    so = int(of.holds(known).sum())
    mean = float(np.exp(np.log(known).mean()) if geometric else np.mean(known))
    least, middle, most = (format(number, of.form) for number in (known.min(), mean, known.max()))
    seeds = f" (from {least} to {most}); so in {so} of {known.size} seeds" if known.size > 1 else "; one seed"
    outcome = of.told.format(middle) + seeds + of.beside
    if known.size < min(FEW, of.numbers.size):
        judged = f"{NOT_MEASURABLE}: only {known.size} of {of.numbers.size} seeds have a number"
    elif so >= ENOUGH * known.size:
        judged = SO
    else:
        judged = OTHERWISE if known.size - so >= ENOUGH * known.size else DIFFER
    return Row(statement, measured_by, outcome, judged)
