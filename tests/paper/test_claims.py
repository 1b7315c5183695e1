"""The paper's claims, on records whose answer is known: which differences are looked at, and the report's table of them."""

import math
import re

import numpy as np
import pytest

from datgan_fast.paper import claims, report, report_pictures, results
from datgan_fast.paper.experiments import BOTH, DAT, EQUAL, FIGURES, PLAIN
from datgan_fast.paper.verdicts import CANNOT_TELL, DOES_NOT, HOLDS, NOT_MEASURED, judge
from made_runs import made, record

SEEDS = 9  # enough for the claims that one figure measures: 2^-8 times 6 of them


def line(found, name, text):
    verdicts = judge({"digits": claims.measure(found)})["digits"]
    words = text.split("|")  # a last one that is empty: the claim's text ends there
    (of_claim,) = [
        v
        for v in verdicts
        if v.claim.name.startswith(name)
        and (v.claim.text.endswith(words[0]) if words[-1] == "" else all(word in v.claim.text for word in words))
    ]
    return of_claim


def verdict(*arguments):
    return line(*arguments).verdict


@pytest.mark.parametrize(
    ("differences", "seeds", "better", "worse"),
    [
        ((0.9, 1.0, 1.1), SEEDS, HOLDS, DOES_NOT),
        ((-0.9, -1.0, -1.1), SEEDS, DOES_NOT, HOLDS),
        ((-1.0, 0.1, 1.0), SEEDS, CANNOT_TELL, CANNOT_TELL),
        ((0.9, 1.0, 1.1), 3, CANNOT_TELL, CANNOT_TELL),  # too few seeds, whatever they agree on
    ],
)
@pytest.mark.parametrize(("figure", "name", "text"), [("4", "C3", "WGAN has a better"), ("5", "C4", "worse score")])
def test_score_claims(figure, name, text, differences, seeds, better, worse):
    def dat(seed, done):
        return record(score=3 + seed + differences[seed % 3])

    found = made(figure, dat, lambda seed, done: record(score=3 + seed), seeds=seeds)
    assert verdict(found, name, text) == (better if figure == "4" else worse)


def test_a_distance_is_better_when_it_is_smaller():
    found = made("4", lambda seed, done: record(score=2 + seed), lambda seed, done: record(score=2.5 + seed), SEEDS)
    for entry in (entry for r in found for entry in r.metrics):
        entry["metric"] = "exact_wasserstein"
    score = line(found, "C3", "WGAN has a better score")
    assert score.verdict == HOLDS
    assert score.ours == (
        "exact_wasserstein better by 0.5 with DAT (0.5 to 0.5); interquartile mean 0.5; as claimed in 100% of 9 pairs"
    )


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
        return record(wasserstein=swing(seed, done) * (factors[seed % 3] if done > 0.5 else 10))

    found = made(figure, dat, lambda seed, done: record(wasserstein=swing(seed, done)), SEEDS)
    assert verdict(found, name, "smaller") == expected
    assert verdict(found, name, "steadier") == expected


@pytest.mark.parametrize(
    ("worse_settings", "noise", "expected"),
    [(0, 0.0, HOLDS), (0, 5.0, CANNOT_TELL), (1, 0.0, DOES_NOT), (8, 0.0, DOES_NOT), (8, 5.0, CANNOT_TELL)],
)
def test_better_at_every_setting(worse_settings, noise, expected):
    worse = {s.name for s in FIGURES["3"].settings[:worse_settings]}
    wobble = (-noise, 0.01, noise)  # over seeds, with mean about 0

    def everywhere(gain):
        return made("3", lambda s, d: record(score=5 + gain + wobble[s % 3]), lambda s, d: record(score=5), seeds=12)

    pairs_of_runs = zip(everywhere(1.0), everywhere(-1.0), strict=True)
    found = [down if up.experiment.setting in worse else up for up, down in pairs_of_runs]
    assert verdict(found, "C2", "every setting") == expected


