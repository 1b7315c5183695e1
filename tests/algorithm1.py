"""One step of Algorithm 1 in float64 autograd, as the paper writes it, and what the tests of the step share."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from networks import DISCRIMINATORS, images

M, N = 6, 4  # unequal on purpose
ROUNDING = {torch.float64: 1e-11, torch.float32: 5e-6}  # error of a gradient relative to its norm
FUSED = [pytest.param(True, id="fused"), pytest.param(False, id="reference")]

each_discriminator = pytest.mark.parametrize("name", DISCRIMINATORS)
each_path = pytest.mark.parametrize("fused", FUSED)

G1 = {
    "vanilla": lambda t: F.logsigmoid(t),
    "fgan": lambda t: -torch.exp(-t),
    "wasserstein": lambda t: t,
    "hinge": lambda t: torch.where(t < 1, t - 1, 0),
    "least_squares": lambda t: -((t - 1) ** 2),
    "relativistic": lambda t: t,
}
G2 = {
    "vanilla": lambda t: F.logsigmoid(-t),
    "fgan": lambda t: 1 - t,
    "wasserstein": lambda t: -t,
    "hinge": lambda t: torch.where(t > -1, -t - 1, 0),
    "least_squares": lambda t: -(t**2),
    "relativistic": lambda t: -t,
}
# What D minimises, of losses that compare the scores of both batches.
LOSSES = {"relativistic": lambda r, f: -F.logsigmoid(r - f).mean()}


def discriminator_loss(r, f, objective):
    if objective in LOSSES:
        return LOSSES[objective](r, f)
    return -(G1[objective](r).mean() + G2[objective](f).mean())


def attack_objective(r, f, target_r, target_f, objective, formulation):
    g1, g2 = G1[objective], G2[objective]
    if formulation == "eq10":
        return (g1(r) - g1(target_f).mean()).abs().sum() + (g2(f) - g2(target_r).mean()).abs().sum()
    if formulation == "alg1":
        return (g2(r) - g2(target_f.mean())).abs().sum() + (g1(f) - g1(target_r.mean())).abs().sum()
    return (r.mean() - target_f.mean()).abs() + (f.mean() - target_r.mean()).abs()


def moved(x, gradient, size, norm):
    if norm == "linf":
        return x - size * gradient.sign()
    if norm == "clamp":
        return x - size * gradient.clamp(-1, 1)
    if norm == "l2":
        gradient = gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
    return x - size * gradient


def assert_cut(x, adv, eps):
    """Norm clamp was at work on both of its bounds, and not on all elements."""
    moved = torch.cat([(t.double() - a).flatten() / eps for t, a in zip(x, adv, strict=True)])
    assert moved.min() == pytest.approx(-1) and moved.max() == pytest.approx(1)
    assert (moved.abs() < 0.9).any()


def into_ball(x, center, eps, norm):
    if norm == "linf":
        return center + (x - center).clamp(-eps, eps)
    if norm == "l2":
        length = (x - center).flatten(1).norm(dim=1)[:, None, None, None]
        return torch.where(length > eps, center + (x - center) * eps / length, x)
    return x


@contextmanager
def as_it_was(discriminator, *names):
    """Puts the buffers whose names contain one of these (default: all) back."""
    before = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    yield
    for name, value in before.items():
        if not names or any(part in name for part in names):
            discriminator.get_buffer(name).data.copy_(value)


def rest_spectral_norms(discriminator, after_an_iteration):
    """SNGAN's one power iteration, by a forward in training mode; then the norms rest."""
    spectral = [
        m
        for m in discriminator.modules()
        if hasattr(m, "weight_u") or type(m).__name__ == "_SpectralNorm"  # the old and the new kind
    ]
    if spectral and after_an_iteration:
        with torch.no_grad(), as_it_was(discriminator, "running", "num_"):
            discriminator(images(2, 9, torch.float64))
    for m in spectral:
        m.training = False


def algorithm1(
    discriminator,
    x_real,
    x_fake,
    *,
    eps=1.0,
    objective="vanilla",
    formulation="eq10",
    norm="none",
    lambda_clean=1.0,
    lambda_adv=1.0,
    steps=1,
    alpha=None,
    clip_min=-1.0,
    clip_max=1.0,
    power_iteration=True,
):
    """One step of Algorithm 1 on a float64 discriminator, as the paper writes it."""
    rest_spectral_norms(discriminator, power_iteration)
    clean = [x.double().requires_grad_() for x in (x_real, x_fake)]
    r, f = (discriminator(x).flatten() for x in clean)
    target = r.detach(), f.detach()
    adv, logits = clean, (r, f)
    for step in range(steps):
        if formulation == "batch_mean":  # |mean r - mean f| of the images as they are now
            target = tuple(t.detach() for t in logits)
        attack = attack_objective(*logits, *target, objective, formulation)
        gradients = torch.autograd.grad(attack, adv, retain_graph=True)
        adv = [moved(x.detach(), g, alpha or eps, norm) for x, g in zip(adv, gradients, strict=True)]
        if steps > 1:
            adv = [into_ball(x, c.detach(), eps, norm) for x, c in zip(adv, clean, strict=True)]
        adv = [x.clamp(clip_min, clip_max).requires_grad_() for x in adv]
        if step + 1 < steps:
            with as_it_was(discriminator):
                logits = [discriminator(x).flatten() for x in adv]
    input_gradients = torch.autograd.grad(r.sum() + f.sum(), clean, retain_graph=True)
    loss_clean = discriminator_loss(r, f, objective)
    loss_adv = torch.zeros(())
    if lambda_adv:
        r_adv, f_adv = (discriminator(x.detach()).flatten() for x in adv)
        loss_adv = discriminator_loss(r_adv, f_adv, objective)
    loss = lambda_clean * loss_clean + lambda_adv * loss_adv
    loss.backward()
    return SimpleNamespace(
        adv=[x.detach() for x in adv],
        loss=loss.detach(),
        loss_clean=loss_clean.detach(),
        loss_adv=loss_adv.detach(),
        logits=(r.detach(), f.detach()),
        input_grad_norm=torch.cat([g.flatten(1).norm(dim=1) for g in input_gradients]),
        gradient=gradient_of(discriminator),
        buffers=buffers_of(discriminator),
    )


def each_sides_signs_agree(logits, objective="vanilla"):
    """Whether eq10 pushes all of a side's images the same way."""
    (r, f), g1, g2 = logits, G1[objective], G2[objective]
    return [len((g(t) - g(other).mean()).sign().unique()) == 1 for g, t, other in ((g1, r, f), (g2, f, r))]


def gradient_of(discriminator):
    return torch.cat([p.grad.flatten().double() for p in discriminator.parameters() if p.grad is not None])


def buffers_of(discriminator):
    return {name: buffer.double() for name, buffer in discriminator.named_buffers()}


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


def batches(dtype=torch.float32):
    return images(M, 1, dtype), images(N, 2, dtype)
