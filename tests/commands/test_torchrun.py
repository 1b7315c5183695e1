"""The train command under torchrun: one voice, one folder, one stop; what a killed process leaves, and how it goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ["--width", "4", "--z-dim", "8", "--batch-size", "7", "--device", "cpu", "--eval-every", "0"]
OPTIONS += ["--log-every", "2", "--save-every", "3", "--baseline", "wgan-gp", "--n-dis", "1"]
NINE = [*OPTIONS, "--steps", "9"]

# In one process and at one step, of the first attempt only, so that every moment is met exactly.
CHILD = """
import os, signal, sys
from datgan_fast import train
from datgan_fast.training import agreed_stop, trainer
agreed_stop.LOOK_EVERY = 0.0
event, rank, step, *arguments = sys.argv[1:]
make_step = trainer.Trainer.train_step
def train_step(self):
    if self.step + 1 == int(step):
        if event == "memory":
            raise MemoryError
        os.kill(os.getpid(), getattr(signal, event))
    make_step(self)
if os.environ["RANK"] == rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    trainer.Trainer.train_step = train_step
sys.exit(train.main(arguments))
"""
OURS = "python -m datgan_fast.train: "

pytestmark = pytest.mark.process


def command(*options, count=2, child=(), restarts=0):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    launcher += [f"--max-restarts={restarts}"]
    return [*launcher, *(child or ("-m", "datgan_fast.train")), *map(str, options)]


def environment():
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def torchrun(*options, **how):
    return subprocess.run(command(*options, **how), env=environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture
def struck(tmp_path):
    """A run in which something happens to a process before a step."""

    def run(event, rank, step, *options, **how):
        script = tmp_path / "child.py"
        script.write_text(CHILD)
        return torchrun(*options, child=(script, event, str(rank), str(step)), **how)

    return run


def sentences(result):
    """What we say on the error stream; the rest is torchrun's."""
    assert "datgan_fast/" not in result.stderr.replace(OURS, "").partition("Traceback")[2]  # a traceback of ours
    return [line.removeprefix(OURS) for line in result.stderr.splitlines() if line.startswith(OURS)]


def generator(run):
    return (run / "generator.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    outdir = tmp_path_factory.mktemp("undisturbed")
    result = torchrun(*NINE, "--outdir", outdir)
    assert result.returncode == 0, result.stderr
    (run,) = outdir.iterdir()
    return run, result


def test_one_run_of_several_processes(undisturbed, tmp_path):
    run, result = undisturbed
    assert sentences(result) == []
    assert result.stdout == (run / "log.txt").read_text()
    assert "cpu, fp32, 2 processes, BatchNorm over all images, steps 0 to 9" in result.stdout.splitlines()[0]
    assert result.stdout.count("step 2/9") == 1
    recorded = json.loads((run / "env.json").read_text())
    assert recorded["processes"] == 2 and recorded["launched_by"]["host"]
    assert [json.loads(line)["step"] for line in (run / "stats.jsonl").open()] == [2, 4, 6, 8, 9]
    alone = [sys.executable, "-m", "datgan_fast.train", *NINE, "--outdir", str(tmp_path)]
    assert subprocess.run(alone, env=environment(), capture_output=True).returncode == 0
    (whole,) = tmp_path.iterdir()
    states = [torch.load(r / "checkpoints" / "step-000009.pt", weights_only=True) for r in (run, whole)]
    assert torch.equal(states[0]["random"], states[1]["random"])
    for part in ("generator", "discriminator", "average"):
        assert states[0][part].keys() == states[1][part].keys()
        for name, t in states[0][part].items():
            torch.testing.assert_close(t, states[1][part][name], rtol=1e-4, atol=1e-5)
    assert yaml.safe_load((run / "config.yaml").read_text())["batch_size"] == 7


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_stops_all_after_the_same_step(struck, undisturbed, tmp_path, rank):
    options = [*NINE, "--outdir", tmp_path / "runs"]
    result = struck("SIGTERM", rank, 4, *options)
    assert result.returncode != 0
    (run,) = (tmp_path / "runs").iterdir()
    *_, last = sorted(p.name for p in (run / "checkpoints").iterdir())
    step = int(last[5:11])
    assert 4 <= step < 9
    assert sentences(result) == [f"stopped at step {step}; go on with --resume {run}"]
    assert torchrun(*options, "--resume", "latest").returncode == 0
    assert generator(run) == generator(undisturbed[0])


MEASURING = """
import signal, sys
from datgan_fast import train
from datgan_fast.training import trainer
measure = trainer.Trainer.evaluate
trainer.Trainer.evaluate = lambda self: (signal.raise_signal(signal.SIGTERM), measure(self))
sys.exit(train.main(sys.argv[1:]))
"""


def test_an_evaluation_that_a_signal_ends_is_made_up_for(tmp_path):
    (tmp_path / "child.py").write_text(MEASURING)
    options = [*NINE, "--dataset", "ring", "--eval-every", "4", "--outdir", tmp_path / "runs"]
    result = torchrun(*options, child=(tmp_path / "child.py",))
    (run,) = (tmp_path / "runs").iterdir()
    assert sentences(result) == [f"stopped at step 4; go on with --resume {run}"]
    assert not (run / "metrics.jsonl").exists()
    assert torchrun(*options, "--resume", "latest").returncode == 0
    assert {json.loads(line)["step"] for line in (run / "metrics.jsonl").open()} == {4, 8, 9}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all(struck, undisturbed, tmp_path, rank):
    options = [*NINE, "--outdir", tmp_path / "runs"]
    begun = time.monotonic()
    result = struck("SIGKILL", rank, 5, *options)
    assert result.returncode != 0
    assert time.monotonic() - begun < 120  # it would wait for a day
    (run,) = (tmp_path / "runs").iterdir()
    last = run / "checkpoints" / "step-000003.pt"
    why = f"another process ended, in step 5 or after it; the last good checkpoint is {last}"
    assert sentences(result) == ([why] if rank else [])
    resumed = torchrun(*options, "--resume", run)
    assert resumed.returncode == 0
    assert generator(run) == generator(undisturbed[0])


def test_a_process_that_fails_says_why(struck, tmp_path):
    result = struck("memory", 1, 2, *NINE, "--outdir", tmp_path / "runs")
    said = sentences(result)
    assert len(said) == 2
    assert "out of memory; use a smaller --batch-size, --width or --image-size" in said
    assert "another process ended, in step 2 or after it; there is no checkpoint yet" in said


def test_a_restarted_command_goes_on_with_its_own_run(struck, undisturbed, tmp_path):
    (tmp_path / "runs" / "00007-another").mkdir(parents=True)
    (tmp_path / "runs" / "00007-another" / "config.yaml").write_text("{}")  # begun by somebody else
    result = struck("SIGKILL", 1, 5, *NINE, "--outdir", tmp_path / "runs", restarts=1)
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "runs").glob("00008-*")
    assert "steps 3 to 9" in (run / "log.txt").read_text()
    assert generator(run) == generator(undisturbed[0])


