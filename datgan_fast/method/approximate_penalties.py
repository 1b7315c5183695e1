"""Zero-centred penalties for discriminators that cannot be differentiated twice: with flash attention, compiled, under FSDP2.

Instead of its input gradient the discriminator's change along one random direction is made small: one more forward, and the
ordinary backward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .arguments import SIDES, number
from .conditions import Beside
from .drawn import drawn
from .formulas import as_float
from .module_state import one_power_iteration, unchanged_random_state
from .penalty import Addable, Discriminator
from .processes import Over
from .step_arguments import check_lambda, images_of


@dataclass(frozen=True)
class ApproximateZeroCentred(Addable):
    """See `r1_approximate` (side "real") and `r2_approximate` (side "fake").

    Example:
        >>> dat.penalties.r2_approximate(1.0, sigma=0.1).side
        'fake'
    """

    gamma: float
    sigma: float
    side: Literal["real", "fake"]

    @property
    def over(self) -> Over:
        return self.side

    def __post_init__(self) -> None:
        check_lambda("gamma", self.gamma)
        if not 0 < number("sigma", self.sigma) < math.inf:
            raise ValueError(f"sigma must be a finite number above 0; got {self.sigma}")

    def __call__(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        name = "r1_approximate" if self.side == "real" else "r2_approximate"
        calls, *images = images_of(f"penalties.{name}", discriminator, x_real, x_fake, Beside.of(beside), (self.side,))
        side = SIDES.index(self.side)
        call, x, module = calls.sides[side], images[side], calls.network.module
        noise = drawn(torch.empty(x.shape, dtype=torch.float32, device=x.device), Tensor.normal_).to(x.dtype)
        # Both scores are one discriminator's: another dropout mask or power iteration between them would be divided by sigma.
        with torch.enable_grad(), one_power_iteration(module):
            with unchanged_random_state(module, x.device):
                own = as_float(call(x.clone()).summed())  # D may change what it is given
            moved = as_float(call(torch.add(x, noise, alpha=self.sigma)).summed())
            return self.gamma / 2 * ((moved - own) / self.sigma).square().mean()


def r1_approximate(gamma: float = 10.0, sigma: float = 0.01) -> ApproximateZeroCentred:
    """R1 without a second derivative: gamma / (2 sigma^2) * mean (D(x_real + sigma * n) - D(x_real))^2, n ~ N(0, I).

    Its expectation over n is that of `r1(gamma)`, gamma / 2 * mean ||grad D(x_real)||^2, with a bias of O(sigma^2): an image's
    (n . grad D)^2 is ||grad D||^2 on average, with a standard deviation of 1.4 times that. Gradients flow into the weights
    through both scores by an ordinary backward; nothing is differentiated twice. Both scores have the same dropout masks and
    spectral norms, and rounding of their own, which is divided by sigma: bfloat16's eight bits want a larger one.

    gamma: 0 or more; sigma: above 0, in units of x; ValueError or TypeError for others. Each image has a direction of its own,
    drawn in float32. The source's weight lambda is gamma / (2 sigma^2).

    Example:
        >>> D = nn.Linear(2, 1)
        >>> D.weight.data = torch.tensor([[3.0, 4.0]])  # its gradient has length 5 everywhere
        >>> x_real, x_fake = torch.rand(8, 2), torch.rand(8, 2)
        >>> penalty = dat.penalties.r1_approximate(2.0, sigma=0.1)
        >>> x = torch.zeros(100_000, 2)
        >>> bool(abs(penalty(D, x, x) - 25) < 1)  # r1(2.0) is 25
        True

    Source: Lin et al. (2025), "Diffusion Adversarial Post-Training for One-Step Video Generation", approximated R1.
    """
    return ApproximateZeroCentred(gamma, sigma, "real")


def r2_approximate(gamma: float = 10.0, sigma: float = 0.01) -> ApproximateZeroCentred:
    """The same on generated images: gamma / (2 sigma^2) * mean (D(x_fake + sigma * n) - D(x_fake))^2, for `r2(gamma)`.

    Example:
        >>> dat.penalties.r1_approximate(1.0) + dat.penalties.r2_approximate(1.0)  # doctest: +ELLIPSIS
        Total(parts=(ApproximateZeroCentred(...), ApproximateZeroCentred(...)))
    """
    return ApproximateZeroCentred(gamma, sigma, "fake")
