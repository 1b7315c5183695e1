"""Lipschitz penalties of the baselines: each factory returns a callable (discriminator, x_real, x_fake) -> 0-d tensor.

Norms are per image, random numbers are drawn per image on the images' device, and square roots have gradient 0 at 0, so that
a penalty at a constant discriminator gives no NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .autograd_graph import Graph, next_number
from .formulas import Bound, as_float, clip, image_norm
from .independence import eager
from .module_state import Network
from .reference import Penalty
from .step_arguments import check_graph, check_range, images_of, logits_of


def _column(values: Tensor, images: Tensor) -> Tensor:
    return values.view(-1, *[1] * (images.dim() - 1))


def _input_gradient(network: Network, discriminator: nn.Module, x: Tensor) -> Tensor:
    """d sum(D(x)) / dx with its graph, to be differentiated again; compiled code, which cannot be, runs as Python."""
    x = x.detach().requires_grad_()
    logits, graph = _forward(discriminator, x, network.compiled)
    if graph.is_compiled():  # by a function inside, which the modules do not show
        logits, graph = _forward(discriminator, x, True)
    check_graph(graph, [x])
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient


def _forward(discriminator: nn.Module, x: Tensor, compiled: bool) -> tuple[Tensor, Graph]:
    begun = next_number()
    with eager(compiled):
        logits = logits_of(discriminator, x.clone())  # D may change what it is given
    return logits, Graph(logits, begun)


def gradient_penalty(weight: float = 10.0, one_sided: bool = False) -> Penalty:
    """WGAN-GP, weight * mean (||grad D(x_hat)|| - 1)^2; one_sided: WGAN-LP, weight * mean max(0, ||grad D(x_hat)|| - 1)^2.

    x_hat = alpha x_real + (1 - alpha) x_fake with one alpha ~ U[0, 1] per image; of unequal batches the first min(m, n)
    images of each are paired. Sources: Gulrajani et al. (2017), Eq. 3; Petzka et al. (2018), Eq. 8.
    """

    def penalty(discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        network, x_real, x_fake = images_of("penalties.gradient_penalty", discriminator, x_real, x_fake)
        pairs = min(len(x_real), len(x_fake))
        alpha = _column(torch.rand(pairs, device=x_real.device, dtype=torch.float32), x_real).to(x_real.dtype)
        x_hat = x_fake[:pairs] + alpha * (x_real[:pairs] - x_fake[:pairs])
        with torch.enable_grad():
            excess = image_norm(_input_gradient(network, discriminator, x_hat)) - 1
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
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
) -> Penalty:
    """WGAN-ALP: weight * mean max(0, |D(X) - D(X')| / max(||X - X'||, 1e-10) - 1)^2, gradients through both D.

    X is real and generated images together; X' = clip(X + e d), e ~ U[radius] per image, d the direction in which D changes
    most, found by power iteration from random noise with finite difference xi, and constant. The distance is taken after
    the clip. Source: Terjek (2020), "Adversarial Lipschitz Regularization", Eq. 13-15 and appendix.
    """

    def unit(d: Tensor) -> Tensor:
        return d / _column(image_norm(d).clamp(min=1e-10), d).to(d.dtype)

    def scores(discriminator: nn.Module, x: Tensor) -> Tensor:
        return as_float(logits_of(discriminator, x.clone()))  # D may change what it is given

    def penalty(discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        _, x_real, x_fake = images_of("penalties.adversarial_lipschitz", discriminator, x_real, x_fake)
        check_range("penalties.adversarial_lipschitz", discriminator, x_real, x_fake, clip_min, clip_max)
        x = torch.cat([x_real, x_fake])
        d = unit(torch.rand_like(x) - 0.5)
        with torch.enable_grad():
            for _ in range(power_iterations):
                d.requires_grad_()
                with torch.no_grad():
                    logits = scores(discriminator, x)
                begun = next_number()
                change = (logits - scores(discriminator, clip(x + xi * d, clip_min, clip_max))).abs().mean()
                check_graph(Graph(change, begun), [d])
                (gradient,) = torch.autograd.grad(change, d)
                d = unit(gradient)
            e = torch.empty(len(x), device=x.device, dtype=torch.float32).uniform_(*radius)
            x_adv = clip(x + _column(e, x).to(x.dtype) * d.detach(), clip_min, clip_max)
            distance = image_norm(x - x_adv).clamp(min=1e-10)
            slope = (scores(discriminator, x) - scores(discriminator, x_adv)).abs() / distance
            return weight * ((slope - 1).clamp(min=0) ** 2).mean()

    return penalty


def r1(gamma: float = 10.0) -> Penalty:
    """Zero-centred penalty on real images, gamma / 2 * mean ||grad D(x_real)||^2 (Mescheder et al. 2018, Eq. 9)."""

    def penalty(discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        network, x_real, x_fake = images_of("penalties.r1", discriminator, x_real, x_fake)
        with torch.enable_grad():
            gradient = _input_gradient(network, discriminator, x_real)
            return gamma / 2 * as_float(gradient).flatten(1).square().sum(1).mean()

    return penalty


def total(*penalties: Penalty) -> Penalty | None:
    """The sum of several penalties; None for none."""
    if not penalties:
        return None

    def penalty(discriminator: nn.Module, x_real: Tensor, x_fake: Tensor) -> Tensor:
        values = [p(discriminator, x_real, x_fake) for p in penalties]
        return torch.stack(values).sum()

    return penalty
