"""The train command as a user meets it: options, run folder, errors."""

import io
import json
import sys

import pytest
import torch
import yaml
from PIL import Image

from datgan_fast import TrainConfig, files, train
from datgan_fast.cli import run_command
from datgan_fast.training.option_values import flag
from datgan_fast.training.options import KINDS
from train_runs import run_train


@pytest.fixture
def no_training(monkeypatch):
    """A run that gets as far as training has accepted what it should have refused."""

    def fail(*args):
        raise AssertionError("training began")

    monkeypatch.setattr(train.Trainer, "train_step", fail)


BAD_VALUES = {
    "lr_schedule": ["cosine"],
    "inception_weights": ["nowhere.pth"],
    "loggers": ["wand", ""],
    "baseline": ["gan", ""],
    "objective": ["bce"],
    "formulation": ["eq9"],
    "eps": ["-1", "nan", "inf", "big"],
    "norm": ["l1"],
    "steps_attack": ["0", "1.5"],
    "alpha": ["-0.1", "x"],
    "lambda_clean": ["-1", "nan"],
    "lambda_adv": ["-1", "one"],
    "penalty_weight": ["-1", "ten"],
    "penalty_on": ["perturbed", ""],
    "clamp": ["0", "-0.01"],
    "r1": ["-1", "much"],
    "r2": ["-1", "much"],
    "r1_approximate": ["-1", "much"],
    "dataset": ["imagenet"],
    "background": ["purplish", "1,2", "1,2,x", ""],
    "n_images": ["-1", "x", "999999"],
    "augment": ["ada"],
    "classes": ["-1", "x", "3"],
    "image_size": ["7", "20", "24", "2048", "big"],
    "channels": ["2", "rgb"],
    "architecture": ["stylegan"],
    "width": ["0", "wide", "99999999999999999"],
    "z_dim": ["0", "x", "99999999999999"],
    "ema": ["1", "-0.1", "x"],
    "steps": ["0", "-5", "many", "1e3"],
    "batch_size": ["1", "0", "x", "999999999999999999"],
    "n_dis": ["0", "x"],
    "optimizer": ["sgd"],
    "lr": ["0", "-1", "nan", "fast"],
    "lr_g": ["0", "x"],
    "lr_d": ["-1", "x"],
    "beta1": ["1", "-0.1", "x"],
    "beta2": ["1", "x"],
    "precision": ["fp64"],
    "penalty_precision": ["fp16", "half"],
    "device": ["tpu", "cuda:99", "cuda:x", "cuda:\u00b2"],
    "backend": ["numpy"],
    "name": ["a/b", "", ".hidden", "n" * 300, "two words"],
    "seed": ["-1", "0x1", "9223372036854775808"],
    "init_from": ["no-such-file.pt", "no-such-file.safetensors"],
    "log_every": ["0", "x"],
    "sample_every": ["0", "x"],
    "save_every": ["0", "x"],
    "eval_every": ["-1", "x"],
    "config": ["no-such-file.yaml", "config.ini"],
    "resume": ["no-such-run"],
}
# Options whose values are checked by tests of their own below, and switches, which have no value.
NO_VALUE = {name for name, kind in KINDS.items() if kind is bool} | {"dry_run", "help"}
TESTED_BELOW = {"data_dir", "outdir"}


def test_every_option_has_bad_values():
    options = {action.dest for action in train.build_parser()._actions}
    assert options == set(BAD_VALUES) | NO_VALUE | TESTED_BELOW


NEEDS = {"inception_weights": pytest.mark.needs("torch_fidelity")}


