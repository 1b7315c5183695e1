"""The paper's claims, each a function from the runs' results to numbers and a verdict by a stated test.

A claim compares DAT with plain training, in pairs of the same setting and seed. Its quantity is a difference DAT - plain, or
the logarithm of a ratio DAT / plain for quantities without a scale of their own; pairs count as independent. The claim
holds if Student's 95 % interval for the mean lies wholly on the claimed side of the bound (0 unless the claim says more), it
does not if the interval lies wholly on the other side, and otherwise, or with fewer than three pairs, we cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..metrics.catalogue import METRICS
from ..training.baselines import BASELINES
from .experiments import ATTACK, DAT, PAPER, PLAIN
from .results import Result, Series, pairs, score_name, settings

HOLDS, DOES_NOT, CANNOT_TELL = "holds", "does not", "cannot tell"
LEVEL = 0.95
FEWEST = 3  # pairs
PAPER_STEPS = {(PLAIN, "fake"): "3.2", (PLAIN, "real"): "3.88", (DAT, "fake"): "37.36", (DAT, "real"): "7.44"}

Pairs = list[tuple[Result, Result]]  # (plain, DAT)


@dataclass(frozen=True)
class Verdict:
    """A line of the report's table."""

    name: str  # "C3"
    claim: str
    paper: str
    ours: str
    verdict: str
    test: str


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float
    n: int

    def verdict(self, above: bool, bound: float = 0.0) -> str:
        """Whether the mean is above (below) the bound."""
        if self.n < FEWEST:
            return CANNOT_TELL
        if self.low > bound:
            return HOLDS if above else DOES_NOT
        if self.high < bound:
            return DOES_NOT if above else HOLDS
        return CANNOT_TELL


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's t interval for the mean; values that are not finite are left out."""
    x = np.asarray(values, dtype=float)
    x = x[np.isfinite(x)]
    n = len(x)
    if n < 2:
        return Interval(float(x.mean()) if n else math.nan, -math.inf, math.inf, n)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half, n)


def judge(results: Sequence[Result], attack_steps: Mapping[str, Mapping[str, float]]) -> list[Verdict]:
    """Every claim's verdict.

    attack_steps    run's name -> {"fake": mean attack steps, "real": ...} for the runs whose discriminators were attacked
    """
    paired = pairs(results)

    def of(*figures: str) -> Pairs:
        return [pair for pair in paired if pair[0].experiment.figure in figures]

    curves = of(*(name for name in PAPER if name != ATTACK))  # figure 1's runs are one of figure 3's settings again

    return [
        *_c1_attack_steps(of(ATTACK), attack_steps),
        _c2_dcgan_score(of("3")),
        _score("C3", "WGAN has a better score with DAT", "better", of("4")),
        *_wasserstein("C3", "WGAN", of("4")),
        _score("C4", "WGAN-GP with n_dis 5 has a worse score with DAT", "worse", of("5"), better=False),
        *_wasserstein("C4", "WGAN-GP with n_dis 1", of("6")),
        _score("C5", "WGAN-LP with n_dis 5 has a worse score with DAT", "worse", of("7"), better=False),
        *_wasserstein("C5", "WGAN-LP with n_dis 1", of("8")),
        *(_c6_gradient_norm(kind, of_kind) for kind, of_kind in _by_kind(curves)),
        _c6_penalty(curves),
        *(_c7_faster(kind, of_kind) for kind, of_kind in _by_kind(curves)),
    ]


def _by_kind(paired: Pairs) -> list[tuple[str, Pairs]]:
    """Pairs of unlike discriminators are no one sample: without Lipschitz control, clamped, with a penalty of their own."""
    kinds: dict[str, Pairs] = {"DCGAN": [], "WGAN": [], "WGAN-GP, -LP, -ALP": []}
    for pair in paired:
        baseline = BASELINES[pair[0].experiment.config.baseline]
        kind = "WGAN" if baseline.clamps else "WGAN-GP, -LP, -ALP" if baseline.penalty else "DCGAN"
        kinds[kind].append(pair)
    return list(kinds.items())


# The claims