@pytest.mark.parametrize(
    ("norms", "expected"), [((0.4, 0.5, 0.6), HOLDS), ((1.5, 1.6, 1.7), DOES_NOT), ((0.5, 1, 2), CANNOT_TELL)]
)
def test_gradient_norm_counts_where_the_discriminator_is_ahead(norms, expected):
    def ahead(done):
        return round(8 * done) % 2 == 0  # every other log line

    def dat(seed, done):
        return record(wasserstein=2.0 + ahead(done), norm=norms[seed % 3] if ahead(done) else 100.0)

    found = made("4", dat, lambda seed, done: record(wasserstein=2.0 + ahead(done)), SEEDS)
    assert verdict(found, "C6", "WGAN: DAT lowers") == expected


@pytest.mark.parametrize(("sign", "expected"), [(1, HOLDS), (-1, DOES_NOT)])
def test_penalty_that_grows_with_the_gradient(sign, expected):
    def dat(seed, done):
        return record(norm=done + 0.1 * seed, added=sign * (done + 0.1 * seed) ** 2)

    assert verdict(made("4", dat, lambda s, d: record(), SEEDS), "C6", "WGAN: what DAT adds") == expected
    assert verdict(made("3", dat, lambda s, d: record(), SEEDS), "C6", "DCGAN: what DAT adds") == expected
    still = made("4", lambda s, d: record(), lambda s, d: record(), SEEDS)
    assert verdict(still, "C6", "WGAN: what DAT adds") == NOT_MEASURED


@pytest.mark.parametrize(("start", "expected"), [(0.25, HOLDS), (1.0, DOES_NOT), (0.5, CANNOT_TELL)])
def test_faster_is_the_time_to_the_worse_runs_score(start, expected):
    def since(when):
        return lambda seed, done: record(score=5.0 if done >= when else 1.0)

    found = made("4", since(start), since(0.5), SEEDS)
    assert verdict(found, "C7", "WGAN: the generator comes to the same score in fewer updates") == expected


@pytest.mark.parametrize(
    ("factor", "expected"), [(5.0, HOLDS), (1.2, DOES_NOT), (2.0, CANNOT_TELL), (None, NOT_MEASURED)]
)
def test_attack_steps(factor, expected):
    """Medians against twice as many, by the chosen protocol; the others' are claims of their own."""

    def attacks(e, protocol):
        noise = 1 + 0.01 * (e.seed % 3 - 1) * (e.variant == DAT)
        return 3.0 * (factor * noise if e.variant == DAT and protocol == 0 else 1), 4.0

    found = made("1", lambda s, d: record(), lambda s, d: record(), SEEDS + 1, attacks=attacks if factor else None)
    for r in found:
        for a in r.attacks:
            a["fake_mean"] = 100.0 if r.experiment.variant == DAT else 1.0  # must not count
    several = "takes several times as many attack steps with DAT"
    assert verdict(found, "C1", f"generated images {several}|") == expected
    others = DOES_NOT if factor else NOT_MEASURED
    assert verdict(found, "C1", f"real images {several}|") == others
    assert verdict(found, "C1", f"generated images {several}, target mean|") == others
    assert verdict(found, "C1", f"generated images {several}, BatchNorm train|") == others


@pytest.mark.parametrize(("plain", "dat", "factor"), [(0.0, 3.0, "3"), (0.0, 0.0, "1"), (4.0, 0.5, "0.25")])
def test_a_median_below_a_step_counts_as_one(plain, dat, factor):
    """Such pairs are told apart too, and by no more than was measured."""
    found = made(
        "1", lambda s, d: record(), lambda s, d: record(), SEEDS,
        attacks=lambda e, protocol: (dat if e.variant == DAT else plain, 4.0),
    )  # fmt: skip
    of = line(found, "C1", "generated images takes several times as many attack steps with DAT|")
    assert of.ours.startswith(f"{factor} times with DAT")
    assert f"of {SEEDS} pairs" in of.ours


@pytest.mark.parametrize(("arrived", "expected"), [(0.5, HOLDS), (1.0, DOES_NOT), (0.75, CANNOT_TELL)])
def test_the_share_of_images_that_arrive(arrived, expected):
    def attacks(e, protocol):
        if protocol:
            return 3.0, 3.0, 0.0, 1.0
        return 3.0, 3.0, arrived if e.variant == DAT else 0.75, 1.0

    found = made("1", lambda s, d: record(), lambda s, d: record(), SEEDS, attacks=attacks)
    assert verdict(found, "C1", "Fewer images can be fooled") == expected


