"""A row added to a table at run time is all it takes: an objective, norm, penalty, data set and metric of somebody's own are
trained with and measured by, without a line changed elsewhere. These rows are torch alone; kernels are for the built-in ones."""

import json
import math
import sys
import warnings
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import datgan_fast as dat
from datgan_fast import __main__, evaluate, sample, train
from datgan_fast.commands import COMMANDS
from datgan_fast.data.datasets import DATASETS, Dataset, EveryNth
from datgan_fast.errors import ConfigError
from datgan_fast.method.formulas import NORMS, OBJECTIVES, Norm, Objective
from datgan_fast.metrics.catalogue import METRICS, Metric
from datgan_fast.training.baselines import BASELINES, Baseline

calls: Counter[str] = Counter()


def _stripes(request):
    """24 grey images of 8 x 8 pixels: vertical stripes in a few brightnesses."""
    calls["dataset"] += 1
    bright = torch.arange(1, 25, dtype=torch.uint8).mul(10).view(-1, 1, 1, 1)
    return bright * (torch.arange(8) % 2).to(torch.uint8).expand(24, 1, 8, 8)


def _far_from_flat(weight, low, high):
    """Half the squared deviation of the scores."""

    def penalty(discriminator, x_real, x_fake):
        calls["penalty"] += 1
        return weight / 2 * discriminator(torch.cat([x_real, x_fake])).reshape(-1).float().square().mean()

    return penalty


def _mean_brightness(comparison):
    calls["metric"] += 1
    return comparison.generated.float().mean().item(), f"mean of {len(comparison.generated)} images' bytes"


@pytest.fixture
def rows(monkeypatch):
    """One new row in every table."""
    calls.clear()
    objective = Objective(
        "arctan", torch.atan, lambda t: -torch.atan(t), generator_loss=lambda f: -torch.tanh(f).mean()
    )
    norm = Norm("l1", lambda g: g / g.abs().flatten(1).sum(1).clamp(min=1e-12).view(-1, *[1] * (g.dim() - 1)), "l1 step",
                default_eps=2.0)  # fmt: skip
    dataset = Dataset(
        "stripes",
        _stripes,
        lambda request: torch.arange(24) // 12,
        defaults={"steps": 3, "width": 4, "image_size": 8, "channels": 1, "batch_size": 6, "z_dim": 5},
        held_out=EveryNth(4, "every fourth"),
        classes=2,
        epochs=2,
    )
    baseline = Baseline("arctan", "adam", 1e-3, (0.0, 0.9), 2, False, "eq10", 0.5, penalty=_far_from_flat)
    metric = Metric("brightness", "mean brightness", "images", True, _mean_brightness)
    for table, name, row in (
        (OBJECTIVES, "arctan", objective),
        (NORMS, "l1", norm),
        (DATASETS, "stripes", dataset),
        (BASELINES, "flat", baseline),
        (METRICS, "brightness", metric),
    ):
        monkeypatch.setitem(table, name, row)


TINY = ["--device", "cpu", "--log-every", "1", "--sample-every", "3", "--save-every", "3", "--eval-every", "3"]


