"""Reproducing the paper: what is run and when, resuming, the command and its report."""

import itertools
import json
import re
import signal

import pytest

from datgan_fast import reproduce
from datgan_fast.errors import ConfigError
from datgan_fast.paper import report, results, runs
from datgan_fast.paper.experiments import DAT, FULL, PAPER, PLAIN, QUICK, experiments
from made_runs import CPU, DIGITS, TINY

pytestmark = pytest.mark.usefixtures("one_thread")


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


def one_run(steps=8):
    return next(e for e in experiments(DIGITS, ["4"], range(1), TINY, CPU, steps) if e.config.dat)


@pytest.mark.trains
def test_an_interrupted_run_goes_on_exactly(tmp_path, monkeypatch):
    experiment = one_run()
    runs.train(experiment, tmp_path / "whole")
    step = runs.Trainer.train_step
    taken = []

    def interrupted(trainer):
        step(trainer)
        taken.append(trainer.step)
        if len(taken) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runs.train(experiment, tmp_path / "parts")
    assert runs.remaining([experiment], tmp_path / "parts") == [experiment]
    runs.train(experiment, tmp_path / "parts")
    assert taken == [1, 2, 3, 4, 5, 5, 6, 7, 8]  # a checkpoint is made half way
    assert runs.remaining([experiment], tmp_path / "parts") == []

    def measured(folder):
        run = results.read_run(experiment, tmp_path / folder / experiment.name)
        speed = ("seconds", "images_per_second")
        stats = [{k: v for k, v in r.items() if k not in speed} for r in run.stats]
        return stats, run.metrics, (run.path / "theory.jsonl").read_text()

    assert measured("whole") == measured("parts")


@pytest.mark.trains
def test_a_folder_of_other_options_is_refused(tmp_path):
    runs.train(one_run(steps=2), tmp_path)
    with pytest.raises(ConfigError, match=r"--outdir .* has steps 2 where this command asks for 3"):
        runs.remaining([one_run(steps=3)], tmp_path)


# The command


def run(outdir, *options):
    tiny = ["--quick", "--dataset", "digits", "--figure", "4", "--steps", "2", "--seeds", "2", "--jobs", "1"]
    return reproduce.main([*tiny, "--outdir", str(outdir), *options])


@pytest.mark.trains
def test_from_ctrl_c_to_the_report(tmp_path, monkeypatch, capsys):
    outdir = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_summary", lambda *_: signal.raise_signal(signal.SIGINT) or "")
        assert run(outdir) == 130
    finished = list(outdir.glob("runs/*/generator.safetensors"))
    assert len(finished) == 1  # it stopped after the first
    when = finished[0].stat().st_mtime_ns

    capsys.readouterr()
    assert run(outdir) == 0
    said = capsys.readouterr().out
    assert "4 runs, 1 of them finished" in said
    assert "3/3 digits-4-wgan-n_dis-5-dat-seed1: classifier_score" in said
    assert re.search(
        r"^digits C3 cannot tell WGAN has a better score .*; 2 seeds, corrected p 1, could be seen: none", said, re.M
    )
    assert re.search(r"^not measured: C1, .* \(digits\)$", said, re.M)
    assert len(list(outdir.glob("runs/*/generator.safetensors"))) == 4
    assert finished[0].stat().st_mtime_ns == when

    monkeypatch.setattr(reproduce, "run_all", lambda *_: pytest.fail("a finished run was repeated"))
    assert run(outdir) == 0
    page, text = ((outdir / name).read_text() for name in ("report.html", "report.md"))
    table, apart = text.split("Not measured: ")
    for number in range(1, 8):
        if number in (3, 6, 7):  # what figure 4 is about
            assert f"| C{number} |" in table
            assert f">C{number}</td>" in page
        else:
            assert f"C{number}, " in apart
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

    capsys.readouterr()
    assert reproduce.main(["--null-simulation", "3", "--outdir", str(outdir)]) == 0
    assert "swapped at random, 3 times: a false verdict in 0.0% of the reports" in capsys.readouterr().out


@pytest.mark.trains
def test_one_setting_is_run(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(reproduce, "run_all", lambda todo, *_: chosen.extend(todo) or {})
    options = ["--figure", "1,5,alp", "--setting", "wgan-alp, n_dis 1", "--dataset", "digits,ring", "--steps", "1"]
    assert run(tmp_path / "out", *options) == 0
    assert {(e.dataset, e.config.baseline, e.config.n_dis) for e in chosen} == {
        ("digits", "wgan-alp", 1), ("ring", "wgan-alp", 1),
    }  # fmt: skip
    assert len(chosen) == 2 * 2 * 2  # data sets, variants, seeds


@pytest.mark.trains
def test_no_run_that_left_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "run_all", lambda todo, *_: {todo[0].name: "out of memory"})
    assert run(tmp_path / "out") == 1
    assert capsys.readouterr().err.endswith("failed: out of memory\n")


@pytest.mark.trains
def test_a_run_that_diverges_is_reported(tmp_path, monkeypatch, capsys):
    def failed(todo, folder, jobs):
        for e in todo[1:]:
            runs.train(e, folder)
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
        (["--null-simulation", "2000"], "--outdir"),
        (["--null-simulation", "0"], "--null-simulation 0"),
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


@pytest.mark.trains
def test_the_place_of_a_run_is_recorded(tmp_path):
    experiment = one_run(steps=1)
    runs.train(experiment, tmp_path)
    assert json.loads((tmp_path / experiment.name / "experiment.json").read_text()) == {
        "figure": "4", "setting": "wgan, n_dis 5", "variant": "DAT", "seed": 0
    }  # fmt: skip
    (read,) = results.read(tmp_path)
    assert read.experiment == experiment
    assert read.finished
    for text in ("", "[]", "{}", '{"figure": "4", "setting": [], "variant": "DAT", "seed": "x"}', "[" * 100_000):
        (tmp_path / experiment.name / "experiment.json").write_text(text)
        with pytest.raises(ConfigError, match=r"experiment\.json cannot be read"):
            results.read(tmp_path)


@pytest.mark.trains
def test_figure_1_is_attacked(tmp_path):
    todo = experiments(DIGITS, ["1"], range(2), TINY, {**CPU, "outdir": str(tmp_path)}, steps=2)
    for e in todo:
        runs.train(e, tmp_path / "runs")
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

    (tmp_path / "half").mkdir()
    report.write([r for r in found if r.experiment.variant == PLAIN], attacks, tmp_path / "half")
    assert "nan" not in (tmp_path / "half" / "report.md").read_text()


def test_points_have_no_figure_1():
    assert {e.figure for e in experiments(["ring"], PAPER, range(1), TINY, CPU)} == set(PAPER) - {"1"}


def test_toy_data_keeps_its_own_sizes():
    of_images, of_points = (
        next(e.config for e in experiments([name], ["3"], range(1), TINY, {**CPU, "image_size": 8}))
        for name in ("digits", "ring")
    )
    assert (of_images.image_size, of_images.width, of_images.batch_size, of_images.steps) == (8, 4, 8, 40)
    assert (of_points.image_size, of_points.width, of_points.batch_size, of_points.steps) == (0, 128, 256, 80)
