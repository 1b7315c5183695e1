"""The theory's pictures: what stands on their axes, read from matplotlib before it is saved."""

import numpy as np
import pytest
from PIL import Image

from datgan_fast.paper import theory_pictures
from datgan_fast.paper.experiments import DAT, PLAIN
from datgan_fast.paper.report_pictures import COLOURS
from datgan_fast.paper.theory_pictures import draw_movement, draw_slopes, draw_terms

TERMS = ("exact", "first_order", "penalty")
SLOPES = ("gradient_norm", "lipschitz_local", "lipschitz_bound")


def run(times=1.0, **changes):
    names = [*(f"{t}_{sign}" for t in TERMS for sign in ("ahead", "behind")), *SLOPES]
    names += ["generator_movement", "generator_gradient"]
    squares = {"square_ahead": 1.0, "square_behind": 1.0}
    return [{"step": s, **squares, **{name: times * s for name in names}, **changes} for s in (10, 20, 40)]


@pytest.fixture
def axes(monkeypatch):
    """Of the figure that was saved last."""
    found = []
    save = theory_pictures.save_figure

    def saved(figure, path):
        found[:] = figure.axes
        save(figure, path)

    monkeypatch.setattr(theory_pictures, "save_figure", saved)
    return found


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines()}


def test_the_terms_of_both_signs(axes, tmp_path):
    runs = {DAT: [run(1.0, exact_behind=-5.0), run(3.0, exact_behind=-5.0)], PLAIN: [run(9.0)] * 2}
    assert draw_terms(runs, 5, tmp_path / "terms.png")
    ahead, behind = axes
    assert list(lines(ahead)) == ["what DAT adds", "first order in eps", "zero-centred penalty"]
    for line in lines(ahead).values():
        assert list(line.get_xdata()) == [50, 100, 200] and list(line.get_ydata()) == [20, 40, 80]  # the seeds' mean
    assert list(lines(behind)["what DAT adds"].get_ydata()) == [-5] * 3
    assert "s >= 0" in ahead.get_title() and "s < 0" in behind.get_title()
    assert len(ahead.collections) == 3  # bands
    assert ahead.get_yscale() == "linear"
    for axis in axes:
        assert axis.get_xlabel() == "discriminator updates" and "loss" in axis.get_ylabel()
    with Image.open(tmp_path / "terms.png") as picture:
        assert picture.mode == "P" and picture.width > 500


def test_one_seed_has_no_band_and_small_terms_are_seen(axes, tmp_path):
    wild = run()
    wild[0]["exact_ahead"] = 1e5
    assert draw_terms({DAT: [wild]}, 1, tmp_path / "terms.png")
    assert not axes[0].collections and axes[0].get_yscale() == "symlog" and axes[1].get_yscale() == "linear"


def test_where_no_image_had_a_sign_it_is_said(axes, tmp_path):
    assert draw_terms({DAT: [run(square_ahead=0.0)]}, 1, tmp_path / "terms.png")
    assert not axes[0].get_lines() and "no such image" in axes[0].texts[0].get_text()
    assert len(axes[1].get_lines()) == 3 and not axes[1].texts
    assert axes[1].get_legend() and not axes[0].get_legend()


def test_without_dat_there_are_no_terms(tmp_path):
    assert not draw_terms({PLAIN: [run()]}, 1, tmp_path / "terms.png")
    empty = dict.fromkeys([f"{t}_{sign}" for t in TERMS for sign in ("ahead", "behind")])
    assert not draw_terms({DAT: [run(**empty)]}, 1, tmp_path / "terms.png")
    assert not (tmp_path / "terms.png").exists()


@pytest.mark.parametrize(("points", "unit"), [(False, "logits per unit of pixel value"), (True, "per unit of length")])
def test_slopes_with_and_without_dat(axes, tmp_path, points, unit):
    runs = {PLAIN: [run(1.0), run(4.0)], DAT: [run(2.0), run(2.0)]}
    assert draw_slopes(runs, 1, points, tmp_path / "slopes.png")
    assert len(axes) == 3
    for axis in axes:
        assert axis.get_yscale() == "log" and unit in axis.get_ylabel()
        drawn = lines(axis)
        assert {label: line.get_color() for label, line in drawn.items()} == COLOURS
        for variant in (PLAIN, DAT):  # the geometric mean of 1 and 4 is 2
            np.testing.assert_allclose(drawn[variant].get_ydata(), [20, 40, 80])


def test_a_quantity_that_nobody_knows_has_no_panel(axes, tmp_path):
    assert draw_slopes({PLAIN: [run(lipschitz_bound=None)]}, 1, False, tmp_path / "slopes.png")
    assert len(axes) == 2 and not any("bound" in axis.get_ylabel() for axis in axes)
    assert not draw_slopes({PLAIN: [run(**dict.fromkeys(SLOPES))]}, 1, False, tmp_path / "none.png")


def test_movement_with_and_without_dat(axes, tmp_path):
    assert draw_movement({PLAIN: [run()], DAT: [run(0.5)]}, 2, tmp_path / "movement.png")
    assert [axis.get_yscale() for axis in axes] == ["log"] * 2
    assert "weights' change" in axes[0].get_ylabel() and "loss per unit of weight" in axes[1].get_ylabel()
    assert list(lines(axes[0])[DAT].get_xdata()) == [20, 40, 80]
    np.testing.assert_allclose(lines(axes[0])[PLAIN].get_ydata(), [10, 20, 40])
    np.testing.assert_allclose(lines(axes[0])[DAT].get_ydata(), [5, 10, 20])
    assert not axes[0].collections


def test_numbers_that_were_not_finite_are_left_out(axes, tmp_path):
    broken = run()
    broken[1]["generator_movement"] = None
    assert draw_movement({DAT: [broken, run()]}, 1, tmp_path / "movement.png")
    assert list(lines(axes[0])[DAT].get_xdata()) == [10, 40]