def run(tmp_path, *options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the reference computes it
        return train.main([*options, *TINY, "--outdir", str(tmp_path)])


def test_all_of_them_in_one_run(rows, tmp_path, capsys):
    assert run(tmp_path, "--baseline", "flat", "--dataset", "stripes", "--norm", "l1") == 0, capsys.readouterr().err
    (folder,) = tmp_path.iterdir()
    assert folder.name == "00000-flat-dat-stripes"
    assert calls["dataset"] >= 1 and calls["metric"] == 1 and calls["penalty"] == 3 * 2
    (last,) = [r for r in map(json.loads, (folder / "stats.jsonl").open()) if r["step"] == 3]
    assert last["penalty"] > 0 and all(math.isfinite(last[name]) for name in ("loss_d", "loss_g", "loss_adv"))
    metrics = [r["metric"] for r in map(json.loads, (folder / "metrics.jsonl").open())]
    assert metrics == ["classifier_score", "classifier_frechet", "sliced_wasserstein", "brightness"]
    config = dat.TrainConfig(baseline="flat", dataset="stripes", norm="l1", device="cpu").resolved()
    assert (config.objective, config.eps, config.steps, config.width, config.n_dis) == ("arctan", 2.0, 3, 4, 2)
    capsys.readouterr()
    assert evaluate.main([str(folder), "--metrics", "brightness", "--n", "8", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("brightness  ")
    assert sample.main([str(folder), "--n", "4", "--out", str(tmp_path / "four.png"), "--device", "cpu"]) == 0
    assert run(tmp_path, "--resume", str(folder), "--steps", "4") == 0


@pytest.mark.parametrize("formulation", ["eq10", "alg1", "batch_mean"])
@pytest.mark.parametrize("norm", ["none", "l2", "l1"])
@pytest.mark.parametrize("fused", [True, False])
def test_an_objective_and_a_norm_follow_autograd(rows, fused, norm, formulation):
    """Against Algorithm 1 written out in float64, with the formulas of the new rows."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(12, 7), torch.nn.SiLU(), torch.nn.Linear(7, 1)
    ).double()
    x_real, x_fake = (torch.rand(n, 3, 2, 2, dtype=torch.float64) * 2 - 1 for n in (4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = dat.discriminator_step(
            network, x_real, x_fake, eps=0.3, objective="arctan", formulation=formulation, norm=norm, fused=fused
        )
    found = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    adv = []
    x = [x_real.clone().requires_grad_(), x_fake.clone().requires_grad_()]
    r, f = (network(images).flatten() for images in x)
    if formulation == "eq10":
        attack = (r.atan() - f.atan().mean().detach()).abs().sum() + (r.atan().mean().detach() - f.atan()).abs().sum()
    elif formulation == "alg1":
        attack = (r.atan() - f.mean().atan().detach()).abs().sum() + (f.atan() - r.mean().atan().detach()).abs().sum()
    else:
        attack = (r.mean() - f.mean().detach()).abs() + (f.mean() - r.mean().detach()).abs()
    for images, gradient in zip(x, torch.autograd.grad(attack, x), strict=True):
        flat = gradient.flatten(1)
        length = {"none": torch.ones(len(flat)), "l2": flat.norm(dim=1), "l1": flat.abs().sum(1)}[norm]
        adv.append((images - 0.3 * gradient / length.view(-1, 1, 1, 1)).clamp(-1, 1).detach())
    loss = 0
    for real, fake in ((x_real, x_fake), adv):
        loss = loss - (network(real).atan().mean() - network(fake).atan().mean())
    loss.backward()
    assert record.loss.item() == pytest.approx(loss.item(), rel=1e-9)
    for gradient, parameter in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-8, atol=1e-12)


def test_the_generator_learns_from_the_rows_loss(rows):
    config = dat.TrainConfig(baseline="flat", dataset="stripes", device="cpu", dat=False)
    trainer = dat.Trainer(config)
    logits = torch.randn(9)
    assert dat.reference.generator_loss(logits, "arctan").item() == pytest.approx(-logits.tanh().mean().item())
    with pytest.raises(ConfigError, match="--saturating"):
        dat.TrainConfig(objective="arctan", saturating=True).resolved()
    assert trainer.config.objective == "arctan"


def test_slopes_come_by_autograd(rows):
    t = torch.randn(20, dtype=torch.float64)
    torch.testing.assert_close(dat.reference.slope1("arctan", t), 1 / (1 + t**2))
    torch.testing.assert_close(dat.reference.slope2("arctan", t), -1 / (1 + t**2))


def test_kernels_are_for_the_built_in_rows(rows):
    logits = torch.randn(3), torch.randn(4)
    if dat.backends()["cpu"] is None:
        with pytest.raises(dat.BackendError, match="arctan"):
            dat.attack_loss(*logits, objective="arctan", impl="cpu")
        with pytest.raises(dat.BackendError, match="l1"):
            dat.perturb(torch.rand(2, 3), torch.rand(2, 3), 0.1, norm="l1", impl="cpu")
    loss, _ = dat.attack_loss(*logits, objective="arctan", impl="reference")
    assert loss.item() == pytest.approx((logits[0].atan() - logits[1].atan().mean()).abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("option", "row"),
    [("baseline", "flat"), ("objective", "arctan"), ("norm", "l1"), ("dataset", "stripes")],
)
def test_a_row_is_a_choice_as_long_as_it_is_there(rows, option, row, monkeypatch):
    dat.TrainConfig(**{option: row}, device="cpu").resolved()
    table = {"baseline": BASELINES, "objective": OBJECTIVES, "norm": NORMS, "dataset": DATASETS}[option]
    with pytest.raises(ConfigError, match=row):  # among the choices
        dat.TrainConfig(**{option: "no-such-row"}).resolved()
    monkeypatch.delitem(table, row)
    with pytest.raises(ConfigError, match=f"--{option} {row}: must be one of"):
        dat.TrainConfig(**{option: row}).resolved()


def test_a_command(monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "compare", "several runs side by side")
    monkeypatch.setitem(sys.modules, "datgan_fast.compare", SimpleNamespace(main=lambda argv: len(argv)))
    assert __main__.main(["compare", "a", "b"]) == 2
    with pytest.raises(SystemExit, match="0"):
        __main__.main(["--help"])
    assert "  compare    several runs side by side\n" in capsys.readouterr().out
