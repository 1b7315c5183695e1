"""The statements of theory, judged from records whose answer is known."""

import math

import numpy as np
import pytest

from datgan_fast.paper.experiments import DAT, PLAIN
from datgan_fast.paper.theory_records import together, values
from datgan_fast.paper.theory_statements import DIFFER, NOT_MEASURABLE, OTHERWISE, SO, statements


def line(step, **changes):
    """What a run records where the theory is exact: at each step another weight and slope."""
    weight, square = 0.5 + 0.1 * step, 4.0 / step
    record = {"step": step, "share_ahead_real": 0.9, "share_ahead_fake": 0.7}
    for sign, direction in (("ahead", 1), ("behind", -1)):
        added = direction * weight * square
        record |= {f"{term}_{sign}": added for term in ("exact", "first_order", "penalty")}
        record |= {f"square_{sign}": square, f"correlation_{sign}": 0.95}
    slopes = ("gradient_norm", "lipschitz_local", "lipschitz_bound", "generator_gradient")
    return {**record, **dict.fromkeys(slopes, 2.0), "generator_movement": 2.0 + step % 2, **changes}


def run(**changes):
    """Each change a number or a function of the step."""
    return [line(s, **{k: v(s) if callable(v) else v for k, v in changes.items()}) for s in range(1, 9)]


DAT_LOWERS = {
    **dict.fromkeys(("gradient_norm", "lipschitz_local", "lipschitz_bound", "generator_gradient"), 1.0),
    "generator_movement": lambda step: 1.0 + 0.1 * (step % 2),
}


def judged(dat, plain=None):
    rows = statements({DAT: dat, PLAIN: [run() for _ in dat] if plain is None else plain})
    assert len(rows) == 12
    return {row.statement: row for row in rows}


def named(rows, text):
    return next(row for statement, row in rows.items() if text in statement)


def test_where_the_theory_is_exact_all_is_so():
    rows = judged([run(**DAT_LOWERS)] * 3)
    others = [row.judged for statement, row in rows.items() if "in the limit" not in statement]
    assert others == [SO] * 11
    assert named(rows, "in the limit").judged.startswith(NOT_MEASURABLE)
    assert "100%" in named(rows, "first-order").outcome and "3 of 3 seeds" in named(rows, "first-order").outcome
    assert named(rows, "slope at images").outcome.startswith("0.5 times plain training's (from 0.5 to 0.5)")
    assert named(rows, "Where s >= 0").outcome.endswith("correlate by 0.95 (median)")


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("first-order", {"first_order_ahead": lambda s: 3 * (0.5 + 0.1 * s) * 4 / s}),
        ("first-order", {"first_order_behind": 10.0}),
        ("Where s >= 0", {"penalty_ahead": lambda s: 2 * (0.5 + 0.1 * s) * 4 / s}),
        ("Where s < 0", {"exact_behind": 0.1}),
        ("adaptive", {"exact_ahead": lambda s: 4.0 / s * (2 - 0.1 * s)}),
        ("usual case", {"share_ahead_real": 0.2}),
        ("slope at images", {"gradient_norm": 2.1}),
        ("slope near images", {"lipschitz_local": 2.1}),
        ("bound of its", {"lipschitz_bound": 2.1}),
        ("gradient smaller", {"generator_gradient": 2.1}),
        ("updates smaller", {"generator_movement": lambda s: 3.0 + s % 2}),
        ("steadier", {"generator_movement": lambda s: 1.0 + 4.0 * (s % 2)}),
    ],
)
def test_what_is_otherwise(text, changes):
    rows = judged([run(**{**DAT_LOWERS, **changes})] * 2)
    assert named(rows, text).judged == OTHERWISE
    assert "so in 0 of 2 seeds" in named(rows, text).outcome


@pytest.mark.parametrize(("part", "judged_as"), [(0.79, OTHERWISE), (0.81, SO)])
def test_how_much_must_be_explained(part, judged_as):
    row = named(
        judged([run(first_order_ahead=part, first_order_behind=-part, exact_ahead=1.0, exact_behind=-1.0)]),
        "first-order",
    )
    assert row.judged == judged_as and row.outcome == f"{part:.0%} of what DAT adds is explained; one seed"


