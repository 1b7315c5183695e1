"""The paper's claims as a table: of each the paired differences of DAT and plain training that the runs recorded.

A pair has the same setting and seed. The quantity is a difference DAT - plain, or the logarithm of a ratio DAT / plain for
quantities without a scale of their own; swapping the two changes its sign (but for a correlation within the run with DAT).
verdicts.py judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from ..metrics.catalogue import METRICS
from ..training.baselines import BASELINES, Baseline
from .experiments import BOTH, DAT, EQUAL, PAPER, PLAIN, attacked
from .figure1 import PROTOCOLS
from .results import Result, Series, pairs, score_name
from .verdicts import Claim, Differences

PAPER_STEPS = {(PLAIN, "fake"): "3.2", (PLAIN, "real"): "3.88", (DAT, "fake"): "37.36", (DAT, "real"): "7.44"}

Pairs = list[tuple[Result, Result]]  # (plain, DAT)
PENALISED = [name for name, baseline in BASELINES.items() if baseline.penalty]
READ_OTHERWISE = {  # the claims' name, and in words
    EQUAL: ("Eq. 8, equal weight", "at equal total weight"),
    BOTH: ("Eq. 8, penalty on both", "with the penalty on perturbed images too"),
}


def measure(results: Sequence[Result]) -> list[Claim]:
    """Every claim, on one data set; one that was not run has no seeds."""
    paired = pairs(results)

    def of(*figures: str) -> Pairs:
        return [pair for pair in paired if pair[0].experiment.figure in figures]

    curves = of(*PAPER)
    better, worse = "better Inception Score", "worse Inception Score"
    return [
        *_attacks([pair for pair in paired if attacked(pair[0].experiment)]),
        _score("C2", "DCGAN has a better score with DAT at every setting", f"{better} at each setting shown", of("3")),
        _score("C3", "WGAN has a better score with DAT", better, of("4")),
        *_wasserstein("C3", "WGAN", of("4")),
        _score("C4", "WGAN-GP with n_dis 5 has a worse score with DAT", worse, of("5")),
        *_wasserstein("C4", "WGAN-GP with n_dis 1", of("6")),
        _score("C5", "WGAN-LP with n_dis 5 has a worse score with DAT", worse, of("7")),
        *_wasserstein("C5", "WGAN-LP with n_dis 1", of("8")),
        *(_gradient_norm(kind, of_kind) for kind, of_kind in _by_kind(curves).items()),
        *(_penalty(kind, of_kind) for kind, of_kind in _by_kind(curves).items()),
        *(_faster(kind, of_kind) for kind, of_kind in _by_kind(curves).items()),
        *(c for variant in READ_OTHERWISE for c in _penalised(results, variant)),
    ]


def _penalised(results: Sequence[Result], variant: str) -> list[Claim]:
    """What is claimed of critics with a penalty, where Eq. 8 is read otherwise; and this reading beside 1 + 1."""
    number, how = READ_OTHERWISE[variant]
    to_plain, to_dat = (_by_n_dis(pairs(results, variant, against)) for against in (PLAIN, DAT))
    of_scores = [pair for of_n_dis in to_plain.values() for pair in of_n_dis if pair[0].experiment.figure in ("5", "7")]
    who = _named(("wgan-gp", "wgan-lp"), of_scores, " and ")
    have = "have" if " and " in who else "has"
    said = [_score(number, f"{who} with n_dis 5 {have} a worse score with DAT {how}", "nothing", of_scores)]
    for (kind, of_plain), (kind_of_dat, of_dat) in zip(to_plain.items(), to_dat.items(), strict=True):
        said += [
            *_wasserstein(number, f"{kind} {how}", of_plain),
            _gradient_norm(f"{kind}, {how}", of_plain, number),
            _faster(f"{kind}, {how}", of_plain, number),
            _lower_than_1_and_1(number, kind_of_dat, how, of_dat),
        ]
    return said


def _by_kind(paired: Pairs) -> dict[str, Pairs]:
    """Pairs of unlike discriminators are no one sample: without Lipschitz control, clamped, with a penalty of their own."""

    def of(kind: Callable[[Baseline], bool]) -> Pairs:
        return [pair for pair in paired if kind(BASELINES[pair[0].experiment.config.baseline])]

    return {
        "DCGAN": of(lambda b: not b.clamps and b.penalty is None),
        "WGAN": of(lambda b: b.clamps),
        **_by_n_dis(of(lambda b: b.penalty is not None)),
    }


def _by_n_dis(penalised: Pairs) -> dict[str, Pairs]:
    """Critics with a penalty are judged with n_dis 5 and 1 apart: on digits DAT's effect on their slopes lies on either side of
    none."""
    apart = {n: [pair for pair in penalised if pair[0].experiment.config.n_dis == n] for n in (5, 1)}
    return {f"{_named(PENALISED, paired)} with n_dis {n}": paired for n, paired in apart.items()}


def _named(baselines: Sequence[str], paired: Pairs, comma: str = ", ") -> str:
    """Those of which there are runs, or all of them where there are none: WGAN-GP, -LP, -ALP."""
    run = {p.experiment.config.baseline for p, _ in paired} or baselines
    return "WGAN" + comma.join(b.removeprefix("wgan").upper() for b in baselines if b in run)


def _differences(paired: Pairs, difference: Callable[[Result, Result], float]) -> Differences:
    """Of (plain, DAT)."""
    settings = list(dict.fromkeys(p.experiment.place[:2] for p, _ in paired))
    seeds = sorted({p.experiment.seed for p, _ in paired})
    d = np.full((len(settings), len(seeds)), np.nan)
    for plain, dat in paired:
        d[settings.index(plain.experiment.place[:2]), seeds.index(plain.experiment.seed)] = difference(plain, dat)
    return Differences(d, tuple(seeds))


def _attacks(paired: Pairs) -> list[Claim]:
    """Figure 1: the median number of steps by each protocol, and the share of images that can be fooled at all.

    A median stays right where some images never arrive, whose number of steps is not known; a mean does not.
    """
    chosen, *near = PROTOCOLS
    ways = [(chosen, "")] + [(p, f", {p.difference(chosen)}") for p in near]
    steps = [_attack_steps(side, str(p), how, paired) for p, how in ways for side in ("fake", "real")]
    return [*steps, _arrivals(str(chosen), paired)]


def _attack_number(result: Result, protocol: str, what: str) -> float:
    found = next((line[what] for line in result.attacks if line["protocol"] == protocol), None)
    return math.nan if found is None else float(found)


def _attack_steps(side: str, protocol: str, how: str, paired: Pairs) -> Claim:
    images = {"fake": "generated", "real": "real"}[side]

    def steps(r: Result) -> float:
        return max(_attack_number(r, protocol, f"{side}_median"), 1.0)  # of NaN and a number max takes the first

    return Claim(
        "C1",
        f"Fooling D with {images} images takes several times as many attack steps with DAT{how}",
        f"{PAPER_STEPS[PLAIN, side]} steps become {PAPER_STEPS[DAT, side]} (DCGAN, MNIST, mean)",
        "log of DAT / plain of the median number of steps, at least one; several-fold is read as twice or more: against log 2",
        "{:.3g} times with DAT",
        _differences(paired, lambda p, d: _log_ratio(steps(d), steps(p))),
        above=True,
        bound=math.log(2),
        logarithm=True,
    )


def _arrivals(protocol: str, paired: Pairs) -> Claim:
    def share(r: Result) -> float:
        return (
            _attack_number(r, protocol, "fake_share_reached") + _attack_number(r, protocol, "real_share_reached")
        ) / 2

    return Claim(
        "C1",
        f"Fewer images can be fooled with DAT, within {PROTOCOLS[0].cap} steps",
        "harder to fool",
        "DAT - plain of the share of images that arrive, generated and real",
        "{:+.2f} of the images with DAT",
        _differences(paired, lambda p, d: share(d) - share(p)),
        above=False,
    )


def _score(number: str, text: str, paper: str, paired: Pairs) -> Claim:
    name, sign, score = _score_measure(paired)
    return Claim(
        number,
        text,
        paper,
        f"{'DAT - plain' if sign > 0 else 'plain - DAT'} of {name}, mean over the last quarter of training",
        name + " better by {:.3g} with DAT",
        _differences(paired, lambda p, d: sign * (score(d) - score(p))),
        above="better" in text,
        every_setting="every setting" in text,
    )


def _wasserstein(number: str, where: str, paired: Pairs) -> list[Claim]:
    return [
        Claim(
            number,
            f"{where} has a smaller Wasserstein estimate with DAT",
            "smaller",
            "DAT - plain of mean D(real) - mean D(fake), mean over the last half of training",
            "the Wasserstein estimate {:+.3g} with DAT",
            _differences(paired, lambda p, d: _late(d.statistic("wasserstein")) - _late(p.statistic("wasserstein"))),
            above=False,
        ),
        Claim(
            number,
            f"{where} has a steadier Wasserstein estimate with DAT",
            "steadier",
            "log of DAT / plain of the standard deviation of the estimate over the log lines of the last half of training",
            "{:.3g} times with DAT",
            _differences(paired, lambda p, d: _log_ratio(_unrest(d), _unrest(p))),
            above=False,
            logarithm=True,
        ),
    ]


def _gradient_norm(kind: str, paired: Pairs, number: str = "C6") -> Claim:
    return Claim(
        number,
        f"{kind}: DAT lowers the discriminator's gradient norm when it is ahead",
        "DAT acts as a zero-centred gradient penalty (theory)",
        "log of DAT / plain of the mean input-gradient norm over the log lines in which D is ahead: its Wasserstein estimate "
        "is above the run's own median",
        "{:.3g} times with DAT",
        _differences(paired, lambda p, d: _log_ratio(_norm_when_ahead(d), _norm_when_ahead(p))),
        above=False,
        logarithm=True,
    )


def _lower_than_1_and_1(number: str, kind: str, how: str, paired: Pairs) -> Claim:
    return replace(
        _gradient_norm(kind, paired, number),
        text=f"{kind}: D's gradient norm when it is ahead is lower {how} than with 1 + 1",
        paper="nothing",
        effect="{:.3g} times that with 1 + 1",
    )


def _penalty(kind: str, paired: Pairs) -> Claim:
    return Claim(
        "C6",
        f"{kind}: what DAT adds to the loss grows with the squared gradient norm",
        "the penalty is adaptive (theory)",
        "Spearman's correlation, over a DAT run's log lines, of loss_adv - loss_clean with input_grad_norm squared",
        "mean rank correlation {:.2f}",
        _differences(paired, lambda _, d: _penalty_correlation(d)),
        above=True,
    )


def _faster(kind: str, paired: Pairs, number: str = "C7") -> Claim:
    name, sign, _ = _score_measure(paired)
    return Claim(
        number,
        f"{kind}: the generator comes to the same score in fewer updates with DAT",
        "converges faster in its figures",
        "log of DAT / plain of the discriminator updates until 90 % of the final score of the worse of the two runs, which "
        "both have a chance to reach",
        "{:.3g} times with DAT",
        _differences(paired, lambda p, d: _log_ratio(*_updates_to_reach(p, d, name, sign))),
        above=False,
        logarithm=True,
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
    """Discriminator updates of DAT and of the plain run until 90 % of the worse one's final score.

    The same goal with plain and DAT swapped, as the permutation test needs it.
    """
    goal = sign * float(np.min([sign * final(r.metric(name)) for r in (plain, dat)])) * (0.9 if sign > 0 else 1 / 0.9)
    if math.isnan(goal):
        return math.nan, math.nan

    def reached(result: Result) -> float:
        updates, values = result.metric(name)
        there = sign * (values - goal) >= 0
        return float(updates[there][0] if there.any() else updates[-1])

    return reached(dat), reached(plain)


def _log_ratio(a: float, b: float) -> float:
    return math.log(a / b) if a > 0 and b > 0 else math.nan
