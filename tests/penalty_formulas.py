"""Gradient penalties by plain autograd, from the formulas: imports nothing of ours.

Each is a function (D, x_real, x_fake) -> 0-d tensor that draws what the library documents: one alpha ~ U[0, 1] per pair of
images in float32; `alp` noise in the images' dtype, then one e ~ U[0.1, 10] per image in float32.
"""

import torch


def input_gradient(discriminator, x):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(discriminator(x * 1).sum(), x, create_graph=True)[0]


def squares(gradient):
    return gradient.reshape(len(gradient), -1).square().sum(1)


def interpolates(x_real, x_fake):
    pairs = min(len(x_real), len(x_fake))
    alpha = torch.rand(pairs, dtype=torch.float32).to(x_real.dtype).view(-1, *[1] * (x_real.dim() - 1))
    return alpha * x_real[:pairs] + (1 - alpha) * x_fake[:pairs]


def gp(discriminator, x_real, x_fake, weight=10.0):
    norms = squares(input_gradient(discriminator, interpolates(x_real, x_fake))).sqrt()
    return weight * (norms - 1).square().mean()


def lp(discriminator, x_real, x_fake, weight=10.0):
    norms = squares(input_gradient(discriminator, interpolates(x_real, x_fake))).sqrt()
    return weight * (norms - 1).clamp(min=0).square().mean()


def r1(discriminator, x_real, x_fake, gamma=10.0):
    return gamma / 2 * squares(input_gradient(discriminator, x_real)).mean()


def r2(discriminator, x_real, x_fake, gamma=10.0):
    return gamma / 2 * squares(input_gradient(discriminator, x_fake)).mean()


def unit(d):
    return d / squares(d).sqrt().view(-1, *[1] * (d.dim() - 1))


def alp(discriminator, x_real, x_fake, weight=10.0):
    """Images in [-1, 1], one power iteration with a finite difference of 10."""
    x = torch.cat([x_real, x_fake])
    d = unit(torch.rand_like(x) - 0.5).requires_grad_()
    change = (discriminator(x).detach() - discriminator((x + 10 * d).clamp(-1, 1))).abs().mean()
    (d,) = torch.autograd.grad(change, d)
    e = torch.empty(len(x), dtype=torch.float32).uniform_(0.1, 10.0).to(x.dtype).view(-1, *[1] * (x.dim() - 1))
    neighbours = (x + e * unit(d)).clamp(-1, 1)
    slope = (discriminator(x) - discriminator(neighbours)).abs().flatten() / squares(x - neighbours).sqrt()
    return weight * (slope - 1).clamp(min=0).square().mean()


FORMULAS = {"gp": gp, "lp": lp, "r1": r1, "r2": r2}