def test_other_readings_of_equation_8_are_judged_apart():
    """Each reading against the same plain runs, and n_dis 5 and 1 apart."""

    def scored(by_variant):
        found = made("eq8", lambda s, d: record(wasserstein=d), lambda s, d: record(wasserstein=d), 13)
        for r in found:
            for entry in r.metrics:
                entry["value"] += by_variant[r.experiment.variant] + 0.01 * (r.experiment.seed % 3)
        return found

    found = scored({PLAIN: 0.0, DAT: 0.0, EQUAL: 1.0, BOTH: -1.0})
    assert verdict(found, "Eq. 8", "worse score with DAT at equal total weight") == DOES_NOT
    assert verdict(found, "Eq. 8", "worse score with DAT with the penalty on perturbed images too") == HOLDS
    assert verdict(found, "C4", "worse score") == CANNOT_TELL
    assert "of 26 pairs" in line(found, "Eq. 8", "worse score with DAT at equal").ours  # n_dis 5 of two baselines
    for n_dis in (5, 1):
        assert "of 39 pairs" in line(found, "Eq. 8", f"n_dis {n_dis}, at equal|DAT lowers").ours


def test_other_readings_are_compared_with_1_and_1_too():
    """Each reading beside DAT with the same seed, whatever plain training did."""
    norms = {PLAIN: 1.0, DAT: 2.0, EQUAL: 1.0, BOTH: 4.0}
    found = made("eq8", lambda s, d: record(wasserstein=d), lambda s, d: record(wasserstein=d), 12)
    for r in found:
        lower = r.experiment.variant == EQUAL and r.experiment.config.n_dis == 1
        for entry in r.stats:
            entry["input_grad_norm"] *= (
                norms[r.experiment.variant] * (0.5 if lower else 1) * (1 + 0.01 * (r.experiment.seed % 3))
            )
    lower = "gradient norm when it is ahead is lower"
    of = {n: line(found, "Eq. 8", f"with n_dis {n}: |{lower} at equal total weight than with 1 + 1") for n in (5, 1)}
    assert [of[n].verdict for n in (5, 1)] == [HOLDS, HOLDS]
    assert of[5].ours.startswith("0.5 times that with 1 + 1") and of[1].ours.startswith("0.25 times that")
    assert verdict(found, "Eq. 8", f"with n_dis 5: |{lower} with the penalty on perturbed images too") == DOES_NOT


@pytest.mark.parametrize(
    ("baselines", "named", "of_scores"),
    [
        (("wgan-gp",), "WGAN-GP", "WGAN-GP with n_dis 5 has"),
        (("wgan-lp", "wgan-alp"), "WGAN-LP, -ALP", "WGAN-LP with n_dis 5 has"),
        (("wgan-gp", "wgan-lp"), "WGAN-GP, -LP", "WGAN-GP and -LP with n_dis 5 have"),
        (("wgan-gp", "wgan-lp", "wgan-alp"), "WGAN-GP, -LP, -ALP", "WGAN-GP and -LP with n_dis 5 have"),
        ((), "WGAN-GP, -LP, -ALP", "WGAN-GP and -LP with n_dis 5 have"),  # of those that were not measured
    ],
)
def test_only_critics_that_were_run_are_named(baselines, named, of_scores):
    found = made("eq8", lambda s, d: record(), lambda s, d: record(), 2)
    texts = {c.text for c in claims.measure([r for r in found if r.experiment.config.baseline in baselines])}
    assert f"{named} with n_dis 5: DAT lowers the discriminator's gradient norm when it is ahead" in texts
    assert (
        f"{named} with n_dis 1: D's gradient norm when it is ahead is lower at equal total weight than with 1 + 1"
        in texts
    )
    assert f"{of_scores} a worse score with DAT at equal total weight" in texts
    assert {t.split(" with n_dis")[0] for t in texts if "-" in t.split(" with n_dis")[0]} <= {
        *(named, of_scores.split(" with")[0], "WGAN-GP", "WGAN-LP")
    }