@pytest.mark.parametrize(
    ("option", "value"),
    [pytest.param(o, v, marks=NEEDS.get(o, ())) for o, values in BAD_VALUES.items() for v in values],
)
def test_bad_value_is_one_sentence_and_exit_code_2(tmp_path, capsys, no_training, option, value):
    assert run_train(tmp_path / "runs", f"{flag(option)}={value}") == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert flag(option) in complaint
    assert value in complaint
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--dataset", "mnist", "--data-dir", "nowhere"],
        ["--dataset", "cifar10", "--data-dir", "nowhere"],
        ["--dataset", "folder", "--data-dir", "nowhere"],
        ["--random-start"],
        ["--baseline", "wgan-gp", "--batch-norm"],
        ["--cuda-graph"],
        ["--lambda-clean", "0", "--lambda-adv", "0"],
        ["--baseline", "wgan", "--saturating"],
        ["--no-such-option"],
        ["--steps"],
        ["--step", "3"],  # no abbreviations: a new option must not change what an old command means
        ["surplus"],
        ["--backend", "cuda"] if not torch.cuda.is_available() else ["--backend", "cpu", "--device", "x"],
    ],
)
def test_options_that_cannot_be_followed(tmp_path, capsys, no_training, options):
    try:
        code = run_train(tmp_path / "runs", *options)
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_outdir_that_is_a_file(tmp_path, capsys, no_training):
    (tmp_path / "runs").write_text("")
    assert run_train(tmp_path / "runs") == 2
    assert "--outdir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("c.yaml", "epsilon: 1", "epsilon"),
        ("c.toml", "epsilon = 1", "epsilon"),
        ("c.yaml", "eps: {a: 1}", "--eps"),
        ("c.yaml", "eps: [", "--config"),
        ("c.toml", "eps = ", "--config"),
        ("c.yaml", "just a text", "--config"),
        ("c.yaml", "dat: maybe", "--dat"),
        ("c.toml", "steps = 1.5", "--steps"),
    ],
)
def test_bad_config_file(tmp_path, capsys, no_training, name, text, complaint):
    (tmp_path / name).write_text(text)
    assert run_train(tmp_path / "runs", "--config", str(tmp_path / name)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [("c.yaml", "eps: 0.5\nsteps-attack: 2\ndat: false"), ("c.toml", "eps = 0.5\nsteps_attack = 2\ndat = false")],
)
def test_flags_win_over_the_config_file(tmp_path, capsys, name, text):
    (tmp_path / name).write_text(text)
    assert run_train(tmp_path / "runs", "--config", str(tmp_path / name), "--eps", "0.25", "--dry-run") == 0
    resolved = yaml.safe_load(capsys.readouterr().out.split("generator (")[0])
    assert (resolved["eps"], resolved["steps_attack"], resolved["dat"]) == (0.25, 2, False)
    assert not (tmp_path / "runs").exists()


# The README's table: objective, optimiser, learning rate, beta1, beta2, n_dis, BatchNorm, formulation, eps
BASELINES = {
    "dcgan": ("vanilla", "adam", 2e-4, 0.5, 0.999, 1, True, "alg1", 1.0),
    "wgan": ("wasserstein", "rmsprop", 5e-5, None, None, 5, False, "eq10", 10.0),
    "wgan-gp": ("wasserstein", "adam", 1e-4, 0.5, 0.9, 5, False, "eq10", 1.0),
    "wgan-lp": ("wasserstein", "adam", 1e-4, 0.5, 0.9, 5, False, "eq10", 1.0),
    "wgan-alp": ("wasserstein", "adam", 2e-4, 0.0, 0.9, 5, False, "eq10", 1.0),
}


@pytest.mark.parametrize("baseline", BASELINES)
def test_baselines(baseline):
    c = TrainConfig(baseline=baseline).resolved()
    objective, optimizer, lr, beta1, beta2, n_dis, batch_norm, formulation, eps = BASELINES[baseline]
    assert (c.objective, c.optimizer, c.lr_g, c.lr_d, c.n_dis, c.batch_norm) == (
        objective, optimizer, lr, lr, n_dis, batch_norm,
    )  # fmt: skip
    if beta1 is not None:
        assert (c.beta1, c.beta2) == (beta1, beta2)
    assert (c.formulation, c.eps, c.lambda_adv) == (formulation, eps, 1.0)
    of_the_mean = TrainConfig(baseline=baseline, formulation="batch_mean", batch_size=10).resolved()
    assert of_the_mean.eps == 10 * eps  # its gradient is divided by the batch's size
    for norm, length in (("l2", 1.0), ("linf", 0.03)):  # which divide it out again
        assert TrainConfig(baseline=baseline, formulation="batch_mean", norm=norm).resolved().eps == length
    assert TrainConfig(baseline=baseline, formulation="batch_mean", eps=3).resolved().eps == 3
    changed = TrainConfig(baseline=baseline, lr=0.5, lr_d=0.25, n_dis=3, objective="hinge").resolved()
    assert (changed.lr_g, changed.lr_d, changed.n_dis, changed.objective) == (0.5, 0.25, 3, "hinge")


