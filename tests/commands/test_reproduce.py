"""Reproducing the paper: what is run and when, resuming, the command and its report."""

import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from datgan_fast import reproduce
from datgan_fast.errors import ConfigError, DataError
from datgan_fast.paper import figure1, records, report, runs
from datgan_fast.paper.experiments import BOTH, DAT, EQUAL, FULL, MEDIUM, PAPER, PLAIN, QUICK, attacked, experiments
from datgan_fast.paper.results import Result
from made_runs import CPU, DIGITS, TINY

pytestmark = pytest.mark.usefixtures("one_thread")


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
    assert any(map(attacked, every))
    (size,) = {e.config.image_size for e in experiments(["mnist"], ["5"], range(1), MEDIUM, {**CPU, "image_size": 16})}
    assert size == 16


def one_run(steps=8):
    return next(e for e in experiments(DIGITS, ["4"], range(1), TINY, CPU, steps) if e.config.dat)


@pytest.mark.trains
def test_an_interrupted_run_goes_on_exactly(tmp_path, monkeypatch):
    experiment = one_run()
    runs.make(experiment, tmp_path / "whole" / "runs")
    step = runs.Trainer.train_step
    taken = []

    def interrupted(trainer):
        step(trainer)
        taken.append(trainer.step)
        if len(taken) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runs.make(experiment, tmp_path / "parts" / "runs")
    assert runs.remaining([experiment], tmp_path / "parts") == [experiment]
    runs.make(experiment, tmp_path / "parts" / "runs")
    assert taken == [1, 2, 3, 4, 5, 5, 6, 7, 8]  # a checkpoint is made half way

    def measured(folder):
        run = records.read_run(experiment, tmp_path / folder / "runs" / experiment.name)
        speed = ("seconds", "images_per_second")
        stats = [{k: v for k, v in r.items() if k not in speed} for r in run.stats]
        return stats, run.metrics, (run.path / "theory.jsonl").read_text()

    assert measured("whole") == measured("parts")