def test_swapping_plain_and_dat_changes_the_sign_and_nothing_else():
    """What the permutation test takes for granted; the correlation is of one run."""

    def run(kind):
        def wild(seed, done):
            x = np.random.default_rng([kind, seed, round(8 * done)]).uniform(0.5, 2.0, 4)
            return record(score=x[0] * (1 + done), wasserstein=x[1], norm=x[2], added=x[3])

        return wild

    for figure in ("3", "4", "5", "6", "7", "8"):
        one, other = (claims.measure(made(figure, run(a), run(1 - a))) for a in (0, 1))
        for c, swapped in zip(one, other, strict=True):
            if "grows with the squared" not in c.text:  # of DAT's run alone
                np.testing.assert_allclose(c.differences, -swapped.differences, rtol=1e-12, equal_nan=True)


def test_differences_keep_their_settings_and_seeds():
    found = made("alp", lambda s, d: record(score=10 * s), lambda s, d: record(score=s), 3)
    found = [r for r in found if (r.experiment.setting, r.experiment.seed) != ("wgan-alp, n_dis 1", 1)]
    of = claims._score("C3", "better", "", results.pairs(found))
    np.testing.assert_array_equal(of.differences, [[0, 9, 18], [0, math.nan, 18]])
    assert of.of_pairs.seeds == (0, 1, 2)


def table(folder, page="report"):
    text = (folder / f"{page}.md").read_text()
    return text, [[c.strip() for c in entry.split("|")[1:-1]] for entry in text.splitlines()]


def test_data_sets_are_judged_apart_and_corrected_together(tmp_path):
    for_it = made("4", lambda s, d: record(score=3 + d), lambda s, d: record(score=2), 12)
    against_it = made("4", lambda s, d: record(score=1 + d), lambda s, d: record(score=5), 12, dataset="ring")
    report.write([*for_it, *against_it], tmp_path)
    text, rows = table(tmp_path)
    claim = "WGAN has a better score with DAT"
    (at,) = [i for i, row in enumerate(rows) if row[1:2] == [claim]]
    assert (*rows[at][:4], rows[at][7]) == ("C3", claim, "digits", "12", HOLDS)
    assert (*rows[at + 1][:4], rows[at + 1][7]) == ("", "", "ring", "12", DOES_NOT)
    # Three claims on each are measured: an estimate that stands still has no unrest, and D is never ahead of its median.
    assert [float(rows[i][5]) for i in (at, at + 1)] == [pytest.approx(6 * 2**-11, rel=0.02)] * 2
    assert "for the 6 verdicts" in text
    for picture in re.findall(r"\]\((claim-\w+\.png)\)", text):
        assert (tmp_path / picture).is_file()
    assert "[details](details.md), [digits](digits.md), [ring](ring.md)" in text
    for name in ("digits", "ring"):
        assert f"({name}-figure-4-1.png)" in (tmp_path / f"{name}.md").read_text()
        assert f'<a href="{name}.html">' in (tmp_path / "report.html").read_text()


def test_no_verdict_without_its_seeds_p_and_what_could_be_seen(tmp_path):
    report.write(made("4", lambda s, d: record(score=3 + d), lambda s, d: record(score=2), 3), tmp_path)
    least = "none: p of 3 seeds is 0.25 at least, 0.017 is needed"  # 0.05 of three claims
    for page, seen in (("report", "none"), ("details", least)):
        text, rows = table(tmp_path, page)
        of_claims = [row for row in rows if len(row) == 8 and row[2] == "digits"]
        assert len(of_claims) == 3
        for row in of_claims:
            assert row[3] == "3" and float(row[5]) >= 0.75 and row[7] == CANNOT_TELL
            assert row[4] and row[6] == seen
    assert "as claimed in 100% of 3 pairs" in text and "interquartile mean 1" in text
    text, _ = table(tmp_path)
    assert NOT_MEASURED not in text
    missing = text.splitlines()[-1].removeprefix("Not measured: ").rstrip(".").split("; ")
    assert missing[:2] == ["C1 (digits)", "C2 (digits)"]
    assert "C3, WGAN has a steadier Wasserstein estimate with DAT (digits)" in missing
    assert "C7, DCGAN: the generator comes to the same score in fewer updates with DAT (digits)" in missing
    assert {"Eq. 8, equal weight (digits)", "Eq. 8, penalty on both (digits)"} <= set(missing)
    assert not any("WGAN has a better score" in name for name in missing)


