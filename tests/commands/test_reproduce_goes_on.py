"""A reproduction that was ended, killed or carried elsewhere goes on."""

import shutil
import subprocess
import sys
import time

import pytest

from datgan_fast import reproduce
from datgan_fast.errors import ConfigError
from datgan_fast.paper import records, runs

pytestmark = pytest.mark.usefixtures("one_thread")


def run(outdir, *options):
    tiny = ["--quick", "--dataset", "digits", "--figure", "4", "--steps", "2", "--seeds", "2", "--jobs", "1"]
    return reproduce.main([*tiny, "--outdir", str(outdir), *options])


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
    options = ["--steps", "400", "--dataset", "ring"]  # with a checkpoint every 50
    process = begun(tmp_path, "step 10/", *options)
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
    assert taken == list(range(taken[0], 400)) and taken[0] > 0
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