@pytest.mark.trains
def test_a_run_that_was_ended_in_its_last_evaluation_makes_up_for_it(tmp_path, monkeypatch):
    experiment = one_run(steps=4)
    folder = tmp_path / "runs"
    evaluate = runs.Trainer.evaluate

    def interrupted(trainer):
        if trainer.step == 4:
            raise KeyboardInterrupt
        return evaluate(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(runs.Trainer, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.make(experiment, folder)
    runs.make(experiment, folder)
    run = records.read_run(experiment, folder / experiment.name)
    assert max(m["step"] for m in run.metrics) == max(t["step"] for t in run.theory) == 4


@pytest.mark.trains
def test_a_run_that_lost_its_last_line_is_no_record(tmp_path):
    experiment = one_run(steps=4)
    runs.make(experiment, tmp_path / "runs")
    path = tmp_path / "runs" / experiment.name / "stats.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match=r"stats\.jsonl lacks the last step's line"):
        runs.make(experiment, tmp_path / "runs")


@pytest.mark.trains
def test_a_run_of_another_process_is_left_as_it_is(tmp_path):
    experiment = one_run(steps=4)
    runs.make(experiment, tmp_path / "runs")
    path = tmp_path / "runs" / experiment.name
    (path / "checkpoints" / "step-000004.pt").rename(tmp_path / "newest.pt")  # it would go back to an older one
    before = (path / "stats.jsonl").read_text()
    lock = runs.RunFolder(path)
    lock.hold()
    with pytest.raises(ConfigError, match="is training this run"):
        runs.make(experiment, tmp_path / "runs")
    assert (path / "stats.jsonl").read_text() == before
    lock.close()


def test_runs_of_a_setting_have_the_same_options(tmp_path):
    first, second = (experiments(DIGITS, ["4"], [seed], TINY, CPU, steps)[0] for seed, steps in ((0, 40), (1, 100)))
    records.append(tmp_path, Result(first, [{"step": 40}], []))
    with pytest.raises(ConfigError, match=r"seed0 has steps 40 where this command asks for 100"):
        runs.remaining([second], tmp_path)
    same = experiments(DIGITS, ["4"], [1], TINY, {**CPU, "data_dir": "elsewhere"}, 40)[:1]
    assert runs.remaining(same, tmp_path) == same


@pytest.mark.trains
def test_a_folder_of_other_options_is_refused(tmp_path):
    run = one_run(steps=2)
    runs.make(run, tmp_path / "runs")
    refused = pytest.raises(ConfigError, match=r"--outdir .* has steps 2 where this command asks for 3")
    with refused:
        runs.remaining([one_run(steps=3)], tmp_path)
    records.append(tmp_path, records.read_run(run, tmp_path / "runs" / run.name))
    shutil.rmtree(tmp_path / "runs")
    with refused:
        runs.remaining([one_run(steps=3)], tmp_path)
    assert runs.remaining([run], tmp_path) == []


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
    assert len((outdir / "results" / "digits.jsonl").read_text().splitlines()) == 4
    assert "3/3 digits-4-wgan-n_dis-5-dat-seed1: classifier_score" in said
    assert re.search(
        r"^digits C3 cannot tell WGAN has a better score .*; 2 seeds, corrected p 1, could be seen: none", said, re.M
    )
    assert re.search(r"^not measured: C1 \(digits\); .* \(digits\)$", said, re.M)
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
            assert f"C{number} (digits)" in apart
    page += (outdir / "digits.html").read_text()
    text += (outdir / "digits.md").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    for name in ("details.html", "digits.html", "theory.html"):
        sources.remove(name)
    assert len(sources) == 3 + 2  # claims; the figure and its samples
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page
    assert "url(" not in page
    for picture in re.findall(r"\]\((.+?\.png)\)", text):
        assert (outdir / picture).read_bytes().startswith(b"\x89PNG")

    before = (outdir / "report.html").read_text()
    (outdir / "report.html").unlink()
    assert reproduce.main(["--report-only", "--outdir", str(outdir)]) == 0
    assert (outdir / "report.html").read_text() == before

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
    def failed(todo, outdir, jobs, threads):
        for e in todo[1:]:
            runs.make(e, outdir / "runs")
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
        (["--seeds", "5-3"], "--seeds 5-3"),
        (["--seeds", "3-"], "--seeds 3-"),
        (["--seeds", "0-99999999999999999999999"], "--seeds 0-99999999999999999999999"),
        (["--seeds", "-3"], "--seeds -3"),
        (["--size", "huge"], "--size huge"),
        (["--size", "medium"], "--size medium"),  # beside --quick
        (["--jobs", "0"], "--jobs 0"),
        (["--threads", "0"], "--threads 0"),
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
    folder = tmp_path / "runs"
    runs.make(experiment, folder)
    assert json.loads((folder / experiment.name / "experiment.json").read_text()) == {
        "figure": "4", "setting": "wgan, n_dis 5", "variant": "DAT", "seed": 0
    }  # fmt: skip
    (read,) = records.read(tmp_path)
    assert read.experiment == experiment
    assert read.finished
    for text in ("", "[]", "{}", '{"figure": "4", "setting": [], "variant": "DAT", "seed": "x"}', "[" * 100_000):
        (folder / experiment.name / "experiment.json").write_text(text)
        with pytest.raises(ConfigError, match=r"experiment\.json cannot be read"):
            records.read(tmp_path)


@pytest.mark.trains
def test_figure_1_is_attacked(tmp_path, monkeypatch):
    def lost(*_, **__):
        raise DataError("there is no such data")

    todo = experiments(DIGITS, ["1"], range(2), TINY, {**CPU, "outdir": str(tmp_path)}, steps=2)
    for e in todo:
        runs.make(e, tmp_path / "runs")
        records.append(tmp_path, records.read_run(e, tmp_path / "runs" / e.name))
    found = records.read(tmp_path)
    report.write(found, tmp_path)
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in (tmp_path / "digits.md").read_text().splitlines()]
    for (variant, paper), p in itertools.product(
        ((PLAIN, ("3.2", "3.88")), (DAT, ("37.36", "7.44"))), figure1.PROTOCOLS
    ):
        subjects = [
            figure1.load_subject(tmp_path / "runs" / e.name, n=figure1.ATTACKED) for e in todo if e.variant == variant
        ]
        measured = [figure1.measure(subject, p) for subject in subjects]
        for kind, sides, printed in (
            ("generated", [m.fake for m in measured], paper[0]),
            ("real", [m.real for m in measured], paper[1]),
        ):
            (row,) = [row for row in rows if row[:4] == [str(p), variant, "2", kind]]
            median = sum(side.steps.double().quantile(0.5).item() for side in sides) / 2
            assert float(row[4].split(" ")[0]) == pytest.approx(median, rel=0.01)
            arrived = sum(side.reached.double().mean().item() for side in sides) / 2
            assert float(row[5].rstrip("%")) == pytest.approx(100 * arrived, abs=0.5)
            assert row[7] == printed
    assert (tmp_path / "digits-figure-1.png").is_file()

    monkeypatch.setattr(figure1, "load_subject", lost)
    (tmp_path / "digits-figure-1.png").unlink()
    report.write(found, tmp_path)
    assert "digits-figure-1.png" not in (tmp_path / "digits.md").read_text()

    (tmp_path / "half").mkdir()
    report.write([r for r in found if r.experiment.variant == PLAIN], tmp_path / "half")
    assert "nan" not in (tmp_path / "half" / "digits.md").read_text()


def begun(outdir, said, *options):
    """A reproduction in a process of its own, whose worker has said this."""
    small = ["--quick", "--dataset", "ring", "--figure", "4", "--seeds", "1", "--jobs", "1", "--threads", "1"]
    command = [sys.executable, "-m", "datgan_fast.reproduce", *small, *options, "--outdir", str(outdir)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = outdir / "workers.log"
    wait_for(lambda: process.poll() is not None or (log.exists() and said in log.read_text()))
    return process


def wait_for(there, seconds=300):
    since = time.monotonic()
    while not there():
        assert time.monotonic() - since < seconds
        time.sleep(0.05)


@pytest.mark.process
def test_a_signal_ends_the_runs_in_progress(tmp_path):
    """In the middle of one that would take many minutes; its worker must hear the signal, which a shell sends to the parent."""
    process = begun(tmp_path, "discriminator steps:", "--steps", "1000000")
    process.terminate()
    assert process.wait(timeout=120) == 130
    assert "stopping; the same command goes on from here" in process.stderr.read()
    (checkpoint,) = tmp_path.glob("runs/*/checkpoints/*.pt")
    assert 0 < int(checkpoint.stem.partition("-")[2]) < 1_000_000


@pytest.mark.process
def test_a_killed_reproduction_goes_on(tmp_path, monkeypatch, capsys):
    """Killed in its second run, after that has a checkpoint: the first is not repeated and the second goes on from there."""
    options = ["--steps", "3000", "--dataset", "ring"]  # half of which it still has to make
    process = begun(tmp_path, "step 75/", *options)
    second = tmp_path / "runs" / "ring-4-wgan-n_dis-5-dat-seed0"
    wait_for(lambda: process.poll() is not None or list(second.glob("checkpoints/*.pt")))
    process.kill()
    process.wait(timeout=120)
    process.stderr.close()
    wait_for(lambda: free(second))  # its worker ends when it misses its parent
    taken = []
    step = runs.Trainer.train_step
    monkeypatch.setattr(runs.Trainer, "train_step", lambda trainer: taken.append(trainer.step) or step(trainer))
    monkeypatch.setattr(reproduce, "run_all", in_this_process)
    small = ["--quick", "--figure", "4", "--seeds", "1", *options]
    assert reproduce.main([*small, "--outdir", str(tmp_path)]) == 0
    assert "2 runs, 1 of them finished" in capsys.readouterr().out
    assert taken == list(range(taken[0], 3000)) and taken[0] > 0
    assert len(records.recorded(tmp_path)) == 2


def free(run):
    lock = runs.RunFolder(run)
    try:
        lock.hold()
    except ConfigError:
        return False
    lock.close()
    return True


def in_this_process(todo, outdir, jobs, threads):
    for e in todo:
        runs.make(e, outdir / "runs")
        records.append(outdir, records.read_run(e, outdir / "runs" / e.name))
    return {}


@pytest.mark.trains
def test_results_alone_go_on_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "run_all", in_this_process)
    assert run(tmp_path / "here", "--seeds", "1") == 0
    shutil.copytree(tmp_path / "here" / "results", tmp_path / "there" / "results")
    assert reproduce.main(["--report-only", "--outdir", str(tmp_path / "there")]) == 0
    of_both = [(tmp_path / where / "report.md").read_text() for where in ("here", "there")]
    assert of_both[0] == of_both[1]
    capsys.readouterr()
    assert run(tmp_path / "there", "--seeds", "0-1") == 0
    assert "4 runs, 2 of them finished" in capsys.readouterr().out
    made = [path.name for path in (tmp_path / "there" / "runs").iterdir()]
    assert sorted(made) == ["digits-4-wgan-n_dis-5-dat-seed1", "digits-4-wgan-n_dis-5-plain-seed1"]
    assert {r.experiment.seed for r in records.read(tmp_path / "there")} == {0, 1}


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