def _c1_attack_steps(paired: Pairs, steps: Mapping[str, Mapping[str, float]]) -> list[Verdict]:
    test = (
        "log of DAT / plain per pair, of mean steps, an image that never arrives counting with the cap; several-fold is read "
        f"as twice or more: {LEVEL:.0%} interval against log 2"
    )
    verdicts = []
    for side in ("fake", "real"):
        printed = f"{PAPER_STEPS[PLAIN, side]} steps become {PAPER_STEPS[DAT, side]} (DCGAN, MNIST)"
        both = [
            (steps[p.experiment.name][side], steps[d.experiment.name][side])
            for p, d in paired
            if p.experiment.name in steps and d.experiment.name in steps
        ]
        found = interval([_log_ratio(d, p) for p, d in both])  # a pair that needed no steps at all says nothing
        claim = (
            f"Fooling the discriminator with {'generated' if side == 'fake' else 'real'} images takes several times "
        )
        verdicts.append(
            Verdict(
                "C1",
                claim + "as many attack steps with DAT",
                printed,
                _ratio(found),
                found.verdict(True, math.log(2)),
                test,
            )
        )
    return verdicts


def _c2_dcgan_score(paired: Pairs) -> Verdict:
    """Of every setting, so the verdict is the settings' together."""
    name, sign, score = _score_measure(paired)
    by_setting = [
        [sign * (score(d) - score(p)) for p, d in paired if p.experiment.setting == setting]
        for setting in settings(p for p, _ in paired)
    ]
    pooled = interval([value for values in by_setting for value in values])
    better = sum(interval(values).mean > 0 for values in by_setting)
    if not by_setting:
        verdict, ours = CANNOT_TELL, "not measured"
    else:
        ours = f"better on average in {better} of {len(by_setting)} settings; over all of them {_improvement(pooled, name)}"
        # "At every setting" is refuted by the mean over all, or by one setting when that many are looked at.
        strict = 1 - (1 - LEVEL) / len(by_setting)
        if all(interval(values).verdict(True) == HOLDS for values in by_setting):
            verdict = HOLDS
        elif any(i.verdict(True) == DOES_NOT for i in (pooled, *(interval(v, strict) for v in by_setting))):
            verdict = DOES_NOT
        else:
            verdict = CANNOT_TELL
    return Verdict(
        "C2",
        "DCGAN has a better score with DAT at every setting",
        "better Inception Score at each setting shown",
        ours,
        verdict,
        "holds if each setting's interval lies above 0; does not if the interval over all settings, or one setting's at "
        "a level corrected for their number (Bonferroni), lies below 0",
    )


def _score(number: str, claim: str, paper: str, paired: Pairs, better: bool = True) -> Verdict:
    name, sign, score = _score_measure(paired)
    found = interval([sign * (score(d) - score(p)) for p, d in paired])
    return Verdict(
        number,
        claim,
        f"{paper} Inception Score",
        _improvement(found, name),
        found.verdict(above=better),
        f"{'DAT - plain' if sign > 0 else 'plain - DAT'} of {name}, mean over the last quarter of training",
    )


def _wasserstein(number: str, where: str, paired: Pairs) -> list[Verdict]:
    lower = interval([_late(d.statistic("wasserstein")) - _late(p.statistic("wasserstein")) for p, d in paired])
    steadier = interval([_log_ratio(_unrest(d), _unrest(p)) for p, d in paired])
    return [
        Verdict(
            number,
            f"{where} has a smaller Wasserstein estimate with DAT",
            "smaller",
            _difference(lower, "the Wasserstein estimate"),
            lower.verdict(above=False),
            "DAT - plain of mean D(real) - mean D(fake), mean over the last half of training",
        ),
        Verdict(
            number,
            f"{where} has a steadier Wasserstein estimate with DAT",
            "steadier",
            _ratio(steadier),
            steadier.verdict(above=False),
            "log of DAT / plain of the standard deviation of the estimate over the log lines of the last half of training",
        ),
    ]


def _c6_gradient_norm(kind: str, paired: Pairs) -> Verdict:
    found = interval([_log_ratio(_norm_when_ahead(d), _norm_when_ahead(p)) for p, d in paired])
    return Verdict(
        "C6",
        f"{kind}: DAT lowers the discriminator's gradient norm when it is ahead",
        "DAT acts as a zero-centred gradient penalty (theory)",
        _ratio(found),
        found.verdict(above=False),
        "log of DAT / plain of the mean input-gradient norm over the log lines in which D is ahead: its Wasserstein estimate "
        "is above the run's own median",
    )


