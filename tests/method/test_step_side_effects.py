"""What a discriminator step changes beyond its result: gradients are added, all else stays as it was."""

import pytest
import torch
from torch import nn

import datgan_fast as dat
from algorithm1 import M, N, batches, each_discriminator, each_path, gradient_of
from networks import build, images

pytestmark = pytest.mark.usefixtures("one_thread", "merging")


@pytest.mark.parametrize("name", ["conv", "BatchNorm"])
@each_path
def test_gradients_accumulate(name, fused):
    discriminator = build(name)
    dat.discriminator_step(discriminator, *batches(), eps=1.0, fused=fused)
    once = gradient_of(discriminator)
    before = 3 * torch.ones_like(once)
    for p, value in zip(
        discriminator.parameters(), before.split([p.numel() for p in discriminator.parameters()]), strict=True
    ):
        p.grad = value.view_as(p).float()
    dat.discriminator_step(discriminator, *batches(), eps=1.0, fused=fused)
    torch.testing.assert_close(gradient_of(discriminator), before + once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["conv", "BatchNorm"])
@each_path
def test_frozen_parameters_get_no_gradient(name, fused):
    whole, frozen = build(name), build(name)
    frozen[0].requires_grad_(False)
    for discriminator in (whole, frozen):
        dat.discriminator_step(discriminator, *batches(), eps=1.0, fused=fused)
    for (key, p), q in zip(frozen.named_parameters(), whole.parameters(), strict=True):
        if key.startswith("0."):
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, q.grad)


@each_path
def test_images_get_no_gradient_and_stay_as_they_are(fused):
    x = [t.requires_grad_() for t in batches()]
    dat.discriminator_step(build("conv"), *x, eps=1.0, fused=fused)
    for t, original in zip(x, batches(), strict=True):
        assert t.grad is None
        assert torch.equal(t, original)


@each_path
def test_no_gradient_flows_into_the_generator(fused):
    generator = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh())
    dat.discriminator_step(build("conv"), images(M, 1), generator(images(N, 2)), eps=1.0, fused=fused)
    assert generator[0].weight.grad is None


@each_discriminator
@each_path
def test_training_modes_survive(name, fused):
    discriminator = build(name)
    before = [m.training for m in discriminator.modules()]
    dat.discriminator_step(discriminator, *batches(), eps=1.0, fused=fused)
    assert [m.training for m in discriminator.modules()] == before


@pytest.mark.parametrize("name", ["conv", "BatchNorm", "dropout", "minibatch stddev"])
def test_both_paths_use_random_numbers_alike(name):
    states = []
    for fused in (True, False):
        discriminator = build(name)
        torch.manual_seed(3)
        dat.discriminator_step(discriminator, *batches(), eps=1.0, fused=fused)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
