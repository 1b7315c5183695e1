"""Who else is told of a run: TensorBoard, the trackers of --loggers, loggers of one's own; and that none of them can end it."""

import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

import datgan_fast as dat
from datgan_fast.errors import ConfigError
from datgan_fast.training import loggers
from datgan_fast.training.run_folder import RunFolder
from train_runs import run_train

SMALL = {"device": "cpu", "width": 4, "z_dim": 8, "batch_size": 8, "log_every": 2, "sample_every": 2, "eval_every": 0}


class Told:
    """Notes what it is told, and raises in the call of this name."""

    def __init__(self, raises=""):
        self.calls, self._raises = [], raises

    def __getattr__(self, name):
        if name not in ("begin", "scalars", "images", "close"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append((name, *arguments))
            if name == self._raises:
                raise ConnectionError("the network\nis gone")

        return call


def fit(tmp_path, *told, steps=4, **options):
    config = dat.TrainConfig(**SMALL, steps=steps, outdir=str(tmp_path), **options)
    return dat.Trainer(config, loggers=told).fit()


def test_a_logger_of_ones_own_is_told_everything(tmp_path):
    told = Told()
    run = fit(tmp_path, told, dataset="ring", loggers="none")
    names = [name for name, *_ in told.calls]
    assert (names[0], names[-1]) == ("begin", "close")
    assert told.calls[0][2:] == (run.path, 0) and told.calls[0][1].dataset == "ring"
    lines = [json.loads(line) for line in (run.path / "stats.jsonl").read_text().splitlines()]
    scalars = [call[1:] for call in told.calls if call[0] == "scalars"]
    assert [(step, group) for step, group, _ in scalars] == [(2, "train"), (4, "train")]
    assert [{"step": step, **values} for step, _, values in scalars] == lines
    assert [call[1:] for call in told.calls if call[0] == "images"] == run.samples()
    assert not (run.path / "tensorboard").exists()


@pytest.mark.parametrize("raises", ["begin", "scalars", "images", "close"])
def test_a_logger_that_fails_is_left_out_with_one_warning(tmp_path, raises):
    def run(several):
        several.begin(None, tmp_path, 0)
        for step in (1, 2):
            several.scalars(step, "train", {})
            several.images(step, tmp_path)
        several.close()

    told, other = Told(raises), Told()
    with pytest.warns(RuntimeWarning, match="goes on without Told: the network is gone") as warned:
        run(loggers.Loggers([told, other]))
    assert len(warned) == 1
    names = [name for name, *_ in told.calls]
    assert names.count(raises) == (2 if raises == "close" else 1) and names[-1] == "close"
    assert [name for name, *_ in other.calls] == ["begin", *["scalars", "images"] * 2, "close"]


def test_a_run_goes_on_without_a_logger_that_fails(tmp_path):
    with pytest.warns(RuntimeWarning, match="goes on without Told"):
        run = fit(tmp_path, Told("scalars"), dataset="ring", loggers="none")
    assert (run.path / "progress.gif").exists()


def test_a_folder_whose_name_is_no_utf_8_is_done_without_tensorboard(tmp_path):
    outdir = tmp_path / "l\udcffufe"
    with pytest.warns(RuntimeWarning, match="without TensorBoard: its files need a folder whose name is text in UTF-8"):
        run = fit(outdir, dataset="ring")
    assert {"curves.png", "index.html", "generator.safetensors"} <= {p.name for p in run.path.iterdir()}
    assert not (run.path / "tensorboard").exists()


@pytest.fixture
def tracker(monkeypatch):
    """A module with the functions of wandb and trackio, which notes their calls; as both of them."""
    calls = []
    module = SimpleNamespace(
        init=lambda **options: calls.append(("init", options)),
        log=lambda values, step: calls.append(("log", step, values)),
        Image=lambda path: f"image {path}",
        finish=lambda: calls.append(("finish",)),
    )
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_goes_on_with_a_resumed_run(tmp_path, tracker, name):
    options = ("--dataset", "ring", "--steps", "4", "--loggers", name, "--sample-every", "4", "--eval-every", "0")
    assert run_train(tmp_path, *options) == 0
    (kind, first), *rest = tracker
    assert kind == "init" and (first["project"], first["resume"]) == ("datgan-fast", "allow")
    assert first["config"]["loggers"] == name and "00000-dcgan-dat-ring" in first["name"]
    (run,) = tmp_path.iterdir()
    samples = run / "samples"
    assert [call[:2] for call in rest] == [("log", 0), ("log", 2), ("log", 4), ("log", 4), ("finish",)]
    assert rest[0][2] == {"samples": f"image {samples / 'step-000000.png'}"}
    assert {"train/loss_d", "train/wasserstein", "train/seconds"} <= set(rest[1][2])
    tracker.clear()
    assert run_train(tmp_path, "--resume", str(run), "--steps", "6", "--eval-every", "0") == 0
    again = tracker[0][1]
    assert {**again, "config": 0} == {**first, "config": 0}  # the same name and id
    assert [call[1] for call in tracker if call[0] == "log" and "samples" not in call[2]] == [6]


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("wand", "--loggers wand: must be of tensorboard, wandb, trackio, with commas between, or none"),
        ("tensorboard,", "--loggers tensorboard,: must be of "),
        ("tensorboard,trackio", "--loggers trackio: cannot be imported .*; pip install trackio"),
    ],
)
def test_what_cannot_be_told_is_refused_first(tmp_path, monkeypatch, typed, sentence):
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=sentence):
        dat.TrainConfig(loggers=typed, outdir=str(tmp_path / "runs")).resolved()


def test_what_was_not_asked_for_is_not_imported(monkeypatch):
    for name in ("wandb", "trackio", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    dat.TrainConfig(loggers="none").resolved()


def test_tensorboard_has_scalars_and_pictures_once(tmp_path):
    """A resumed run's later steps take the place of those that were logged before."""
    from tensorboard.backend.event_processing import event_accumulator

    config = dat.TrainConfig(**SMALL, dataset="ring", steps=4, outdir=str(tmp_path)).resolved()
    run = RunFolder.create(config)
    for begins, value in ((0, 1.0), (2, 2.0)):
        run.watched_by([loggers.TensorBoard()], config, begins)
        for step in range(begins + 1, 5):
            run.statistics({"step": step, "loss_d": value, "not a number": None})
        run.close()
    found = event_accumulator.EventAccumulator(str(run.path / "tensorboard"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found.Reload()
    assert found.Tags()["scalars"] == ["train/loss_d"]
    assert [(e.step, e.value) for e in found.Scalars("train/loss_d")] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_the_pages_example_runs(tmp_path, capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / "seeing.md").read_text(encoding="utf-8")
    example = page.partition("```python\n")[2].partition("```")[0]
    small = f"dataset='ring', width=4, steps=2, log_every=1, eval_every=0, loggers='none', outdir={str(tmp_path)!r}"
    exec(example.replace("steps=1000", small), {})
    assert "1 train {'loss_d': " in capsys.readouterr().out