def _c6_penalty(paired: Pairs) -> Verdict:
    found = interval([_penalty_correlation(d) for _, d in paired])
    return Verdict(
        "C6",
        "What DAT adds to the loss grows with the squared gradient norm",
        "the penalty is adaptive (theory)",
        "not measured"
        if not found.n
        else f"mean rank correlation {found.mean:.2f}{_bounds(found.low, found.high)}, {counted(found.n, 'run')}",
        found.verdict(above=True),
        "Spearman's correlation, over a DAT run's log lines, of loss_adv - loss_clean with input_grad_norm squared",
    )


def _c7_faster(kind: str, paired: Pairs) -> Verdict:
    name, sign, _ = _score_measure(paired)
    found = interval([_log_ratio(*_updates_to_reach(p, d, name, sign)) for p, d in paired])
    return Verdict(
        "C7",
        f"{kind}: the generator converges faster with DAT",
        "faster in its figures",
        _ratio(found),
        found.verdict(above=False),
        "log of DAT / plain of the discriminator updates until 90 % of the plain run's final score; a run that "
        "never reaches it counts with its whole length",
    )


# What they measure


def _score_measure(paired: Pairs) -> tuple[str, int, Callable[[Result], float]]:
    """The score that all pairs have, +1 if more of it is better or -1, and a run's final value of it."""
    name = score_name([result for pair in paired for result in pair])
    if name is None:
        return "the score", 1, lambda result: math.nan
    return name, 1 if METRICS[name].higher_is_better else -1, lambda result: final(result.metric(name))


def final(series: Series) -> float:
    """Mean over the last quarter of training."""
    return _late(series, part=0.75)


def _late(series: Series, measure: Callable[[np.ndarray], float] = np.nanmean, part: float = 0.5) -> float:
    updates, values = series
    late = values[updates > part * updates[-1]] if len(updates) else values
    return float(measure(late)) if np.isfinite(late).any() else math.nan


def _unrest(result: Result) -> float:
    return _late(result.statistic("wasserstein"), np.nanstd)


def _norm_when_ahead(result: Result) -> float:
    ahead = result.statistic("wasserstein")[1]
    norms = result.statistic("input_grad_norm")[1][ahead > np.nanmedian(ahead)]
    return float(np.nanmean(norms)) if np.isfinite(norms).any() else math.nan


def _penalty_correlation(result: Result) -> float:
    penalty, norm = result.penalty_added()[1], result.statistic("input_grad_norm")[1]
    both = np.isfinite(penalty) & np.isfinite(norm)
    if both.sum() < 3 or np.ptp(penalty[both]) == 0 or np.ptp(norm[both]) == 0:
        return math.nan
    return float(stats.spearmanr(penalty[both], norm[both] ** 2).statistic)


def _updates_to_reach(plain: Result, dat: Result, name: str, sign: int) -> tuple[float, float]:
    """Discriminator updates of DAT and of the plain run until 90 % of the plain run's final score."""
    goal = final(plain.metric(name)) * (0.9 if sign > 0 else 1 / 0.9)

    def reached(result: Result) -> float:
        updates, values = result.metric(name)
        there = sign * (values - goal) >= 0
        return float(updates[there][0] if there.any() else updates[-1])

    return reached(dat), reached(plain)


def _log_ratio(a: float, b: float) -> float:
    return math.log(a / b) if a > 0 and b > 0 else math.nan


# In words


def counted(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _difference(i: Interval, name: str) -> str:
    if not i.n:
        return "not measured"
    return f"{name} {i.mean:+.3g} with DAT{_bounds(i.low, i.high)}, {counted(i.n, 'pair')}"


def _improvement(i: Interval, name: str) -> str:
    """Of a score, of which more or less may be better."""
    if not i.n:
        return "not measured"
    return f"{name} better by {i.mean:.3g} with DAT{_bounds(i.low, i.high)}, {counted(i.n, 'pair')}"


def _ratio(i: Interval) -> str:
    """Of an interval of logarithms."""
    if not i.n:
        return "not measured"
    low, high = np.exp([i.low, i.high])
    return f"{math.exp(i.mean):.3g} times with DAT{_bounds(low, high)}, {counted(i.n, 'pair')}"


def _bounds(low: float, high: float) -> str:
    return f" ({low:.3g} to {high:.3g})" if math.isfinite(high) else ""
