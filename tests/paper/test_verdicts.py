"""Verdicts on differences whose answer is known, alone and in a family, and how often they are false where there is no effect."""

import math
from dataclasses import replace

import numpy as np
import pytest

from datgan_fast.paper import null_simulation, statistics
from datgan_fast.paper.verdicts import CANNOT_TELL, DOES_NOT, HOLDS, NOT_MEASURED, Claim, Differences, decide, judge


def claim(differences, **more):
    d = np.asarray(differences, dtype=float)
    return Claim("C0", "made", "", "", "{:.3g}", Differences(d, tuple(range(d.shape[1]))), above=True, **more)


def noise(settings, seeds, shift, number=0):
    draw = np.random.default_rng([number, seeds])
    return draw.normal(shift, 1.0, (settings, seeds)) + draw.normal(0, 1.0, (1, seeds))


def test_a_family_costs_power():
    agree = claim(np.linspace(0.5, 1.5, 8)[None])  # p 2^-7
    nothing = [claim(noise(2, 8, 0.0, i)) for i in range(6)]
    assert decide([agree, *nothing[:5]])[0] == HOLDS  # six times 2^-7 is 0.047
    assert decide([agree, *nothing])[0] == CANNOT_TELL
    (v, *_) = judge({"a": [agree], "b": nothing})["a"]
    assert (v.verdict, v.corrected_p) == (CANNOT_TELL, pytest.approx(7 * 2**-7))
    assert v.detectable == "none: p of 8 seeds is 0.0078 at least, 0.0071 is needed"


def test_both_methods_must_agree():
    """What one of them tells and the other does not, either way."""
    of_settings = np.array([[1.0], [1.1], [-0.9], [-1.0]]) + 0.11 + 0.001 * np.arange(12)
    assert (
        statistics.permutation_p(of_settings) == 2**-11
    )  # the seeds agree about a mean that the settings do not share
    assert decide([claim(of_settings)]) == [CANNOT_TELL]
    assert decide([claim(of_settings[:2])]) == [HOLDS]
    one_behind = np.array([1.0, 0.9, 1.1, 0.8, 1.2, -0.4])[:, None] + 0.001 * np.arange(12)
    nothing = [claim(np.tile([1.0, -1.0], (1, 6))) for _ in range(5)]
    alone, in_a_family = decide([claim(one_behind)])[0], decide([claim(one_behind), *nothing])[0]
    assert (alone, in_a_family) == (HOLDS, CANNOT_TELL)  # the interval is corrected too
    few = noise(1, 5, 9.0)
    assert statistics.interval(few, 0.95)[0] > 0  # five seeds that agree are too few for the test
    assert decide([claim(few)]) == [CANNOT_TELL]


def test_what_could_be_seen_and_what_was():
    """A claim of two: with the other's p as it is, Holm allows 0.05 to the worse and half of it to the better."""
    one, other = noise(1, 12, 0.1), noise(1, 12, 3.0, 1)
    v = judge({"digits": [claim(one), claim(other), claim(np.full((1, 1), math.nan))]})["digits"]
    assert (v[0].verdict, v[1].verdict) == (CANNOT_TELL, HOLDS)
    assert v[0].interval == statistics.interval(one, 0.95)
    assert float(v[0].detectable) == pytest.approx(statistics.detectable(one, 0.05), rel=0.05)
    assert float(v[1].detectable) == pytest.approx(statistics.detectable(other, 0.025), rel=0.05)
    assert statistics.mean(one) < float(v[0].detectable) and statistics.mean(other) > float(v[1].detectable)
    assert (v[2].verdict, v[2].detectable) == (NOT_MEASURED, "")
    shifted = claim(one + math.log(2), logarithm=True, bound=math.log(2))
    of_ratio = judge({"digits": [shifted]})["digits"][0]
    assert of_ratio.detectable == f"a factor of {math.exp(statistics.detectable(one, 0.05)):.3g} from 2"
    assert "12 seeds" in of_ratio.certainty and "corrected p" in of_ratio.certainty


