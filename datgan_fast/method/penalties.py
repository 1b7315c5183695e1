"""Penalties for any training loop: each function returns a callable (discriminator, x_real, x_fake) -> 0-d tensor.

The callable takes condition_real, condition_fake and scores as keywords, as `adversarial_batch` does. Of maps, tokens and scales
the gradient is that of an image's scores summed over positions and scales, as the field writes it (StyleGAN-T, PatchGAN with R1).

They differentiate input gradients without work on zeros (`second_pass.py`) and add up: `r1() + r2()`, `r1() + my_own`,
`total(...)`. Norms are per image, random numbers are drawn per image on the images' device, and square roots have gradient 0
at 0, so that a penalty at a constant discriminator gives no NaN.

Example:
    >>> D = nn.Sequential(nn.Linear(12, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    >>> x_real, x_fake = torch.rand(2, 16, 12)
    >>> loss = D(x_fake).mean() - D(x_real).mean()
    >>> (loss + dat.penalties.gradient_penalty(10.0)(D, x_real, x_fake)).backward()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .adversarial_lipschitz import AdversarialLipschitz
from .approximate_penalties import ApproximateZeroCentred, r1_approximate, r2_approximate
from .arguments import SIDES
from .autograd_graph import Graph, next_number
from .conditions import Beside, Call
from .drawn import drawn
from .formulas import Bound, as_float, check_choice, image_norm
from .independence import eager
from .lazy_penalty import Lazily, lazily
from .penalty import Addable, Discriminator, Total, column, total
from .processes import Over
from .second_pass import differentiable
from .step_arguments import check_alike, check_graph, images_of

__all__ = [
    "AdversarialLipschitz",
    "ApproximateZeroCentred",
    "GradientPenalty",
    "Lazily",
    "Total",
    "ZeroCentred",
    "adversarial_lipschitz",
    "gradient_penalty",
    "lazily",
    "r1",
    "r1_approximate",
    "r2",
    "r2_approximate",
    "total",
]

SecondPass = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # (gradient, images, logits) -> the gradient to be differentiated again


class _OfGradients(Addable):
    """A penalty on input gradients."""

    def __call__(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        return self._value(discriminator, x_real, x_fake, Beside.of(beside), differentiable)

    def as_written(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        return self._value(discriminator, x_real, x_fake, Beside.of(beside), lambda gradient, x, logits: gradient)

    def _value(
        self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, beside: Beside, second_pass: SecondPass
    ) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class GradientPenalty(_OfGradients):
    """See `gradient_penalty`.

    Example:
        >>> dat.penalties.gradient_penalty(10.0, one_sided=True)
        GradientPenalty(weight=10.0, one_sided=True, condition='real')
    """

    weight: float
    one_sided: bool
    condition: Literal["real", "fake"] = "real"

    @property
    def over(self) -> Over:
        return "pairs"

    def _value(
        self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, beside: Beside, second_pass: SecondPass
    ) -> Tensor:
        calls, x_real, x_fake = images_of("penalties.gradient_penalty", discriminator, x_real, x_fake, beside)
        check_alike(x_real, x_fake)
        pairs = min(len(x_real), len(x_fake))
        alpha = drawn(torch.empty(pairs, device=x_real.device, dtype=torch.float32), Tensor.uniform_)
        alpha = column(alpha, x_real).to(x_real.dtype)
        x_hat = x_fake[:pairs] + alpha * (x_real[:pairs] - x_fake[:pairs])
        call = calls.sides[SIDES.index(self.condition)].rows(slice(pairs))
        with torch.enable_grad():
            excess = image_norm(_input_gradient(call, x_hat, second_pass)) - 1
            if self.one_sided:
                excess = excess.clamp(min=0)
            return self.weight * (excess**2).mean()


@dataclass(frozen=True)
class ZeroCentred(_OfGradients):
    """See `r1` (side "real") and `r2` (side "fake").

    Example:
        >>> dat.penalties.r1(10.0), dat.penalties.r2(10.0)
        (ZeroCentred(gamma=10.0, side='real'), ZeroCentred(gamma=10.0, side='fake'))
    """

    gamma: float
    side: Literal["real", "fake"]

    @property
    def over(self) -> Over:
        return self.side

    def _value(
        self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, beside: Beside, second_pass: SecondPass
    ) -> Tensor:
        name = "r1" if self.side == "real" else "r2"
        calls, *images = images_of(f"penalties.{name}", discriminator, x_real, x_fake, beside, (self.side,))
        side = SIDES.index(self.side)
        with torch.enable_grad():
            return self.value(_input_gradient(calls.sides[side], images[side], second_pass))

    def value(self, gradient: Tensor) -> Tensor:
        """The penalty, 0-d, of the input gradients of its side's images."""
        return (
            self.gamma / 2 * as_float(gradient).unsqueeze(-1).square().sum(tuple(range(1, gradient.dim() + 1))).mean()
        )


