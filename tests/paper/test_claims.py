"""Verdicts on the paper's claims, on records whose answer is known."""

import itertools
import math

import pytest

from datgan_fast.paper import claims, report, results
from datgan_fast.paper.claims import CANNOT_TELL, DOES_NOT, HOLDS
from datgan_fast.paper.experiments import DAT, FIGURES
from made_runs import made, record


def verdict(found, name, text, steps=None):
    (line,) = [v for v in claims.judge(found, steps or {}) if v.name == name and text in v.claim]
    return line.verdict


def test_interval_is_students():
    # By hand: mean 2, standard deviation 1, t(0.975, 2) = 4.302653
    i = claims.interval([1.0, 2.0, 3.0, math.nan])
    assert (i.n, i.mean) == (3, 2.0)
    assert i.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert 2 - i.low == pytest.approx(i.high - 2)
    assert claims.interval([]).verdict(above=True) == CANNOT_TELL


@pytest.mark.parametrize(
    ("differences", "better", "worse"),
    [
        ((0.9, 1.0, 1.1), HOLDS, DOES_NOT),
        ((-0.9, -1.0, -1.1), DOES_NOT, HOLDS),
        ((-1.0, 0.1, 1.0), CANNOT_TELL, CANNOT_TELL),
        ((1.0, 1.1), CANNOT_TELL, CANNOT_TELL),  # two seeds are too few
    ],
)
@pytest.mark.parametrize(("figure", "name", "text"), [("4", "C3", "WGAN has a better"), ("5", "C4", "worse score")])
def test_score_claims(figure, name, text, differences, better, worse):
    def dat(seed, done):
        return record(score=3 + seed + differences[seed])

    found = made(figure, dat, lambda seed, done: record(score=3 + seed), seeds=len(differences))
    assert verdict(found, name, text) == (better if figure == "4" else worse)


def test_a_distance_is_better_when_it_is_smaller():
    found = made("4", lambda seed, done: record(score=2 + seed), lambda seed, done: record(score=2.5 + seed))
    for line in (line for r in found for line in r.metrics):
        line["metric"] = "exact_wasserstein"
    (score,) = [v for v in claims.judge(found, {}) if "WGAN has a better score" in v.claim]
    assert (score.verdict, score.ours) == (HOLDS, "exact_wasserstein better by 0.5 with DAT (0.5 to 0.5), 3 pairs")


@pytest.mark.parametrize(
    ("factors", "expected"),
    [((0.5, 0.5, 0.6), HOLDS), ((2.0, 2.0, 1.9), DOES_NOT), ((0.5, 1.0, 2.0), CANNOT_TELL)],
)
@pytest.mark.parametrize(("figure", "name", "where"), [("4", "C3", "WGAN"), ("6", "C4", "GP"), ("8", "C5", "LP")])
def test_smaller_and_steadier_wasserstein_estimate(figure, name, where, factors, expected):
    """An estimate that swings about its mean, both scaled by the factor; what it does at first must not count."""

    def swing(seed, done):
        return 5 + seed if done <= 0.5 else 1 + (-1) ** round(8 * done) * 0.3

    def dat(seed, done):
        return record(wasserstein=swing(seed, done) * (factors[seed] if done > 0.5 else 10))

    found = made(figure, dat, lambda seed, done: record(wasserstein=swing(seed, done)))
    assert verdict(found, name, "smaller") == expected
    assert verdict(found, name, "steadier") == expected


@pytest.mark.parametrize(
    ("worse_settings", "noise", "expected"),
    [(0, 0.0, HOLDS), (0, 5.0, CANNOT_TELL), (1, 0.0, DOES_NOT), (8, 0.0, DOES_NOT), (8, 5.0, CANNOT_TELL)],
)
def test_better_at_every_setting(worse_settings, noise, expected):
    worse = {s.name for s in FIGURES["3"].settings[:worse_settings]}
    wobble = itertools.cycle((-noise, 0.01, noise))  # over seeds, with mean about 0
    found = []
    for setting in FIGURES["3"].settings:
        gain = -1.0 if setting.name in worse else 1.0
        shifts = [next(wobble) for _ in range(3)]
        both = made("3", lambda s, d, g=gain, w=shifts: record(score=5 + g + w[s]), lambda s, d: record(score=5))
        found += [r for r in both if r.experiment.setting == setting.name]
    assert verdict(found, "C2", "every setting") == expected


