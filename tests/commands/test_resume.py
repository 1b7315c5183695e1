"""Kill and resume: a continued run is the undisturbed one; checkpoints that cannot be continued; weights alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from datgan_fast import TrainConfig, train
from datgan_fast.training.option_values import flag
from run_states import assert_same
from train_runs import TINY, run_train

ROOT = Path(__file__).resolve().parents[2]


# The child kills itself at a chosen moment, so that every moment is met exactly.
CHILD = """
import os, signal, sys, torch
from datgan_fast import files, train
from datgan_fast.training import loop, run_folder, trainer
moment, arguments = sys.argv[1], sys.argv[2:]
def die(*a, **k):
    os.kill(os.getpid(), signal.SIGKILL)
def before_step(n):
    step = trainer.Trainer.train_step
    def train_step(self):
        die() if self.step + 1 == n else step(self)
    trainer.Trainer.train_step = train_step
if moment.startswith("step"):
    before_step(int(moment[4:]))
elif moment == "config":  # the folder exists, its configuration does not
    run_folder.files.write_text = die
elif moment == "checkpoint":  # half of the second checkpoint is on the disk
    save, count = run_folder.archives.save, [0]
    def half(state, path):
        save(state, path)
        count[0] += 1
        if count[0] == 2:
            os.truncate(path, os.path.getsize(path) // 2)
            die()
    run_folder.archives.save = half
elif moment == "rename":  # the second checkpoint is whole and not yet in its place
    replace, count = os.replace, [0]
    def not_replaced(source, target):
        count[0] += str(target).endswith(".pt")
        die() if count[0] == 2 else replace(source, target)
    os.replace = not_replaced
elif moment == "generator":  # the last generator is not written
    save, count = loop.save_generator, [0]
    def not_saved(*a):
        count[0] += 1
        die() if count[0] == 3 else save(*a)
    loop.save_generator = not_saved
elif moment == "between":  # the last generator is written, its checkpoint not
    save, count = trainer.RunFolder.save_checkpoint, [0]
    def not_saved(*a):
        count[0] += 1
        die() if count[0] == 3 else save(*a)
    trainer.RunFolder.save_checkpoint = not_saved
elif moment.startswith("evaluation"):  # in the middle of one
    evaluate = trainer.Trainer.evaluate
    def not_evaluated(self):
        return die() if self.step == int(moment[10:]) else evaluate(self)
    trainer.Trainer.evaluate = not_evaluated
elif moment.startswith("metrics"):  # while they are recorded
    scalars = run_folder.RunFolder._scalars
    def not_recorded(self, group, record):
        return die() if (group, record["step"]) == ("metrics", int(moment[7:])) else scalars(self, group, record)
    run_folder.RunFolder._scalars = not_recorded
elif moment == "animation":  # half of it is on the disk
    replace = os.replace
    def not_replaced(source, target):
        die() if str(target).endswith(".gif") else replace(source, target)
    os.replace = not_replaced
elif moment == "card":
    loop.write_card = die
elif moment == "page":  # the last one, which shows both
    write_card = loop.write_card
    def then_no_page(*a):
        write_card(*a)
        loop.write_page = die
    loop.write_card = then_no_page
sys.exit(train.main(arguments))
"""


CONTINUED = [
    *TINY,
    "--deterministic",
    "--save-every",
    "3",
    "--sample-every",
    "4",
    "--baseline",
    "wgan-alp",
    "--n-dis",
    "2",
]


RESUMED = [*CONTINUED, "--steps", "9"]


def child(moment: str, *options: str) -> int:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    return subprocess.run(
        [sys.executable, "-c", CHILD, moment, *options], env=environment, capture_output=True
    ).returncode


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    outdir = tmp_path_factory.mktemp("undisturbed")
    assert child("never", *RESUMED, "--outdir", str(outdir)) == 0
    return next(outdir.iterdir())


@pytest.mark.process
@pytest.mark.parametrize(
    "moment",
    [
        *("config", "step1", "step2", "step5", "checkpoint", "rename", "generator", "between"),
        *("evaluation6", "evaluation9", "metrics6", "metrics9", "animation", "card", "page"),
    ],
)
def test_resume_after_a_kill_is_exact(tmp_path, undisturbed, deterministic, moment):
    options = [*RESUMED, "--outdir", str(tmp_path)]
    assert child(moment, *options) == -signal.SIGKILL
    assert train.main([*options, "--resume", "latest"]) == 0
    run = max(p for p in tmp_path.iterdir())
    assert (run / "generator.safetensors").read_bytes() == (undisturbed / "generator.safetensors").read_bytes()
    unlike = {"images_per_second", "seconds"}
    for name in ("stats.jsonl", "metrics.jsonl"):
        lines = [
            [{k: v for k, v in json.loads(line).items() if k not in unlike} for line in (folder / name).open()]
            for folder in (run, undisturbed)
        ]
        assert lines[0] == lines[1]
    assert not list(run.rglob(".*.tmp*"))
    assert (run / "progress.gif").read_bytes() == (undisturbed / "progress.gif").read_bytes()
    assert all(name in (run / "index.html").read_text() for name in ("progress.gif", "README.md"))
    assert (run / "README.md").is_file()


@pytest.mark.process
def test_resume_goes_on_past_the_end(tmp_path, undisturbed, deterministic):
    options = [*CONTINUED, "--outdir", str(tmp_path)]
    assert train.main([*options, "--steps", "6"]) == 0
    assert train.main([*options, "--steps", "9", "--resume"]) == 0
    (run,) = tmp_path.iterdir()
    assert (run / "generator.safetensors").read_bytes() == (undisturbed / "generator.safetensors").read_bytes()
    assert train.main([*options, "--steps", "9", "--resume", str(run)]) == 0  # nothing left to do


@pytest.mark.process
@pytest.mark.parametrize("moment", ["step2", "step5", "rename"])
def test_resume_of_a_relativistic_run_is_exact(tmp_path, deterministic, moment):
    """Its generator's loss compares its images with the iteration's real ones, which have to be the same again."""
    options = [
        *TINY,
        "--deterministic",
        "--steps",
        "7",
        "--save-every",
        "3",
        "--objective",
        "relativistic",
        "--r1",
        "1",
        "--r2",
        "1",
    ]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train.main([*options, "--outdir", str(whole)]) == 0
    assert child(moment, *options, "--outdir", str(stopped)) == -signal.SIGKILL
    assert train.main([*options, "--outdir", str(stopped), "--resume"]) == 0
    (whole,), (run,) = whole.iterdir(), [max(stopped.iterdir())]
    assert yaml.safe_load((run / "config.yaml").read_text())["objective"] == "relativistic"
    states = [torch.load(folder / "checkpoints" / "step-000007.pt", weights_only=True) for folder in (whole, run)]
    for state in states:
        state["config"].pop("outdir")
    assert_same(*states)
    assert (run / "generator.safetensors").read_bytes() == (whole / "generator.safetensors").read_bytes()


@pytest.mark.trains
def test_resume_from_a_chosen_checkpoint(tmp_path, deterministic):
    assert run_train(tmp_path, "--deterministic", "--steps", "4", "--save-every", "2") == 0
    (run,) = tmp_path.iterdir()
    before = (run / "generator.safetensors").read_bytes()
    (run / "generator.safetensors").unlink()
    assert train.main(["--resume", str(run / "checkpoints" / "step-000002.pt")]) == 0
    assert (run / "generator.safetensors").read_bytes() == before


@pytest.mark.trains
def test_resume_forgets_what_came_after_the_checkpoint(tmp_path):
    options = ["--save-every", "2", "--sample-every", "2", "--eval-every", "0"]
    assert run_train(tmp_path, "--steps", "6", *options) == 0
    (run,) = tmp_path.iterdir()
    (run / "checkpoints" / "step-best.pt").write_bytes(b"somebody's copy")
    assert train.main(["--resume", str(run / "checkpoints" / "step-000002.pt"), "--steps", "3"]) == 0
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "step-000002.pt",
        "step-000003.pt",
        "step-best.pt",
    ]
    assert max(p.name for p in (run / "samples").iterdir()) == "step-000003.png"


@pytest.mark.trains
def test_checkpoint_away_from_its_run(tmp_path, capsys):
    assert run_train(tmp_path, "--steps", "2") == 0
    copy = tmp_path / "copy.pt"
    copy.write_bytes(next(tmp_path.glob("*/checkpoints/*.pt")).read_bytes())
    capsys.readouterr()
    assert train.main(["--resume", str(copy)]) == 2
    assert str(copy) in capsys.readouterr().err


@pytest.mark.trains
def test_resume_refuses_other_options(tmp_path, capsys):
    assert run_train(tmp_path, "--steps", "2") == 0
    capsys.readouterr()
    assert run_train(tmp_path, "--steps", "4", "--eps", "0.5", "--resume") == 2
    error = capsys.readouterr().err
    assert "--eps 0.5" in error
    assert "1.0" in error


@pytest.mark.trains
@pytest.mark.parametrize(
    ("option", "was", "other"), [("penalty_precision", "fp32", "bf16"), ("penalty_on", "clean", "both")]
)
def test_resume_of_a_run_that_is_older_than_an_option(tmp_path, capsys, option, was, other):
    assert run_train(tmp_path, "--steps", "2") == 0
    (run,) = tmp_path.iterdir()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config.pop(option) == was
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert run_train(tmp_path, "--steps", "3", flag(option), was, "--resume") == 0
    assert (run / "checkpoints" / "step-000003.pt").exists()
    capsys.readouterr()
    assert run_train(tmp_path, "--steps", "4", flag(option), other, "--resume") == 2
    assert f"was started with {was}" in capsys.readouterr().err


@pytest.mark.trains
def test_resume_with_nothing_to_resume_starts_a_run(tmp_path, capsys):
    assert run_train(tmp_path, "--steps", "2", "--resume", "latest") == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*/generator.safetensors"))) == 1


@pytest.mark.trains
@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half a file"])
def test_broken_checkpoint(tmp_path, capsys, content):
    assert run_train(tmp_path, "--steps", "2") == 0
    checkpoint = next(tmp_path.glob("*/checkpoints/*.pt"))
    checkpoint.write_bytes(content)
    capsys.readouterr()
    assert train.main(["--resume", str(checkpoint), "--steps", "4"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(checkpoint) in error


@pytest.mark.trains
def test_init_from_takes_the_weights_only(tmp_path, capsys):
    assert run_train(tmp_path / "a", "--steps", "2") == 0
    (run,) = (tmp_path / "a").iterdir()
    checkpoint = next((run / "checkpoints").iterdir())
    trainer = train.Trainer(TrainConfig(width=4, z_dim=8, seed=7, init_from=str(checkpoint)))
    saved = torch.load(checkpoint, weights_only=True)
    for name in ("generator", "discriminator"):
        assert all(torch.equal(v, saved[name][k]) for k, v in getattr(trainer, name).state_dict().items())
    assert trainer.step == 0
    trainer = train.Trainer(TrainConfig(width=4, z_dim=8, init_from=str(run / "generator.safetensors")))
    stored = load_file(run / "generator.safetensors")
    assert all(torch.equal(v, stored[k]) for k, v in trainer.generator.state_dict().items())
    assert run_train(tmp_path / "b", "--width", "8", "--init-from", str(checkpoint)) == 2
    assert "--init-from" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.process
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    step = train.Trainer.train_step

    def interrupted(self):
        step(self)
        if self.step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train.Trainer, "train_step", interrupted)
    assert run_train(tmp_path, "--steps", "6") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--resume" in error
    assert [p.name for p in tmp_path.glob("*/checkpoints/*")] == ["step-000003.pt"]
    monkeypatch.setattr(train.Trainer, "train_step", step)
    assert run_train(tmp_path, "--steps", "6", "--resume") == 0