@pytest.mark.parametrize(
    ("options", "what"),
    [(["--batch-size", "2"], "--batch-size 2: must be 3 or more"), (["--eps", "-1"], "--eps -1.0: must be")],
)
def test_a_wrong_option_is_said_once(tmp_path, options, what):
    result = torchrun(*NINE, *options, "--outdir", tmp_path / "runs", count=3)
    (said,) = sentences(result)
    assert what in said
    assert not (tmp_path / "runs").exists()


def workers(launcher):
    """The processes that it has started, as far as they have begun."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True).stdout
    return [int(pid) for pid in listed.split()]


def reached(outdir):
    """The newest checkpoints of the runs."""
    return sorted(path.name for path in outdir.glob("*/checkpoints/step-*.pt"))[-1:]


def test_kills_at_random_moments(tmp_path):
    """A run that torchrun starts again after each is the undisturbed one. DATGAN_FAST_KILLS: how many there are, of which every
    third comes whenever it comes, perhaps while the processes begin, and the others while they train."""
    kills, moments = int(os.environ.get("DATGAN_FAST_KILLS", "2")), random.Random()
    options = [*OPTIONS, "--steps", 100 * (kills + 1), "--save-every", "4"]
    assert torchrun(*options, "--outdir", tmp_path / "undisturbed").returncode == 0
    killed = tmp_path / "killed"
    with (tmp_path / "said.txt").open("w") as said:
        launcher = command(*options, "--outdir", killed, restarts=kills)
        launched = subprocess.Popen(launcher, env=environment(), stdout=said, stderr=said)
    for kill in range(kills):
        before = reached(killed)
        while kill % 3 < 2 and reached(killed) == before:
            assert launched.poll() is None
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 10 if kill % 3 == 2 else 1))
        while not (found := workers(launched.pid)):  # between two attempts
            time.sleep(0.05)
        os.kill(moments.choice(found), signal.SIGKILL)
    assert launched.wait(300) == 0, (tmp_path / "said.txt").read_text()
    (undisturbed,) = (tmp_path / "undisturbed").iterdir()
    run = max(killed.iterdir())  # an earlier one may be a folder without a configuration
    assert generator(run) == generator(undisturbed)
    assert (run / "log.txt").read_text().count("steps 0 to") <= 1 + (kills + 1) // 3  # the others went on