@pytest.mark.parametrize(
    ("norms", "expected"), [((0.4, 0.5, 0.6), HOLDS), ((1.5, 1.6, 1.7), DOES_NOT), ((0.5, 1, 2), CANNOT_TELL)]
)
def test_gradient_norm_counts_where_the_discriminator_is_ahead(norms, expected):
    def ahead(done):
        return round(8 * done) % 2 == 0  # every other log line

    def dat(seed, done):
        return record(wasserstein=2.0 + ahead(done), norm=norms[seed] if ahead(done) else 100.0)

    found = made("4", dat, lambda seed, done: record(wasserstein=2.0 + ahead(done)))
    assert verdict(found, "C6", "WGAN: DAT lowers") == expected


@pytest.mark.parametrize(("sign", "expected"), [(1, HOLDS), (-1, DOES_NOT)])
def test_penalty_that_grows_with_the_gradient(sign, expected):
    def dat(seed, done):
        return record(norm=done + 0.1 * seed, added=sign * (done + 0.1 * seed) ** 2)

    assert verdict(made("4", dat, lambda s, d: record()), "C6", "grows") == expected
    assert verdict(made("4", lambda s, d: record(), lambda s, d: record()), "C6", "grows") == CANNOT_TELL


@pytest.mark.parametrize(("start", "expected"), [(0.25, HOLDS), (1.0, DOES_NOT), (0.5, CANNOT_TELL)])
def test_faster_is_the_time_to_the_plain_runs_score(start, expected):
    def since(when):
        return lambda seed, done: record(score=5.0 if done >= when else 1.0)

    assert verdict(made("4", since(start), since(0.5)), "C7", "WGAN: the generator converges faster") == expected


@pytest.mark.parametrize(
    ("factor", "expected"), [(5.0, HOLDS), (1.2, DOES_NOT), (2.0, CANNOT_TELL), (None, CANNOT_TELL)]
)
def test_attack_steps(factor, expected):
    found = made("1", lambda s, d: record(), lambda s, d: record())
    steps = {}
    for r in found if factor else []:
        noise = 1 + 0.01 * (r.experiment.seed - 1) * (r.experiment.variant == DAT)
        steps[r.experiment.name] = {"fake": 3.0 * (factor * noise if r.experiment.variant == DAT else 1), "real": 4.0}
    assert verdict(found, "C1", "generated", steps) == expected
    assert verdict(found, "C1", "real", steps) == (DOES_NOT if factor else CANNOT_TELL)


def test_data_sets_are_judged_apart(tmp_path):
    for_it = made("4", lambda s, d: record(score=3 + d), lambda s, d: record(score=2))
    against_it = made("4", lambda s, d: record(score=1 + d), lambda s, d: record(score=5), dataset="ring")
    report.write([*for_it, *against_it], {}, tmp_path)
    text = (tmp_path / "report.md").read_text()
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    (at,) = [i for i, row in enumerate(rows) if row[1:2] == ["WGAN has a better score with DAT"]]
    assert (rows[at][3], rows[at][5]) == ("digits", HOLDS)
    assert (rows[at + 1][:4], rows[at + 1][5]) == (["", "", "", "ring"], DOES_NOT)
    assert text.index("## On digits") < text.index("digits-figure-4-1.png") < text.index("## On ring")
    assert text.index("## On ring") < text.index("ring-figure-4-1.png")


def test_figure_1s_runs_are_not_counted_twice():
    found = [r for figure in ("1", "3") for r in made(figure, *[lambda seed, done: record(wasserstein=done)] * 2)]
    (line,) = [v for v in claims.judge(found, {}) if "DCGAN: DAT lowers" in v.claim]
    assert f"{8 * 3} pairs" in line.ours


def test_discriminators_of_different_kinds_are_judged_apart():
    def ahead(norm):
        return lambda seed, done: record(wasserstein=done, norm=norm + 0.01 * seed * done)

    falls = made("3", ahead(1), ahead(2))
    rises = [r for figure in ("5", "8", "alp") for r in made(figure, ahead(2), ahead(1))]
    verdicts = {v.claim.partition(":")[0]: v for v in claims.judge([*falls, *rises], {}) if "lowers" in v.claim}
    assert {kind: v.verdict for kind, v in verdicts.items()} == {
        "DCGAN": HOLDS, "WGAN": CANNOT_TELL, "WGAN-GP, -LP, -ALP": DOES_NOT
    }  # fmt: skip
    assert verdicts["WGAN-GP, -LP, -ALP"].ours.endswith("12 pairs")


def test_unfinished_runs_are_left_out():
    found = made("4", lambda s, d: record(score=9), lambda s, d: record())
    del found[-1].stats[-1]
    assert len(results.pairs(found)) == 2
    assert verdict(found, "C3", "score") == CANNOT_TELL