def test_the_share_is_that_of_both_sides_from_the_least_seed_to_the_most():
    dat = [run(share_ahead_real=0.9, share_ahead_fake=0.2), run(share_ahead_real=0.7, share_ahead_fake=0.6)]
    expected = "60% of the images (from 55% to 65%); so in 2 of 2 seeds"
    assert named(judged(dat), "usual case").outcome == expected


def test_a_weight_that_hardly_varies_follows_nothing():
    row = named(judged([run(penalty_ahead=lambda s: (2.0 + 0.01 * s) * 4 / s)]), "adaptive")
    assert row.judged.startswith(NOT_MEASURABLE)


def test_four_of_five_seeds_are_enough_and_three_are_not():
    good, bad = run(**DAT_LOWERS), run(**{**DAT_LOWERS, "gradient_norm": 2.5})
    assert named(judged([good] * 4 + [bad]), "slope at images").judged == SO
    assert named(judged([good] * 2 + [bad] * 3), "slope at images").judged == DIFFER
    assert named(judged([good] + [bad] * 4), "slope at images").judged == OTHERWISE
    three = named(judged([good] * 3 + [bad] * 2), "slope at images")
    assert three.judged == DIFFER and "so in 3 of 5 seeds" in three.outcome
    assert three.outcome.startswith(f"{math.exp((3 * math.log(0.5) + 2 * math.log(1.25)) / 5):.3g} times")


def test_seeds_are_paired_and_only_the_end_counts():
    plain = [run(gradient_norm=1.0), run(gradient_norm=100.0)]
    dat = [run(gradient_norm=lambda s: 50.0 if s <= 4 else 0.5), run(gradient_norm=50.0)]
    assert "(from 0.5 to 0.5); so in 2 of 2" in named(judged(dat, plain), "slope at images").outcome


def test_steps_that_one_of_a_pair_lacks_are_left_out():
    dat = [run(gradient_norm=lambda s: 1.0 if s <= 4 else 9.0)]
    assert named(judged(dat, [run()[:4]]), "slope at images").outcome == "0.5 times plain training's; one seed"


@pytest.mark.parametrize(
    ("text", "changes", "why"),
    [
        ("Where s < 0", {"square_behind": 0.0, "exact_behind": 0.0}, "no image had s < 0"),
        ("adaptive", {"penalty_ahead": lambda s: 2.0 * 4 / s}, "varies by less than 10%"),
        ("Where s >= 0", {"penalty_ahead": None}, "no such terms"),
        ("first-order", {"exact_ahead": None, "exact_behind": None}, "no such terms"),
        ("bound of its", {"lipschitz_bound": None}, "no pair of runs"),
    ],
)
def test_what_cannot_be_measured_and_why(text, changes, why):
    row = named(judged([run(**changes)] * 2), text)
    assert row.judged.startswith(NOT_MEASURABLE) and why in row.judged and row.outcome == "no number"


def test_few_seeds_of_many_say_nothing_of_the_others():
    without = run(square_behind=0.0, exact_behind=0.0)
    row = named(judged([without] * 3 + [run()] * 2), "Where s < 0")
    assert row.judged == f"{NOT_MEASURABLE}: only 2 of 5 seeds have a number"
    assert named(judged([without] * 3 + [run()] * 3), "Where s < 0").judged in (SO, OTHERWISE)
    assert named(judged([run()] * 2), "Where s < 0").judged in (SO, OTHERWISE)


@pytest.mark.parametrize("runs", [{}, {PLAIN: [run()]}, {DAT: [run()]}])
def test_variants_that_are_missing(runs):
    rows = statements(runs)
    assert len(rows) == 12
    so = [row.statement for row in rows if row.judged == SO]
    assert len(so) == (5 if DAT in runs else 0)


def test_other_seeds_are_no_pairs():
    with pytest.raises(ValueError, match="same seeds"):
        statements({DAT: [run()], PLAIN: [run(), run()]})


def test_series():
    assert np.array_equal(values([{"a": None}, {"a": 2}, {}], "a"), [np.nan, 2, np.nan], equal_nan=True)
    steps, rows = together([[{"step": 2, "a": 1}, {"step": 4, "a": 2}], [{"step": 4, "a": 3}]], "a")
    assert steps.tolist() == [4] and rows.tolist() == [[2], [3]]
    assert together([], "a")[1].shape == (0, 0)
