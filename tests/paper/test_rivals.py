"""DAT beside other regularisers: what is run, which weights are chosen from which seeds, what is compared at equal time."""

import math

import numpy as np
import pytest

from datgan_fast.paper import report, rivals, statistics
from datgan_fast.paper.experiments import PLAIN, QUICK, experiments
from datgan_fast.paper.results import Result
from made_runs import CPU, DIGITS, TINY


def test_every_regulariser_is_alone():
    for e in experiments(DIGITS, ["rivals-sweep"], range(1), QUICK, CPU):
        c, kind = e.config, rivals.kind_of(e.variant)
        penalised = c.baseline == "wgan-gp" and c.penalty_weight > 0
        at_work = {
            "DAT": c.dat,
            "R1": c.r1 > 0,
            "approximate R1": c.r1_approximate > 0,
            "gradient penalty": penalised,
            "spectral norm": c.spectral_norm,
        }
        assert [name for name, on in at_work.items() if on] == ([] if kind == PLAIN else [kind])
        assert c.n_dis == (1 if e.setting.startswith("dcgan") else 5)
        if e.setting.startswith("dcgan"):
            assert (c.objective, c.lr, c.beta1, c.beta2) == ("vanilla", 2e-4, 0.5, 0.999)
            assert c.batch_norm == (kind != "gradient penalty")
        else:
            assert (c.objective, c.lr, c.batch_norm) == ("wasserstein", 2e-3, False)


def test_what_is_compared_was_tried():
    for network, chosen in rivals.CHOSEN.items():
        assert set(chosen) <= set(rivals.tried(network))
        assert len({rivals.kind_of(label) for label in chosen}) == len(chosen) == 5


def raced(distance, seeds, figure="rivals", seconds=lambda variant: 1.0):
    """Runs whose distance is a function (variant, seed, part of training done); they take so many seconds an update."""
    found = []
    for e in experiments(DIGITS, [figure], seeds, TINY, CPU):
        if not e.setting.startswith("dcgan"):
            continue
        steps = [e.config.steps * (i + 1) // 4 for i in range(4)]
        took = seconds(e.variant) * e.config.steps * e.config.n_dis
        lines = [{"step": s, "wasserstein": 1.0, "input_grad_norm": 1.0, "seconds": took} for s in steps]
        metrics = [
            {
                "step": s,
                "metric": "classifier_frechet",
                "value": distance(e.variant, e.seed, s / e.config.steps),
                "protocol": "made",
            }
            for s in steps
        ]
        found.append(Result(e, lines, metrics))
    return found


def rows_of(tmp_path, found):
    report.write(found, tmp_path)
    text = (tmp_path / "rivals.md").read_text()
    return text, [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]


def test_seeds_that_chose_do_not_compare(tmp_path):
    def distance(variant, seed, done):
        return 1.0 if seed in rivals.CHOOSING and variant == PLAIN else 8.0 if seed in rivals.CHOOSING else 4.0

    text, rows = rows_of(tmp_path, raced(distance, range(6)))
    (plain,) = [row for row in rows if len(row) == 9 and row[0] == PLAIN]
    assert plain[1:4] == ["3", "1.00", "4 ± 0"]
    (r1,) = [row for row in rows if len(row) == 9 and row[0].startswith("R1")]
    assert r1[4] == "1.00"  # not 8 times, as of the others
    assert (tmp_path / "digits-rivals-dcgan.png").is_file()
    assert "mean over 3 seeds" in text


def test_ratios_and_corrected_p(tmp_path):
    seeds = range(3, 9)

    def distance(variant, seed, done):
        gain = {"spectral norm": 0.5, "R1, gamma 1": 1.0 + 0.2 * (-1) ** seed}.get(variant, 1.0)
        return gain * (1 + 0.1 * seed)

    _, rows = rows_of(tmp_path, raced(distance, seeds))
    of = {row[0]: row for row in rows if len(row) == 9}
    assert of["spectral norm"][4] == "0.50"
    labels = [label for label in of if label in rivals.CHOSEN["dcgan, n_dis 1"]]
    p = [1.0] * len(labels)  # by updates; at equal time, of updates that all take as long, there are as many
    p[labels.index("spectral norm")] = 2.0**-5
    signed = np.log([[1.0 + 0.2 * (-1) ** seed for seed in seeds]])
    p[labels.index("R1, gamma 1")] = statistics.permutation_p(signed)
    wanted = dict(zip(labels, statistics.holm(np.array(2 * p)), strict=False))
    for label in labels:
        assert float(of[label][5]) == pytest.approx(wanted[label], rel=0.06)
        assert float(of[label][8]) == pytest.approx(wanted[label], rel=0.06)


def test_at_equal_time_a_dear_update_counts(tmp_path):
    """Half of the updates of what takes twice as long; between evaluations in logarithms."""

    def distance(variant, seed, done):
        return math.exp(-done * (2.0 if variant == "spectral norm" else 1.0))

    found = raced(distance, range(3, 13), seconds=lambda variant: 2.0 if variant == "spectral norm" else 1.0)
    _, rows = rows_of(tmp_path, found)
    of = {row[0]: row for row in rows if len(row) == 9}
    assert of["spectral norm"][2] == "2.00"
    for label in ("spectral norm", PLAIN):
        assert float(of[label][6].split()[0]) == pytest.approx(math.exp(-1), rel=0.01)
    assert float(of["spectral norm"][4]) < 0.5 and float(of["spectral norm"][5]) <= 0.05
    assert (of["spectral norm"][7], of["spectral norm"][8]) == ("1.00", "1")


def test_the_smallest_weight_within_a_standard_error_is_chosen(tmp_path):
    """Of R1: the larger of two is the best by less than the seeds differ."""
    best = {"R1, gamma 0.1": 0.9, "R1, gamma 1": 0.52, "R1, gamma 10": 0.5}

    def distance(variant, seed, done):
        return best.get(variant, 1.0) * (1 + (0.2 * (seed - 1) if variant == "R1, gamma 10" else 0.0))

    _, rows = rows_of(tmp_path, raced(distance, range(3), figure="rivals-sweep"))
    chosen = {row[0]: row[-1] for row in rows if row and row[-1].startswith("chosen")}
    assert len(chosen) == 5
    assert chosen["R1, gamma 1"] == "chosen"
    assert chosen["approximate R1, gamma 0.01"] == "chosen, the smallest tried"
    assert chosen["spectral norm"] == "chosen"  # which has no weight