def gradient_penalty(
    weight: float = 10.0, one_sided: bool = False, *, condition: Literal["real", "fake"] = "real"
) -> GradientPenalty:
    """WGAN-GP, weight * mean (||grad D(x_hat)|| - 1)^2; one_sided: WGAN-LP, weight * mean max(0, ||grad D(x_hat)|| - 1)^2.

    x_hat = alpha x_real + (1 - alpha) x_fake with one alpha ~ U[0, 1] per image; of unequal batches the first min(m, n)
    images of each are paired. condition: whose condition x_hat is given, where D takes one. Sources: Gulrajani et al. (2017),
    Eq. 3; Petzka et al. (2018), Eq. 8.

    Example:
        >>> D = nn.Linear(2, 1)
        >>> D.weight.data = torch.tensor([[3.0, 4.0]])  # its gradient has length 5 everywhere
        >>> x_real, x_fake = torch.rand(8, 2), torch.rand(8, 2)
        >>> round(dat.penalties.gradient_penalty(10.0)(D, x_real, x_fake).item(), 3)  # 10 (5 - 1)^2
        160.0
    """
    check_choice("condition", condition, SIDES)
    return GradientPenalty(weight, one_sided, condition)


def adversarial_lipschitz(
    weight: float = 10.0,
    *,
    power_iterations: int = 1,
    xi: float = 10.0,
    radius: tuple[float, float] = (0.1, 10.0),
    clip_min: Bound = -1.0,
    clip_max: Bound = 1.0,
) -> AdversarialLipschitz:
    """WGAN-ALP: ``weight * mean max(0, |D(X) - D(X')| / max(||X - X'||, 1e-10) - 1)^2``, gradients through both D.

    X is real and generated images together; X' = clip(X + e d), e ~ U[radius] per image, d the direction in which D changes
    most, found by power iteration from random noise with finite difference xi, and constant. The distance is taken after
    the clip. Of maps, tokens and scales D is an image's mean over its positions, summed over scales. Source: Terjek (2020),
    "Adversarial Lipschitz Regularization", Eq. 13-15 and appendix.

    Example:
        >>> D = nn.Linear(2, 1)
        >>> D.weight.data = torch.tensor([[3.0, 4.0]])  # its gradient has length 5 everywhere
        >>> x_real, x_fake = torch.rand(8, 2), torch.rand(8, 2)
        >>> penalty = dat.penalties.adversarial_lipschitz(10.0, clip_min=None, clip_max=None)
        >>> round(penalty(D, x_real, x_fake).item(), 2)  # in the direction in which D changes most its slope is 5
        160.0
    """
    return AdversarialLipschitz(weight, power_iterations, xi, radius, clip_min, clip_max)


def r1(gamma: float = 10.0) -> ZeroCentred:
    """Zero-centred penalty on real images, gamma / 2 * mean ||grad D(x_real)||^2 (Mescheder et al. 2018, Eq. 9).

    Example:
        >>> D = nn.Linear(2, 1)
        >>> D.weight.data = torch.tensor([[3.0, 4.0]])  # its gradient has length 5 everywhere
        >>> x_real, x_fake = torch.rand(8, 2), torch.rand(8, 2)
        >>> round(dat.penalties.r1(2.0)(D, x_real, x_fake).item(), 3)  # 2 / 2 * 5^2
        25.0
        >>> step = dat.discriminator_step(D, x_real, x_fake, eps=0.1, penalty=dat.penalties.r1(2.0))  # joins its clean pass
        >>> round(step.penalty.item(), 3)
        25.0
    """
    return ZeroCentred(gamma, "real")


def r2(gamma: float = 10.0) -> ZeroCentred:
    """The same on generated images, gamma / 2 * mean ||grad D(x_fake)||^2 (Mescheder et al. 2018, Eq. 10).

    Example:
        >>> D = nn.Linear(2, 1)
        >>> D.weight.data = torch.tensor([[3.0, 4.0]])  # its gradient has length 5 everywhere
        >>> x_real, x_fake = torch.rand(8, 2), torch.rand(8, 2)
        >>> both = dat.penalties.r1(2.0) + dat.penalties.r2(2.0)
        >>> round(both(D, x_real, x_fake).item(), 3)
        50.0
    """
    return ZeroCentred(gamma, "fake")


def _input_gradient(call: Call, x: Tensor, second_pass: SecondPass) -> Tensor:
    """d sum(D(x)) / dx with its graph, to be differentiated again; compiled code, which cannot be, runs as Python."""
    if call.network.sharded:
        raise RuntimeError(
            "weights that FSDP2 has sharded are gone before a gradient penalty can be differentiated again; use "
            "penalties.r1_approximate, penalties.r2_approximate or penalties.adversarial_lipschitz instead"
        )
    x = x.detach().requires_grad_()
    logits, graph = _forward(call, x, call.network.compiled)
    if graph.is_compiled():  # by a function inside, which the modules do not show
        logits, graph = _forward(call, x, True)
    check_graph(graph, [x])
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return second_pass(gradient, x, logits)


def _forward(call: Call, x: Tensor, compiled: bool) -> tuple[Tensor, Graph]:
    begun = next_number()
    with eager(compiled):
        logits = call(x.clone()).logits  # D may change what it is given
    return logits, Graph(logits, begun)