def test_run_folder(tmp_path):
    for _ in range(2):
        assert run_train(tmp_path, "--steps", "5", "--sample-every", "2", "--save-every", "4") == 0
    first, second = sorted(tmp_path.iterdir())
    assert (first.name, second.name) == ("00000-dcgan-dat-digits", "00001-dcgan-dat-digits")
    files = {str(p.relative_to(first)) for p in first.rglob("*") if p.is_file() and "tensorboard" not in str(p)}
    assert files == {
        ".lock", "config.yaml", "env.json", "log.txt", "stats.jsonl", "metrics.jsonl", "curves.png", "generator.safetensors",
        "README.md", "index.html", "progress.gif", "samples/real.png",
        "samples/step-000000.png", "samples/step-000002.png", "samples/step-000004.png", "samples/step-000005.png",
        "checkpoints/step-000003.pt", "checkpoints/step-000004.pt", "checkpoints/step-000005.pt",
    }  # fmt: skip
    assert list((first / "tensorboard").iterdir())
    records = [json.loads(line) for line in (first / "stats.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [2, 4, 5]
    for record in records:
        assert record["loss_d"] == pytest.approx(
            record["loss_clean"] + record["loss_adv"] + record["penalty"], rel=1e-5
        )
        assert record["images_per_second"] > 0
        assert record["input_grad_norm"] > 0
    metrics = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    names = ["classifier_score", "classifier_frechet", "sliced_wasserstein"]
    assert [(m["step"], m["metric"]) for m in metrics] == [(step, name) for step in (3, 5) for name in names]
    assert all(m["protocol"] and m["value"] > 0 for m in metrics)
    assert TrainConfig(**yaml.safe_load((first / "config.yaml").read_text())).resolved() == TrainConfig(
        width=4, z_dim=8, batch_size=8, log_every=2, eval_every=3, steps=5, sample_every=2, save_every=4, outdir=str(tmp_path)
    ).resolved()  # fmt: skip
    environment = json.loads((first / "env.json").read_text())
    assert environment["torch"] == torch.__version__
    assert (environment["path"], environment["precision"]) == ("separate", "fp32")
    assert "statistics of their batch" in environment["reason"]
    assert environment["kernels"].startswith("cpu (")
    log = (first / "log.txt").read_text()
    assert f"discriminator steps: separate ({environment['reason']}); kernels: {environment['kernels']}" in log
    assert Image.open(first / "samples" / "step-000005.png").size[0] > 400
    # the same seed gives the same generator
    assert (first / "generator.safetensors").read_bytes() == (second / "generator.safetensors").read_bytes()


@pytest.mark.trains
def test_old_checkpoints_are_removed(tmp_path):
    assert run_train(tmp_path, "--steps", "6", "--save-every", "1") == 0
    kept = sorted(p.name for p in tmp_path.glob("*/checkpoints/*"))
    assert kept == ["step-000004.pt", "step-000005.pt", "step-000006.pt"]


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    assert run_train(tmp_path, "--steps", "4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["2/4", "4/4"]


def test_backend_from_the_environment_is_checked_first(tmp_path, capsys, no_training, monkeypatch):
    monkeypatch.setenv("DATGAN_FAST_BACKEND", "bogus")
    assert run_train(tmp_path / "runs") == 2
    assert "bogus" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_divergence_stops_the_run(tmp_path, capsys):
    assert run_train(tmp_path, "--steps", "200", "--lr", "1e30", "--log-every", "7") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not finite in step 1; there is no checkpoint yet" in error


@pytest.mark.trains
def test_divergence_names_the_last_good_checkpoint(tmp_path, capsys, monkeypatch):
    step = train.Trainer.train_step

    def poisoned(self):
        step(self)
        if self.step == 5:
            next(self.generator.parameters()).data.fill_(torch.nan)

    monkeypatch.setattr(train.Trainer, "train_step", poisoned)
    assert run_train(tmp_path, "--steps", "200", "--log-every", "50", "--save-every", "2", "--sample-every", "50") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    (run,) = tmp_path.iterdir()
    assert "loss_d, loss_clean, loss_adv and " in error
    assert f"not finite in step 6; the last good checkpoint is {run}/checkpoints/step-000004.pt;" in error
    assert not (run / "checkpoints" / "step-000006.pt").exists()


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii", write_through=True))
    assert run_command("train", lambda: print("läufe \udcff") or 0) == 0
    assert shown.getvalue() == b"l\\xe4ufe \\udcff\n"


def test_paths_that_are_no_text_are_written_as_the_bytes_they_were(tmp_path):
    files.write_text(tmp_path / "config.yaml", "outdir: l\udcc3\udca4ufe\n")
    assert (tmp_path / "config.yaml").read_bytes() == "outdir: läufe\n".encode()
