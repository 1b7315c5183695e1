"""Reproducing the paper: verdicts on records whose answer is known, what is run and when, and the report."""

import dataclasses
import itertools
import json
import math
import re
import signal

import pytest

from datgan_fast import claims, report, reproduce, results, sweep
from datgan_fast.claims import CANNOT_TELL, DOES_NOT, HOLDS
from datgan_fast.config import ConfigError
from datgan_fast.experiments import DAT, FIGURES, FULL, PAPER, PLAIN, QUICK, Size, experiments
from datgan_fast.results import Result

TINY = Size("tiny", 40, 80, 4, {"width": 4, "z_dim": 8, "batch_size": 8})
DIGITS = ["digits"]
CPU = {"device": "cpu"}

pytestmark = pytest.mark.usefixtures("one_thread")


# Claims, on records made by hand


def made(figure, dat, plain, seeds=3, dataset="digits"):
    """Results of a figure's runs: each of `dat` and `plain` is a function (seed, part of training done) -> record."""
    found = []
    for e in experiments([dataset], [figure], range(seeds), TINY, CPU):
        record = plain if e.variant == PLAIN else dat
        steps = [e.config.steps * (i + 1) // 8 for i in range(8)]
        lines = [{"step": step, **record(e.seed, step / e.config.steps)} for step in steps]
        metrics = [
            {"step": r["step"], "metric": "classifier_score", "value": r.pop("score"), "protocol": "made"}
            for r in lines
        ]
        found.append(Result(e, lines, metrics))
    return found


def record(score=2.0, wasserstein=1.0, norm=1.0, added=0.0):
    return {
        "score": score,
        "wasserstein": wasserstein,
        "input_grad_norm": norm,
        "loss_clean": -wasserstein,
        "loss_adv": -wasserstein + added,
    }


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
    assert verdict(found, "C6", "lowers") == expected


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

    assert verdict(made("4", since(start), since(0.5)), "C7", "faster") == expected


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
    (line,) = [v for v in claims.judge(found, {}) if "lowers" in v.claim]
    assert f"{8 * 3} pairs" in line.ours


def test_unfinished_runs_are_left_out():
    found = made("4", lambda s, d: record(score=9), lambda s, d: record())
    del found[-1].stats[-1]
    assert len(results.pairs(found)) == 2
    assert verdict(found, "C3", "score") == CANNOT_TELL


# What is run


def test_the_papers_figures_are_run_in_pairs():
    every = experiments(DIGITS, PAPER, range(3), FULL, CPU)
    assert {e.figure for e in every} == {"1", "3", "4", "5", "6", "7", "8", "alp"}
    assert len({e.name for e in every}) == len(every)
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


def test_the_sweep_covers_every_baseline():
    configs = [e.config for e in experiments(DIGITS, ["sweep"], range(1), QUICK, CPU)]
    assert {c.baseline for c in configs} == {"dcgan", "wgan", "wgan-gp", "wgan-lp", "wgan-alp"}
    of_dcgan = [c for c in configs if c.baseline == "dcgan" and c.dat]
    assert {c.formulation for c in of_dcgan} == {"eq10", "alg1", "batch_mean"}
    assert len({c.eps for c in of_dcgan if c.formulation == "eq10"}) >= 3
    assert len({c.lambda_adv for c in of_dcgan}) >= 2


def one_run(steps=8):
    return next(e for e in experiments(DIGITS, ["4"], range(1), TINY, CPU, steps) if e.config.dat)


def test_an_interrupted_run_goes_on_exactly(tmp_path, monkeypatch):
    experiment = one_run()
    reproduce.train(experiment, tmp_path / "whole")
    step = reproduce.Trainer.train_step
    taken = []

    def interrupted(trainer):
        step(trainer)
        taken.append(trainer.step)
        if len(taken) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(reproduce.Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce.train(experiment, tmp_path / "parts")
    assert reproduce.remaining([experiment], tmp_path / "parts") == [experiment]
    reproduce.train(experiment, tmp_path / "parts")
    assert taken == [1, 2, 3, 4, 5, 5, 6, 7, 8]  # a checkpoint is made half way
    assert reproduce.remaining([experiment], tmp_path / "parts") == []

    def measured(folder):
        run = results.read_run(experiment, tmp_path / folder / experiment.name)
        speed = ("seconds", "images_per_second")
        return [{k: v for k, v in r.items() if k not in speed} for r in run.stats], run.metrics

    assert measured("whole") == measured("parts")


def test_a_folder_of_other_options_is_refused(tmp_path):
    reproduce.train(one_run(steps=2), tmp_path)
    with pytest.raises(ConfigError, match=r"--outdir .* has steps 2 where this command asks for 3"):
        reproduce.remaining([one_run(steps=3)], tmp_path)


# The command


def run(outdir, *options):
    tiny = ["--quick", "--dataset", "digits", "--figure", "4", "--steps", "2", "--seeds", "2", "--jobs", "1"]
    return reproduce.main([*tiny, "--outdir", str(outdir), *options])


def test_from_ctrl_c_to_the_report(tmp_path, monkeypatch, capsys):
    outdir = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "_summary", lambda *_: signal.raise_signal(signal.SIGINT) or "")
        assert run(outdir) == 130
    finished = list(outdir.glob("runs/*/generator.safetensors"))
    assert len(finished) == 1  # it stopped after the first
    when = finished[0].stat().st_mtime_ns

    capsys.readouterr()
    assert run(outdir) == 0
    said = capsys.readouterr().out
    assert "4 runs, 1 of them finished" in said
    assert "3/3 digits-4-wgan-n_dis-5-dat-seed1: classifier_score" in said
    assert len(list(outdir.glob("runs/*/generator.safetensors"))) == 4
    assert finished[0].stat().st_mtime_ns == when

    monkeypatch.setattr(reproduce, "run_all", lambda *_: pytest.fail("a finished run was repeated"))
    assert run(outdir) == 0
    page, text = ((outdir / name).read_text() for name in ("report.html", "report.md"))
    for number in range(1, 8):
        assert f"| C{number} |" in text
        assert f">C{number}</td>" in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 2  # the figure and its samples
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page
    assert "url(" not in page
    for picture in re.findall(r"\]\((.+?)\)", text):
        assert (outdir / picture).read_bytes().startswith(b"\x89PNG")

    (outdir / "report.html").unlink()
    assert reproduce.main(["--report-only", "--outdir", str(outdir)]) == 0
    assert (outdir / "report.html").read_text() == page


# The sweep


def swept(distances, datasets=("digits", "mnist")):
    """Results of dcgan's sweep: `distances` is a function (variant, data set, seed) -> distance of all evaluations."""
    found = []
    for dataset, e in itertools.product(datasets, experiments(DIGITS, ["sweep"], range(3), TINY, CPU)):
        if e.setting == "dcgan":
            e = dataclasses.replace(e, config=dataclasses.replace(e.config, dataset=dataset))
            line = {"step": e.config.steps, "wasserstein": 1.0, "input_grad_norm": 1.0, "loss_clean": 1, "loss_adv": 1}
            value = distances(e.variant, dataset, e.seed)
            metric = {"step": e.config.steps, "metric": "classifier_frechet", "value": value, "protocol": "made"}
            found.append(Result(e, [line], [metric]))
    return found


def test_an_options_ratio_is_of_the_same_seed_and_data_set():
    scale = {"digits": (1.0, 10.0, 100.0), "mnist": (7.0, 0.1, 3.0)}

    def distances(variant, dataset, seed):
        gain = {PLAIN: 1.0, "eq10, eps 1, lambda_adv 1": {"digits": 0.5, "mnist": 2.0}[dataset]}.get(variant, 4.0)
        return scale[dataset][seed] * gain

    found = {o.variant: o for o in sweep.options(swept(distances))["dcgan"]}
    assert len(found) == 3 * 3 * 2
    option = found["eq10, eps 1, lambda_adv 1"]
    assert (option.ratio("digits"), option.ratio("mnist")) == (pytest.approx(0.5), pytest.approx(2.0))
    assert option.overall == pytest.approx(1.0)
    assert option.standard_error == pytest.approx(0, abs=1e-9)  # the seeds agree; that the data sets do not is no noise
    assert math.isnan(option.ratio("cifar10"))


@pytest.mark.parametrize(
    ("noise", "chosen"),
    # log ratios -noise, 0, noise around the best's on two data sets: standard error sqrt(4 noise^2 / 4 / 6)
    [(0.0, "batch_mean, eps 1 x batch, lambda_adv 0.3"), (0.2, "eq10, eps 1, lambda_adv 1")],
)
def test_the_simplest_option_within_a_standard_error_is_chosen(noise, chosen):
    logs = {
        PLAIN: 0.0,
        "batch_mean, eps 1 x batch, lambda_adv 0.3": -0.5,
        "eq10, eps 1, lambda_adv 0.3": -0.45,
        "eq10, eps 1, lambda_adv 1": -0.43,
        "eq10, eps 10, lambda_adv 1": -0.44,
        "eq10, eps 0.1, lambda_adv 1": -0.41,  # just beyond
    }

    def distances(variant, dataset, seed):
        return math.exp(logs.get(variant, 1.0) + (noise * (seed - 1) if "batch_mean" in variant else 0))

    of_dcgan = sweep.options(swept(distances))["dcgan"]
    assert sweep.best(of_dcgan).variant == "batch_mean, eps 1 x batch, lambda_adv 0.3"
    assert sweep.best(of_dcgan).standard_error == pytest.approx(noise / math.sqrt(6))
    assert sweep.choose(of_dcgan).variant == chosen


def test_the_sweeps_report(tmp_path):
    logs = {PLAIN: 2.0, "alg1, eps 1, lambda_adv 0.3": 1.0}
    report.write(swept(lambda variant, dataset, seed: logs.get(variant, 3.0) * (1 + seed)), {}, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## Claims" not in text  # nothing of the paper was run
    assert (tmp_path / "sweep-images.png").is_file()
    assert not (tmp_path / "sweep-points.png").exists()
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    assert [
        "dcgan",
        "alg1, eps 1, lambda_adv 0.3",
        "0.50",
        "alg1, eps 1, lambda_adv 0.3",
        "0.50 (0.50 to 0.50)",
    ] in rows
    finals = [row for row in rows if row[:2] == ["dcgan", PLAIN]]
    assert [row[2:4] for row in finals] == [["3", "4 ± 2"]] * 2  # digits and mnist


def test_one_setting_is_run(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(reproduce, "run_all", lambda todo, *_: chosen.extend(todo) or {})
    options = ["--figure", "1,5,alp", "--setting", "wgan-alp, n_dis 1", "--dataset", "digits,ring", "--steps", "1"]
    assert run(tmp_path / "out", *options) == 0
    assert {(e.dataset, e.config.baseline, e.config.n_dis) for e in chosen} == {
        ("digits", "wgan-alp", 1), ("ring", "wgan-alp", 1),
    }  # fmt: skip
    assert len(chosen) == 2 * 2 * 2  # data sets, variants, seeds


def test_no_run_that_left_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "run_all", lambda todo, *_: {todo[0].name: "out of memory"})
    assert run(tmp_path / "out") == 1
    assert capsys.readouterr().err.endswith("failed: out of memory\n")


def test_a_run_that_diverges_is_reported(tmp_path, monkeypatch, capsys):
    def failed(todo, folder, jobs):
        for e in todo[1:]:
            reproduce.train(e, folder)
        return {todo[0].name: "training diverged"}

    monkeypatch.setattr(reproduce, "run_all", failed)
    assert run(tmp_path / "out", "--seeds", "1") == 1
    assert "digits-4-wgan-n_dis-5-plain-seed0 failed: training diverged" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.md").is_file()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--figure", "9"], "--figure 9"),
        (["--figure", "3,,4"], "--figure"),
        (["--figure", "1", "--dataset", "ring"], "--dataset ring"),
        (["--setting", "wgan, n_dis 1"], "--setting wgan, n_dis 1"),
        (["--dataset", "imagenet"], "--dataset imagenet"),
        (["--dataset", "digits,,ring"], "--dataset"),
        (["--image-size", "20"], "--image-size 20"),
        (["--image-size", "small"], "--image-size small"),
        (["--dataset", "mnist", "--data-dir", "nowhere"], "--data-dir nowhere"),
        (["--steps", "0"], "--steps 0"),
        (["--steps", "many"], "--steps many"),
        (["--seeds", "0"], "--seeds 0"),
        (["--seeds", "1.5"], "--seeds 1.5"),
        (["--jobs", "0"], "--jobs 0"),
        (["--device", "tpu"], "--device tpu"),
        (["--inception-weights", "nowhere.pth"], "--inception-weights nowhere.pth"),
        (["--report-only"], "--outdir"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_options_that_cannot_be_followed(tmp_path, capsys, monkeypatch, options, named):
    monkeypatch.setattr(reproduce, "run_all", lambda *_: pytest.fail("training began"))
    try:
        code = run(tmp_path / "out", *options)
    except SystemExit as leaving:  # argparse
        code = leaving.code
    assert code == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert named in complaint
    assert not (tmp_path / "out").exists()


def test_an_outdir_that_is_a_file(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert run(tmp_path / "out") == 2
    assert "--outdir" in capsys.readouterr().err


def test_the_place_of_a_run_is_recorded(tmp_path):
    experiment = one_run(steps=1)
    reproduce.train(experiment, tmp_path)
    assert json.loads((tmp_path / experiment.name / "experiment.json").read_text()) == {
        "figure": "4", "setting": "wgan, n_dis 5", "variant": "DAT", "seed": 0
    }  # fmt: skip
    (read,) = results.read(tmp_path)
    assert read.experiment == experiment
    assert read.finished


def test_figure_1_is_attacked(tmp_path):
    todo = experiments(DIGITS, ["1"], range(2), TINY, {**CPU, "outdir": str(tmp_path)}, steps=2)
    for e in todo:
        reproduce.train(e, tmp_path / "runs")
    found = results.read(tmp_path / "runs")
    attacks = reproduce.attacks(found)
    assert list(attacks) == [e.name for e in sorted(todo, key=lambda e: (e.config.dat, e.seed))]
    report.write(found, attacks, tmp_path)
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in (tmp_path / "report.md").read_text().splitlines()]
    for variant, paper in ((PLAIN, ("3.2", "3.88")), (DAT, ("37.36", "7.44"))):
        measured = [attacks[e.name] for e in todo if e.variant == variant]
        for kind, sides, printed in (
            ("generated", [m.fake for m in measured], paper[0]),
            ("real", [m.real for m in measured], paper[1]),
        ):
            (row,) = [row for row in rows if row[:3] == [variant, "2", kind]]
            mean = sum(side.steps.double().mean().item() for side in sides) / 2
            assert float(row[3].split(" ")[0]) == pytest.approx(mean, rel=0.01)
            arrived = sum(side.reached.double().mean().item() for side in sides) / 2
            assert float(row[5].rstrip("%")) == pytest.approx(100 * arrived, abs=0.5)
            assert row[6] == printed
    assert (tmp_path / "digits-figure-1.png").is_file()


def test_points_have_no_figure_1():
    assert {e.figure for e in experiments(["ring"], PAPER, range(1), TINY, CPU)} == set(PAPER) - {"1"}


def test_toy_data_keeps_its_own_sizes():
    of_images, of_points = (
        next(e.config for e in experiments([name], ["3"], range(1), TINY, {**CPU, "image_size": 8}))
        for name in ("digits", "ring")
    )
    assert (of_images.image_size, of_images.width, of_images.batch_size, of_images.steps) == (8, 4, 8, 40)
    assert (of_points.image_size, of_points.width, of_points.batch_size, of_points.steps) == (None, 128, 256, 80)


def test_a_batch_means_eps_is_multiplied_by_the_batch_size():
    for e in experiments(["digits", "ring"], ["sweep"], range(1), TINY, CPU):
        if found := re.fullmatch(r"(\w+), eps (\d+|0\.1)( x batch)?, lambda_adv .*", e.variant):
            formulation, eps, times = found.groups()
            assert bool(times) == (formulation == "batch_mean") == (e.config.formulation == "batch_mean")
            assert e.config.eps == pytest.approx(float(eps) * (e.config.batch_size if times else 1))
        else:
            assert not e.config.dat
