"""differentiable=True in an attack, and a generator that is trained through its perturbed images, against autograd in float64."""

import pytest
import torch
from test_differentiable import assert_same, leaves, losses_of
from torch import nn

import datgan_fast as dat
from algorithm1 import M, N, attack_objective, batches, into_ball, moved
from attack_inputs import images, logits, normal
from networks import build
from oracle import array

pytestmark = pytest.mark.usefixtures("poisoned_outputs", "one_thread")

MODULES = {"fused": dat, "reference": dat.reference}
each_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)


def generator():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 3 * 8 * 8), nn.Tanh(), nn.Unflatten(1, (3, 8, 8))).double()


@pytest.mark.parametrize("impl", ["", "reference"], ids=["kernels", "reference"])
def test_a_generator_is_trained_through_its_perturbed_images(impl):
    """Its loss on D(G(z) + delta), and the attack loss as a regulariser of both networks."""
    gradients = []
    for ours in (True, False):
        discriminator, made, real = build("conv", torch.float64), generator(), batches(torch.float64)[0]
        fake = 0.9 * made(normal(N, 5, seed=1, dtype=torch.float64))
        clean = [real.requires_grad_(), fake]
        lg = [discriminator(t).flatten() for t in clean]
        v = torch.autograd.grad(lg[0].sum() + lg[1].sum(), clean, retain_graph=True)
        if ours:
            found = dat.attack_step(*clean, *v, *lg, 20.0, differentiable=True, impl=impl)
            adv, losses = found.adv_fake, found[4:]
        else:
            losses = losses_of(*lg, "vanilla", "eq10")
            coefficient = torch.autograd.grad(losses[1], lg[1], retain_graph=True)[0]
            delta = -20.0 * coefficient.view(-1, 1, 1, 1) * v[1]
            adv = (fake + delta.detach()).clamp(-1, 1)
            assert 0 < (adv.abs() == 1).double().mean() < 0.9
        discriminator.zero_grad()
        (-discriminator(adv).mean() + 0.3 * losses[0] + 0.7 * losses[1]).backward()
        gradients.append([p.grad for p in (*made.parameters(), *discriminator.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)
    assert all(g.any() for g in gradients[0][:2])


def last_point(discriminator, clean, eps, alpha, steps, norm):
    """Where the last step of the attack ended, before the clip."""
    target, adv = None, clean
    for _ in range(steps):
        leaf = leaves(*(t.clamp(-1, 1) for t in adv))
        lg = [discriminator(t).flatten() for t in leaf]
        target = target or [t.detach() for t in lg]
        gradients = torch.autograd.grad(attack_objective(*lg, *target, "vanilla", "eq10"), leaf)
        adv = [moved(t.detach(), g, alpha, norm) for t, g in zip(leaf, gradients, strict=True)]
        if steps > 1:
            adv = [into_ball(t, c, eps, norm) for t, c in zip(adv, clean, strict=True)]
    return adv


@each_module
@pytest.mark.usefixtures("merging")
@pytest.mark.parametrize("name", ["conv", "BatchNorm, eval", "minibatch stddev"])
@pytest.mark.parametrize(
    ("norm", "eps", "alpha", "steps"),
    [
        ("none", 20.0, 20.0, 1),
        ("l2", 4.0, 4.0, 1),
        ("linf", 0.3, 0.3, 1),
        ("linf", 0.5, 0.2, 3),
        ("none", 90.0, 30.0, 3),
    ],
)
def test_adversarial_batch(module, name, norm, eps, alpha, steps):
    discriminator, made = build(name, torch.float64), generator()
    real, noise = batches(torch.float64)[0], normal(N, 5, seed=1, dtype=torch.float64)
    fake = 0.95 * made(noise)
    how = {"eps": eps, "alpha": alpha, "steps": steps, "norm": norm}
    adv = module.adversarial_batch(discriminator, real.requires_grad_(), fake, differentiable=True, **how)
    assert_same(adv, module.adversarial_batch(discriminator, real, fake, **how))
    incoming = normal(M, 3, 8, 8, seed=5, dtype=torch.float64), normal(N, 3, 8, 8, seed=6, dtype=torch.float64)
    torch.autograd.backward(adv, incoming)
    assert all(p.grad is None for p in discriminator.parameters())
    found = [real.grad, *(p.grad for p in made.parameters())]
    ends = leaves(*last_point(discriminator, [real.detach(), fake.detach()], eps, alpha, steps, norm))
    masks = torch.autograd.grad(sum(u.clamp(-1, 1).sum() for u in ends), ends)
    assert all(0 < mask.mean() < 1 for mask in masks)
    fake = 0.95 * made(noise)
    expected = [incoming[0] * masks[0], *torch.autograd.grad(fake, made.parameters(), incoming[1] * masks[1])]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@each_module
def test_a_random_start_is_part_of_the_perturbation(module):
    real, fake = leaves(*batches())
    torch.manual_seed(4)
    how = {"eps": 0.3, "norm": "linf", "random_start": True, "clip_min": None, "clip_max": None}
    adv = module.adversarial_batch(build("conv"), real, fake, differentiable=True, **how)
    torch.manual_seed(4)
    assert_same(adv, module.adversarial_batch(build("conv"), real, fake, **how))
    (adv[0].sum() + 2 * adv[1].sum()).backward()
    assert (real.grad == 1).all() and (fake.grad == 2).all()


@each_module
def test_detached_unless_asked_for(module):
    x, v = images(3, 2, 3, 8, 8)
    x, lg = leaves(*(t.clamp(-1, 1) for t in x)), leaves(*logits(3, 2))
    assert not module.perturb(x[0], v[0], 0.1).requires_grad
    assert not any(t.requires_grad for t in module.attack_step(*x, *v, *lg, 0.1))
    assert not any(t.requires_grad for t in module.adversarial_batch(build("conv"), *x, eps=0.1))
    with torch.no_grad():
        found = module.attack_step(*x, *v, *lg, 0.1, differentiable=True)
        assert not any(t.requires_grad for t in found)
        adv = module.adversarial_batch(build("conv"), *x, eps=0.1, differentiable=True)
        assert not any(t.requires_grad for t in (*adv, module.perturb(x[0], v[0], 0.1, differentiable=True)))
    plain = [t.detach() for t in x]
    assert not any(t.requires_grad for t in module.attack_step(*plain, *v, *lg, 0.1, differentiable=True)[:4])
    assert array(found.adv_real).shape == x[0].shape