def test_no_band_and_no_size_where_there_is_none(tmp_path):
    report.write(made("4", lambda s, d: record(), lambda s, d: record(), 1, dataset="ring"), tmp_path)
    text = (tmp_path / "ring.md").read_text()
    assert "band" not in text and "image_size" not in text
    report.write(made("4", lambda s, d: record(), lambda s, d: record(), 2), tmp_path)
    text = (tmp_path / "digits.md").read_text()
    assert "band of one standard deviation" in text and "image_size 16;" in text


def test_figure_1s_runs_are_figure_3s():
    found = made("3", *[lambda seed, done: record(wasserstein=done)] * 2, attacks=lambda e, p: (3.0, 3.0))
    assert sum(bool(r.attacks) for r in found) == 6  # of one of eight settings
    assert "of 24 pairs" in line(found, "C6", "DCGAN: DAT lowers").ours  # eight settings, three seeds


def test_discriminators_of_different_kinds_are_judged_apart():
    def ahead(norm):
        return lambda seed, done: record(wasserstein=done, norm=norm + 0.01 * seed * done)

    falls = [r for figure in ("3", "8") for r in made(figure, ahead(1), ahead(2), SEEDS + 1)]
    rises = [r for figure in ("5", "7") for r in made(figure, ahead(2), ahead(1), SEEDS + 1)]
    kinds = ("DCGAN", "WGAN", "WGAN-GP, -LP with n_dis 5", "WGAN-LP with n_dis 1")
    expected = dict(zip(kinds, (HOLDS, NOT_MEASURED, DOES_NOT, HOLDS), strict=True))
    assert {kind: verdict(falls + rises, "C6", f"{kind}: DAT lowers") for kind in expected} == expected
    assert "of 20 pairs" in line(falls + rises, "C6", "n_dis 5: DAT lowers").ours


def test_unfinished_runs_are_left_out():
    found = made("4", lambda s, d: record(score=9), lambda s, d: record())
    del found[-1].stats[-1]
    assert len(results.pairs(found)) == 2
    assert line(found, "C3", "score").claim.seeds == 2


@pytest.mark.parametrize("factor", [1.5, 30.0])
def test_ratios_stand_on_logarithmic_axes(tmp_path, monkeypatch, factor):
    """Whatever they span, and with the side that the claim says shaded."""
    figures = []
    monkeypatch.setattr(report_pictures, "save_figure", lambda figure, path: figures.append(figure))
    spread = (1 / factor, 1.0, factor)
    found = made("4", lambda s, d: record(norm=spread[s % 3], wasserstein=d), lambda s, d: record(wasserstein=d), SEEDS)
    verdicts = judge({"digits": claims.measure(found)})["digits"]
    report_pictures.draw_verdicts([("digits", v) for v in verdicts if v.verdict != NOT_MEASURED], tmp_path / "x.png")
    (figure,) = figures
    (axis,) = [a for a in figure.axes if "gradient norm" in a.get_title(loc="left")]
    assert axis.get_xscale() == "log"
    low, high = axis.get_xlim()
    assert 0 < low <= 1 / factor and factor <= high < 3 * factor
    assert sum(low <= tick <= high for tick in axis.get_xticks()) >= 2


def test_curves_of_runs_that_lack_a_line(tmp_path):
    """They are drawn where all have something."""
    found = made("4", lambda s, d: record(), lambda s, d: record(), 3)
    del found[1].stats[3]
    del found[1].metrics[2]
    report.write(found, tmp_path)
    assert (tmp_path / "digits-figure-4-1.png").is_file()
