"""What is run for the paper: which settings, variants and sizes, and which runs figures share."""

import itertools

from datgan_fast.paper.experiments import BOTH, DAT, EQUAL, FULL, MEDIUM, PAPER, PLAIN, QUICK, attacked, experiments
from made_runs import CPU, DIGITS, TINY


def test_the_papers_figures_are_run_in_pairs():
    every = experiments(DIGITS, PAPER, range(3), FULL, CPU)
    assert {e.figure for e in every} == {"3", "4", "5", "6", "7", "8", "alp"}  # figure 1's are some of figure 3's
    assert len({e.name for e in every}) == len(every)
    assert experiments(DIGITS, ["1"], range(3), FULL, CPU) == [e for e in every if attacked(e)]
    for e in every:
        assert e.config.steps * e.config.n_dis == FULL.updates
        assert e.config.seed == e.seed
    of_3 = [e.config for e in every if e.figure == "3"]
    varied = [{getattr(c, name) for c in of_3} for name in ("lr", "beta1", "n_dis", "dat")]
    assert [len(values) for values in varied] == [2, 2, 2, 2]
    assert {(c.lr, c.beta1, c.n_dis, c.dat) for c in of_3} == set(itertools.product(*varied))
    for figure, baseline, n_dis in (("5", "wgan-gp", 5), ("6", "wgan-gp", 1), ("7", "wgan-lp", 5), ("8", "wgan-lp", 1)):
        configs = [e.config for e in every if e.figure == figure]
        assert {(c.baseline, c.n_dis) for c in configs} == {(baseline, n_dis)}
        assert sorted(c.dat for c in configs) == [False] * 3 + [True] * 3


def test_steps_are_generator_steps():
    assert {e.config.steps for e in experiments(DIGITS, PAPER, range(1), QUICK, CPU, steps=7)} == {7}


def test_other_readings_of_equation_8_share_the_plain_runs():
    papers, read_otherwise = (experiments(DIGITS, names, range(1), QUICK, CPU) for names in (PAPER, ["eq8"]))
    penalised = [e for e in papers if e.config.baseline in ("wgan-gp", "wgan-lp", "wgan-alp")]
    both = [e for e in read_otherwise if e.variant in (PLAIN, DAT)]
    assert sorted(e.name for e in both) == sorted(e.name for e in penalised)
    weights = {e.variant: (e.config.lambda_clean, e.config.lambda_adv, e.config.penalty_on) for e in read_otherwise}
    assert (weights[DAT], weights[EQUAL]) == ((1.0, 1.0, "clean"), (0.5, 0.5, "clean"))
    assert weights[BOTH] == (1.0, 1.0, "both")


def test_the_medium_size():
    every = experiments(["mnist"], PAPER, range(1), MEDIUM, {**CPU, "image_size": None})
    assert {(e.config.image_size, e.config.width, e.config.steps * e.config.n_dis) for e in every} == {(32, 16, 3000)}
    assert len({e.setting for e in every if e.figure == "3"}) == 2
    assert {(e.config.baseline, e.config.n_dis) for e in every if e.figure != "3"} == {
        (name, 5) for name in ("wgan", "wgan-gp", "wgan-lp", "wgan-alp")
    }
    assert any(map(attacked, every))
    assert experiments(["mnist"], ["6", "8"], range(1), MEDIUM, CPU) == []
    (size,) = {e.config.image_size for e in experiments(["mnist"], ["5"], range(1), MEDIUM, {**CPU, "image_size": 16})}
    assert size == 16


def test_points_have_no_figure_1():
    assert not any(map(attacked, experiments(["ring"], PAPER, range(1), TINY, CPU)))
    assert experiments(["ring"], ["1"], range(1), TINY, CPU) == []


def test_toy_data_keeps_its_own_sizes():
    of_images, of_points = (
        next(e.config for e in experiments([name], ["3"], range(1), TINY, {**CPU, "image_size": 8}))
        for name in ("digits", "ring")
    )
    assert (of_images.image_size, of_images.width, of_images.batch_size, of_images.steps) == (8, 4, 8, 40)
    assert (of_points.image_size, of_points.width, of_points.batch_size, of_points.steps) == (0, 128, 256, 80)
