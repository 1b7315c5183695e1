"""Making runs: resuming, what is refused, what is recorded and attacked."""

import itertools
import json
import shutil

import pytest

from datgan_fast.errors import ConfigError, DataError
from datgan_fast.paper import figure1, records, report, runs
from datgan_fast.paper.experiments import DAT, PLAIN, experiments
from datgan_fast.paper.results import Result
from made_runs import CPU, DIGITS, TINY

pytestmark = pytest.mark.usefixtures("one_thread")


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