@pytest.mark.parametrize(
    ("means", "expected", "p"),
    [
        ((1, 1, 1), HOLDS, 2**-11),
        ((1, 1, -1), DOES_NOT, 3 * 2**-11),  # one setting is enough; it was picked from three
        ((-1, -1, -1), DOES_NOT, 3 * 2**-11),
        ((1, 1, 0), CANNOT_TELL, 3552 / 4096),  # flips of the last setting that go as far
    ],
)
def test_at_every_setting(means, expected, p):
    wobble = np.tile([-0.2, 0.19, 0.02], 4)
    of = claim(np.array(means)[:, None] + wobble, every_setting=True)
    assert decide([of]) == [expected]
    assert of.p == pytest.approx(p)
    (v,) = judge({"": [of]})[""]
    least = min(means) + wobble.mean()
    assert f"on average, in {sum(m >= 0 for m in means)} of 3 settings; at the one that decides {least:.3g} (" in v.ours
    assert v.interval == statistics.interval(min(means) + wobble[None], 1 - 0.05 / (3 if min(means) < 0 else 1))


def test_below_and_a_bound():
    assert decide([claim(noise(1, 12, -4.0)), claim(noise(1, 12, 4.0), bound=12.0)]) == [DOES_NOT] * 2
    below = Claim("C0", "made", "", "", "{}", Differences(noise(1, 12, -4.0), tuple(range(12))), above=False)
    assert decide([below]) == [HOLDS]
    assert judge({}) == {}


def test_without_an_effect_at_most_one_report_in_twenty_says_anything():
    """Differences that are large all the same: the simulation takes them away. The former rule says something nearly always."""
    claims = {
        name: [claim(noise(4, 10, 2.0, 10 * i + k), every_setting=k == 0) for k in range(5)]
        for i, name in enumerate(("digits", "ring"))
    }
    assert HOLDS in decide([c for of in claims.values() for c in of])
    found = null_simulation.simulate(claims, 200)
    assert found.rule <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    assert found.former_rule > 0.5
    assert "200 times" in str(found) and f"{found.former_rule:.1%}" in str(found)
    uncorrected = np.mean([c.p <= 0.05 for c in claims["digits"]])
    assert uncorrected > 0.5  # there was something to take away


def test_a_claim_of_more_than_some_effect_is_mirrored_about_it(monkeypatch):
    """As if DAT had just that effect: both verdicts would be false. About 0 neither could come out wrong."""
    d = noise(1, 12, 3.0)
    several = claim(d, bound=2.0)
    seen = []
    monkeypatch.setattr(null_simulation, "decide", lambda family: seen.append(family[0]) or decide(family))
    found = null_simulation.simulate({"digits": [several]}, 200)
    assert len({tuple(c.differences[0]) for c in seen}) > 50
    for c in seen:
        np.testing.assert_allclose(np.abs(c.differences - 2.0), np.abs(d - 2.0))
    assert 0 < found.rule <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_what_was_not_measured_is_no_part_of_the_simulation():
    found = null_simulation.simulate({"digits": [claim(noise(1, 12, 0.0)), claim(np.full((1, 2), math.nan))]}, 20)
    assert found.rule <= 0.2


def test_a_seed_is_swapped_in_all_claims_or_in_none(monkeypatch):
    """Also where figures have other seeds, or the same in another order."""
    d = noise(1, 8, 1.0)
    one = claim(d)
    other = replace(claim(d[:, ::-1]), of_pairs=Differences(d[:, ::-1], tuple(range(8))[::-1]))
    few = replace(claim(d[:, 5:]), of_pairs=Differences(d[:, 5:], (5, 6, 7)))
    swapped = []
    monkeypatch.setattr(null_simulation, "decide", lambda family: swapped.append(family) or decide(family))
    null_simulation.simulate({"digits": [one, other, few]}, 20)
    assert len({tuple(np.sign(a.differences[0])) for a, _, _ in swapped}) > 10
    for a, b, c in swapped:
        np.testing.assert_array_equal(a.differences, b.differences[:, ::-1])
        np.testing.assert_array_equal(a.differences[:, 5:], c.differences)
