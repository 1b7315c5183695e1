"""The restated official method that benchmarks compare with: its forwards, its gradients and its penalty by hand."""

import pytest
import torch
from torch import nn

import datgan_fast as dat
from datgan_fast.method.penalties import gradient_penalty
from datgan_fast.training.baselines import BASELINES
from official_method import OfficialMethod

pytestmark = pytest.mark.usefixtures("one_thread")


def official(**options):
    return OfficialMethod(dat.TrainConfig(batch_size=4, z_dim=8, width=4, device="cpu", **options))


class Linear(nn.Module):
    """D(x) = w . x, so that every gradient is known."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return x.flatten(1) @ self.weight


def images(count):
    return torch.rand(count, 1, 16, 16) * 1.8 - 0.9


@pytest.mark.parametrize("use_dat", [True, False], ids=["dat", "plain"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_official_method_trains_both_networks(baseline, use_dat):
    method = official(baseline=baseline, dat=use_dat)
    before = [
        [p.detach().clone() for p in network.parameters()] for network in (method.generator, method.discriminator)
    ]
    method.train_step()
    assert all(torch.isfinite(torch.tensor(loss)) for loss in method.losses.values())
    for network, old in zip((method.generator, method.discriminator), before, strict=True):
        assert any(not torch.equal(p, q) for p, q in zip(network.parameters(), old, strict=True))


@pytest.mark.parametrize(
    ("baseline", "use_dat", "forwards"),
    [("dcgan", True, 6), ("wgan", True, 6), ("wgan-gp", True, 6), ("wgan-lp", True, 7), ("wgan", False, 2)],
)
def test_official_method_makes_six_forwards(baseline, use_dat, forwards):
    method = official(baseline=baseline, dat=use_dat)
    method.discriminator = Linear(torch.randn(256))
    method.discriminator_loss(images(4), images(4))
    assert len(method.discriminator.seen) == forwards


def test_official_method_by_hand():
    method = official(baseline="wgan-gp", eps=3.0)
    w, real, fake = torch.randn(256), images(4), images(4)
    method.discriminator = Linear(w.clone())
    loss = method.discriminator_loss(real, fake)
    loss.backward()

    # |mean w.real - mean w.fake| moves every real image by sign * w / m and every generated one by the opposite
    shift = torch.sign((real.flatten(1) @ w).mean() - (fake.flatten(1) @ w).mean()) * w.view(1, 16, 16) / 4
    adv_real, adv_fake = (real - 3 * shift).clamp(-1, 1), (fake + 3 * shift).clamp(-1, 1)
    *_, seen_real, seen_fake = method.discriminator.seen
    torch.testing.assert_close(seen_real, adv_real)
    torch.testing.assert_close(seen_fake, adv_fake)
    difference = (adv_fake.mean(0) - adv_real.mean(0)).flatten()  # perturbed images only, and no penalty
    torch.testing.assert_close(loss.detach(), difference @ w)
    torch.testing.assert_close(method.discriminator.weight.grad, difference)


@pytest.mark.parametrize("baseline", ["wgan-gp", "wgan-lp"])
def test_official_method_keeps_the_penalty_without_dat(baseline):
    method = official(baseline=baseline, dat=False)
    w, real, fake = 2 * torch.randn(256), images(4), images(4)  # a slope above 1, which both penalties punish
    method.discriminator = Linear(w)
    penalty = gradient_penalty(10.0)(method.discriminator, real, fake)
    expected = (fake.flatten(1) @ w).mean() - (real.flatten(1) @ w).mean() + penalty
    torch.testing.assert_close(method.discriminator_loss(real, fake), expected)
