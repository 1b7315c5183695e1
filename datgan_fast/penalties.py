"""Lipschitz penalties of the baselines: each factory returns a callable (discriminator, x_real, x_fake) -> 0-d tensor.

Norms are per image, random numbers are drawn per image on the images' device, and square roots have gradient 0 at 0, so that
a penalty at a constant discriminator gives no NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .reference import Penalty, _as_float, image_norm, logits_of


def _column(values: Tensor, images: Tensor) -> Tensor:
    return values.view(-1, *[1] * (images.dim() - 1))


def _input_gradient(discriminator: nn.Module, x: Tensor) -> Tensor:
    """d sum(D(x)) / dx with its graph, so that it can be differentiated again."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(logits_of(discriminator, x).sum(), x, create_graph=True)
    return gradient


def gradient_penalty(weight: float = 10.0, one_sided: bool = False) -> Penalty:
    """WGAN-GP, weight * mean (||grad D(x_hat)|| - 1)^2; one_sided: WGAN-LP, weight * mean max(0, ||grad D(x_hat)|| - 1)^2.

    x_hat = alpha x_real + (1 - alpha) x_fake with one alpha ~ U[0, 1] per image; of unequal batches the first min(m, n)
    images of each are paired. Sources: Gulrajani et al. (2017), Eq. 3; Petzka et al. (2018), Eq. 8.
    """

    def penalty(discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        pairs = min(len(x_real), len(x_fake))
        alpha = _column(torch.rand(pairs, device=x_real.device, dtype=torch.float32), x_real).to(x_real.dtype)
        x_hat = x_fake[:pairs].detach() + alpha * (x_real[:pairs].detach() - x_fake[:pairs].detach())
        excess = image_norm(_input_gradient(discriminator, x_hat)) - 1
        if one_sided:
            excess = excess.clamp(min=0)
        return weight * (excess**2).mean()

    return penalty


def adversarial_lipschitz(
    weight: float = 10.0,
    *,
    power_iterations: int = 1,
    xi: float = 10.0,
    radius: tuple[float, float] = (0.1, 10.0),
    clip_min: float | None = -1.0,
    clip_max: float | None = 1.0,
) -> Penalty:
    """WGAN-ALP: weight * mean max(0, |D(X) - D(X')| / max(||X - X'||, 1e-10) - 1)^2, gradients through both D.

    X is real and generated images together; X' = clip(X + e d), e ~ U[radius] per image, d the direction in which D changes
    most, found by power iteration from random noise with finite difference xi, and constant. The distance is taken after
    the clip. Source: Terjek (2020), "Adversarial Lipschitz Regularization", Eq. 13-15 and appendix.
    """

    def unit(d: Tensor) -> Tensor:
        return d / _column(image_norm(d).clamp(min=1e-10), d).to(d.dtype)

    def clip(x: Tensor) -> Tensor:
        return x if clip_min is None and clip_max is None else x.clamp(clip_min, clip_max)

    def penalty(discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        x = torch.cat([x_real.detach(), x_fake.detach()])
        d = unit(torch.rand_like(x) - 0.5)
        for _ in range(power_iterations):
            d.requires_grad_()
            with torch.no_grad():
                logits = logits_of(discriminator, x)
            change = (logits - logits_of(discriminator, clip(x + xi * d))).abs().mean()
            (gradient,) = torch.autograd.grad(change, d)
            d = unit(gradient)
        e = torch.empty(len(x), device=x.device, dtype=torch.float32).uniform_(*radius)
        x_adv = clip(x + _column(e, x).to(x.dtype) * d.detach())
        distance = image_norm(x - x_adv).clamp(min=1e-10)
        slope = (logits_of(discriminator, x) - logits_of(discriminator, x_adv)).abs() / distance
        return weight * ((slope - 1).clamp(min=0) ** 2).mean()

    return penalty


def r1(gamma: float = 10.0) -> Penalty:
    """Zero-centred penalty on real images, gamma / 2 * mean ||grad D(x_real)||^2 (Mescheder et al. 2018, Eq. 9)."""

    def penalty(discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        gradient = _input_gradient(discriminator, x_real)
        return gamma / 2 * _as_float(gradient).flatten(1).square().sum(1).mean()

    return penalty


def total(*penalties: Penalty) -> Penalty | None:
    """The sum of several penalties; None for none."""
    if not penalties:
        return None

    def penalty(discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        values = [p(discriminator, x_real, x_fake) for p in penalties]
        return torch.stack(values).sum()

    return penalty
