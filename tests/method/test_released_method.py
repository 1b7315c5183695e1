"""The authors' released code, restated: |mean D(x_real) - mean D(x_fake)| moves both batches, each element of its gradient cut to
[-1, 1], and the hinge loss sees the perturbed images alone. Norm clamp, batch_mean and lambda_clean 0 are that."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import datgan_fast as dat
from algorithm1 import each_path, gradient_of

pytestmark = pytest.mark.usefixtures("one_thread")

GAIN = 400.0  # what makes the cut matter: a critic of Lipschitz constant 1 has small gradients


class Block(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.first = spectral_norm(nn.Conv2d(channels, width, 3, padding=1))
        self.second = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.shortcut = spectral_norm(nn.Conv2d(channels, width, 1))

    def forward(self, x):
        return F.avg_pool2d(self.second(self.first(x.relu()).relu()), 2) + self.shortcut(F.avg_pool2d(x, 2))


class Critic(nn.Module):
    """SNGAN's ResNet in small."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(3, 6), Block(6, 8))
        self.tail = spectral_norm(nn.Linear(8, 1))

    def forward(self, x):
        return GAIN * self.tail(self.blocks(x).relu().sum((2, 3)))


def warmed_up():
    """Its singular vectors have settled, so that it does not matter how many forwards a step makes."""
    torch.manual_seed(1)
    critic = Critic().double()
    with torch.no_grad():
        for _ in range(1000):
            critic(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    return critic


def released_step(critic, real, fake, eps):
    """(adv_real, adv_fake, loss), and the critic's gradients in .grad."""
    moved = []
    for x, other in ((real, fake), (fake, real)):
        x = x.detach().requires_grad_()
        loss = (critic(x).mean() - critic(other).mean().detach()).abs()
        (gradient,) = torch.autograd.grad(loss, x)
        moved.append((x - eps * torch.clamp(gradient, -1, 1)).clamp(-1, 1).detach())
    loss = F.relu(1 - critic(moved[0])).mean() + F.relu(1 + critic(moved[1])).mean()
    loss.backward()
    return *moved, loss.detach()


@each_path
@pytest.mark.parametrize("eps", [0.2, 1.0])
def test_the_released_method(fused, eps):
    torch.manual_seed(2)
    real, fake = (torch.rand(m, 3, 8, 8, dtype=torch.float64) * 1.9 - 0.95 for m in (6, 4))
    critic, ours = warmed_up(), warmed_up()
    *adv, loss = released_step(critic, real, fake, eps)
    how = {"eps": eps, "norm": "clamp", "formulation": "batch_mean", "objective": "hinge"}
    module = dat if fused else dat.reference
    for found, expected, x in zip(module.adversarial_batch(ours, real, fake, **how), adv, (real, fake), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        cut = ((expected - x).abs() - eps).abs() < 1e-12
        assert 0.02 < cut.double().mean() < 0.9, "some elements are cut, others are not"
    record = dat.discriminator_step(ours, real, fake, lambda_clean=0, fused=fused, **how)
    torch.testing.assert_close(record.loss, loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient_of(ours), gradient_of(critic), rtol=1e-8, atol=1e-9)
