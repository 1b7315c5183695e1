"""Runs with --objective relativistic, whose generator's loss compares generated images with the iteration's last real batch."""

import copy

import pytest
import torch
from torch.nn import functional as F

import datgan_fast as dat
from datgan_fast.method.formulas import OBJECTIVES
from run_states import assert_same

pytestmark = pytest.mark.trains


def trainer(objective="relativistic", **options):
    options = {
        "batch_size": 6,
        "z_dim": 8,
        "width": 4,
        "device": "cpu",
        "precision": "fp32",
        "batch_norm": False,
        **options,
    }
    return dat.Trainer(dat.TrainConfig(objective=objective, **options))


def weights(made):
    return [
        torch.cat([p.detach().flatten() for p in getattr(made, name).parameters()]).double()
        for name in ("generator", "discriminator")
    ]


@pytest.mark.parametrize(
    "options", [{}, {"r1": 1.0, "r2": 1.0}, {"baseline": "wgan-gp"}, {"batch_norm": True, "dat": False}], ids=str
)
def test_fused_runs_follow_the_reference(options):
    runs = [trainer(fused=fused, **options) for fused in (True, False)]
    start = weights(runs[0])
    for made in runs:
        torch.manual_seed(3)
        for _ in range(20):
            made.train_step()
    for fast, slow, before in zip(*map(weights, runs), start, strict=True):
        assert (fast - slow).norm() < 1e-2 * (slow - before).norm()


def test_the_generator_sees_the_last_real_batch():
    """With weights that stand still, its loss is that of the images that the iteration has drawn last."""
    made = trainer(reuse_fakes=True, n_dis=2, lr=1e-30, r1=0.1)
    for network in (made.generator, made.discriminator):
        for p in network.parameters():
            p.data.mul_(5)  # scores that differ from image to image
    made.train_step()
    made.iteration.statistics.read()
    drawn, latents = [], []
    iteration, sample, latent = made.iteration, made.iteration.data.sample, made.iteration._latents
    iteration.data.sample = lambda: drawn.append(sample()) or drawn[-1]
    iteration._latents = lambda: latents.append(latent()) or latents[-1]
    before = [p.detach().clone() for p in made.discriminator.parameters()]
    made.train_step()
    with torch.no_grad():
        r, f = made.discriminator(drawn[-1]).flatten(), made.discriminator(made.generator(latents[-1])).flatten()
    assert len(drawn) == 2
    assert iteration.statistics.read()["loss_g"] == pytest.approx(F.softplus(-(f - r)).mean().item(), rel=1e-5)
    for p, q in zip(made.discriminator.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-6, atol=1e-6)
        assert p.requires_grad


def test_a_run_goes_on_as_it_was():
    whole, first, second = trainer(r1=1.0, r2=1.0), trainer(r1=1.0, r2=1.0), trainer(r1=1.0, r2=1.0)
    for made, steps in ((whole, 6), (first, 3)):
        torch.manual_seed(3)
        for _ in range(steps):
            made.train_step()
    state = copy.deepcopy(first.state())
    second.load_state(state)
    for _ in range(3):
        second.train_step()
    assert_same(whole.state(), second.state())


def test_a_row_with_a_loss_is_trained_with(monkeypatch):
    """By its name alone; the same formula in two rows makes the same run."""
    row = dat.Objective("mine", loss=lambda r, f: F.softplus(f - r).mean())
    monkeypatch.setitem(OBJECTIVES, "mine", row)
    runs = [trainer(objective) for objective in ("mine", "relativistic")]
    for made in runs:
        torch.manual_seed(3)
        for _ in range(2):
            made.train_step()
    assert_same(*(made.iteration.state() for made in runs))
