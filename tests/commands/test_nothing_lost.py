"""What happens around a run loses nothing of it: signals, damaged and lost files, a second writer, a disk without room."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from datgan_fast import train
from datgan_fast.training.run_folder import RunFolder
from train_runs import TINY, run_train

ROOT = Path(__file__).resolve().parents[2]
QUIET = ["--eval-every", "0", "--log-every", "1", "--save-every", "2"]

pytestmark = pytest.mark.trains


def steps(run):
    return [json.loads(line)["step"] for line in (run / "stats.jsonl").read_text().splitlines() if line.startswith("{")]


@pytest.fixture
def run(tmp_path, capsys):
    assert run_train(tmp_path, *QUIET, "--steps", "6") == 0
    capsys.readouterr()
    return next(tmp_path.iterdir())


def resumed(run, *options):
    return train.main(["--resume", str(run), "--steps", "8", *options])


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


def test_the_newest_good_checkpoint_is_taken(run, capsys):
    newest, good = run / "checkpoints/step-000006.pt", run / "checkpoints/step-000004.pt"
    os.truncate(newest, 2000)
    assert resumed(run) == 0
    said = one_line(capsys)
    assert said.startswith(f"python -m datgan_fast.train: warning: --resume {newest}: ")
    assert said.endswith(f"; going on from {good}\n")
    assert steps(run) == list(range(1, 9))


def test_without_a_good_checkpoint(run, capsys):
    for checkpoint in run.glob("checkpoints/*.pt"):
        checkpoint.write_bytes(b"")
    assert resumed(run) == 2
    error = one_line(capsys)
    assert all(name in error for name in ("step-000002.pt", "step-000004.pt", "step-000006.pt"))


def test_a_run_that_has_lost_its_checkpoints_is_not_begun_anew(run, capsys):
    for checkpoint in run.glob("checkpoints/*.pt"):
        checkpoint.unlink()
    before = (run / "stats.jsonl").read_text()
    assert resumed(run) == 2
    assert "--init-from" in one_line(capsys)
    assert (run / "stats.jsonl").read_text() == before


@pytest.mark.parametrize("line", ["", "[1, 2]", '{"step": "six"}', "{torn", "\x00\x00", "[" * 100_000], ids=range(6))
def test_a_line_that_cannot_be_read_stays_and_hides_no_other(run, line, capsys):
    path = run / "stats.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    assert resumed(run) == 0
    assert "cannot be read" in one_line(capsys)
    assert line in path.read_text().splitlines()
    records = [json.loads(t) for t in path.read_text().splitlines() if t.startswith("{") and t != line and t != "{torn"]
    assert [r["step"] for r in records] == list(range(1, 9))


def test_a_last_line_cut_off_by_a_crash_is_left_out(run):
    with (run / "stats.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert resumed(run) == 0
    assert steps(run) == list(range(1, 9))


@pytest.mark.parametrize(("name", "value"), [("lr_d", 0.5), ("baseline", "wgan"), ("seed", 3)])
def test_options_edited_by_hand(run, capsys, name, value):
    path = run / "config.yaml"
    options = yaml.safe_load(path.read_text())
    was, options[name] = options[name], value
    path.write_text(yaml.safe_dump(options))
    assert resumed(run) == 2
    error = one_line(capsys)
    assert str(was) in error
    assert str(value) in error
    assert str(path) in error


def test_seconds_go_on(run):
    state = torch.load(run / "checkpoints/step-000006.pt", weights_only=True)
    assert state["seconds"] > 0
    assert resumed(run) == 0
    seconds = [json.loads(line)["seconds"] for line in (run / "stats.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds)
    assert seconds[6] >= state["seconds"]


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        assert run_train(tmp_path, *QUIET, "--steps", "2") == 0
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.name for p in files if p.stat().st_mode & 0o777 != 0o640} == set()


def test_one_writer(run, capsys):
    holder = RunFolder(run)
    holder.hold()
    before = (run / "stats.jsonl").read_text()
    assert resumed(run) == 2
    error = one_line(capsys)
    assert f"process {os.getpid()}" in error
    assert str(run) in error
    assert (run / "stats.jsonl").read_text() == before
    holder.close()
    assert resumed(run) == 0


def test_a_run_that_cannot_be_written(run, capsys):
    (run / ".lock").unlink()
    (run / ".lock").mkdir()  # root may write everywhere, but not here
    assert resumed(run) == 2
    assert f"{run}: cannot be written" in one_line(capsys)


def test_a_short_run_is_not_evaluated_unless_asked(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(train.Trainer, "evaluate", lambda self: measured.append(self.step) or [])
    assert run_train(tmp_path, "--steps", "6", "--eval-every", "1000") == 0
    assert measured == []
    assert run_train(tmp_path, "--steps", "5", "--eval-every", "4") == 0
    assert measured == [4, 5]
    assert run_train(tmp_path, "--steps", "100", "--eval-every", "1000", "--log-every", "100") == 0
    assert measured == [4, 5, 100]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_an_evaluation_which_is_made_up_for(tmp_path, capsys, monkeypatch, number):
    evaluate, measured = train.Trainer.evaluate, []

    def interrupted(self):
        measured.append(self.step)
        signal.raise_signal(number)
        raise AssertionError("the evaluation goes on")

    monkeypatch.setattr(train.Trainer, "evaluate", interrupted)
    assert run_train(tmp_path, "--steps", "4", "--eval-every", "2") == 1
    assert "stopped at step 2" in one_line(capsys)
    (folder,) = tmp_path.iterdir()
    assert [p.name for p in folder.glob("checkpoints/*")] == ["step-000002.pt"]
    monkeypatch.setattr(train.Trainer, "evaluate", lambda self: measured.append(self.step) or evaluate(self))
    assert run_train(tmp_path, "--steps", "4", "--eval-every", "2", "--resume") == 0
    assert measured == [2, 2, 4]
    assert {json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()} == {2, 4}


def test_a_signal_while_metrics_are_recorded_loses_none(tmp_path, monkeypatch):
    scalars = RunFolder._scalars

    def signalled(self, group, record):
        scalars(self, group, record)
        if group == "metrics":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "_scalars", signalled)
    assert run_train(tmp_path, "--steps", "4", "--eval-every", "2") == 1
    monkeypatch.setattr(RunFolder, "_scalars", scalars)
    assert run_train(tmp_path, "--steps", "4", "--eval-every", "2", "--resume") == 0
    (folder,) = tmp_path.iterdir()
    measured = {step: [] for step in (2, 4)}
    for line in (folder / "metrics.jsonl").open():
        record = json.loads(line)
        measured[record["step"]].append(record["metric"])
    assert len(measured[2]) > 1
    assert measured[2] == measured[4]


def test_what_was_ignored_is_ignored(tmp_path, monkeypatch):
    step = train.Trainer.train_step
    monkeypatch.setattr(train.Trainer, "train_step", lambda self: (step(self), signal.raise_signal(signal.SIGHUP)))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert run_train(tmp_path, *QUIET, "--steps", "3") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("room", [700_000, 100_000], ids=["for the generator", "for neither"])
def test_no_room_on_the_disk(tmp_path, capsys, room):
    """A limit on a file's size raises what a full disk does."""
    options = ["--width", "16", "--batch-size", "8", *QUIET, "--outdir", str(tmp_path)]
    assert train.main([*options, "--steps", "2"]) == 0
    (folder,) = tmp_path.iterdir()
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        code = train.main(["--resume", str(folder), "--steps", "4"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert code == 1
    error = one_line(capsys)
    assert f"cannot be written ({os.strerror(errno.EFBIG)})" in error
    assert "step-000002.pt" in error
    assert not list(folder.rglob(".*.tmp*"))
    assert train.main(["--resume", str(folder), "--steps", "4"]) == 0


def test_a_folder_that_vanishes(tmp_path, capsys, monkeypatch):
    step = train.Trainer.train_step

    def vanishing(self):
        step(self)
        if self.step == 2:
            next(tmp_path.iterdir()).rename(tmp_path.parent / f"{tmp_path.name}-gone")

    monkeypatch.setattr(train.Trainer, "train_step", vanishing)
    assert run_train(tmp_path, *QUIET, "--steps", "4") == 1
    assert "cannot be written" in one_line(capsys)


CLOSED = """
import os, sys
from datgan_fast import train
os.close({descriptor})
code = train.main(sys.argv[1:])
os._exit(code)
"""


@pytest.mark.process
@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_closed_stream_does_not_end_a_run(tmp_path, descriptor):
    options = [*TINY, *QUIET, "--steps", "3", "--outdir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, os.environ.get("PYTHONPATH", ""))))}
    code = CLOSED.format(descriptor=descriptor)
    assert subprocess.run([sys.executable, "-c", code, *options], env=environment, timeout=300).returncode == 0
    (folder,) = tmp_path.iterdir()
    assert steps(folder) == [1, 2, 3]


@pytest.mark.process
def test_a_reader_that_leaves_does_not_end_a_run(tmp_path):
    options = [*TINY, *QUIET, "--steps", "30", "--outdir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, os.environ.get("PYTHONPATH", ""))))}
    command = [sys.executable, "-m", "datgan_fast.train", *options]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=300) == 0
    (folder,) = tmp_path.iterdir()
    assert steps(folder) == list(range(1, 31))


def test_a_signal_while_an_evaluation_is_made_up_for(tmp_path, monkeypatch):
    """The second time too the run stops where it is, and owes it still; so does one that has come to its end."""
    evaluate, measured = train.Trainer.evaluate, []

    def interrupted(self):
        measured.append(self.step)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train.Trainer, "evaluate", interrupted)
    options = ["--steps", "4", "--eval-every", "2", "--save-every", "3"]
    for _ in range(2):
        assert run_train(tmp_path, *options, "--resume") == 1
    assert measured == [2, 2]
    monkeypatch.setattr(train.Trainer, "evaluate", lambda self: evaluate(self) if self.step == 2 else interrupted(self))
    assert run_train(tmp_path, *options, "--resume") == 1
    assert measured == [2, 2, 4]
    monkeypatch.setattr(train.Trainer, "evaluate", lambda self: measured.append(self.step) or evaluate(self))
    assert run_train(tmp_path, *options, "--resume") == 0
    assert measured == [2, 2, 4, 4]


def test_a_checkpoint_is_there_before_an_evaluation_begins(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(
        train.Trainer,
        "evaluate",
        lambda self: found.append(sorted(p.name for p in tmp_path.glob("*/checkpoints/*"))) or [],
    )
    assert run_train(tmp_path, "--steps", "5", "--eval-every", "2", "--save-every", "3") == 0
    assert [names[-1] for names in found] == ["step-000002.pt", "step-000004.pt", "step-000005.pt"]


@pytest.mark.parametrize("begun", [0, 2])
def test_a_signal_while_networks_are_compiled(tmp_path, capsys, monkeypatch, begun):
    """Which is in a run's first step: it ends at once, and the run goes on from before it."""
    step = train.Trainer.train_step
    options = [*QUIET, "--compile"]
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    if begun:
        assert run_train(tmp_path, *options, "--steps", str(begun)) == 0
        capsys.readouterr()

    def compiling(self):
        step(self)
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it goes on")

    monkeypatch.setattr(train.Trainer, "train_step", compiling)
    assert run_train(tmp_path, *options, "--steps", "4", "--resume") == 1
    assert f"stopped at step {begun}; go on with --resume" in one_line(capsys)
    monkeypatch.setattr(train.Trainer, "train_step", step)
    assert run_train(tmp_path, *options, "--steps", "4", "--resume") == 0
    (folder,) = tmp_path.iterdir()
    assert steps(folder) == [1, 2, 3, 4]
