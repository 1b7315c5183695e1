"""A penalty that is computed in some iterations only, and counts for the others there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batches import capturing
from .penalty import Addable, Discriminator, applied, as_written, in_the_same_step, over
from .processes import Over
from .step_arguments import Penalty


@dataclass(eq=False)
class Lazily(Addable):
    """See `lazily`. Two with the same penalty are two, because each counts by itself.

    Example:
        >>> lazy = dat.penalties.lazily(dat.penalties.r1(10.0), every=16)
        >>> lazy.calls = 32  # from your checkpoint
    """

    penalty: Penalty
    every: int
    calls: int = 0

    def __post_init__(self) -> None:
        if not callable(self.penalty):
            got = type(self.penalty).__name__
            raise TypeError(f"a penalty must be a callable (discriminator, x_real, x_fake); got {got}")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every must be a whole number of calls, 1 or more; got {self.every!r}")

    @property
    def over(self) -> Over:
        return over(self.penalty)

    def skip(self) -> None:
        self.calls += 1

    def __call__(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        return self._value(self.penalty, discriminator, x_real, x_fake, beside)

    def as_written(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        return self._value(as_written(self.penalty), discriminator, x_real, x_fake, beside)

    def _value(
        self, penalty: Penalty, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, beside: dict[str, Any]
    ) -> Tensor:
        if capturing(x_real.device):
            raise RuntimeError(
                "a lazy penalty counts its calls in Python, which a captured CUDA graph does not run; capture the penalty itself "
                "in one graph and the step without it in another"
            )
        if not in_the_same_step():
            self.calls += 1
        number = self.calls - 1
        if number % self.every:
            dtype = torch.float64 if x_real.dtype == torch.float64 else torch.float32
            return torch.zeros((), dtype=dtype, device=x_real.device)
        return self.every * applied(penalty, discriminator, x_real, x_fake, beside)


def lazily(penalty: Penalty, every: int = 16) -> Lazily:
    """Lazy regularisation: the penalty times `every` in the first of each `every` calls; in the others a 0 that costs nothing.

    Its mean over calls is the penalty's. Inside `discriminator_step` it runs by itself, so that a call is a step, also with
    penalty_on="both", where a step counts once and both its terms or neither are there; the steps between do not differentiate
    twice. For StyleGAN2's Adam the source also takes every / (every + 1) of the learning rate and
    that power of both betas.

    The count is the object's only state: save `penalty.calls` with a checkpoint and set it when going on. One object belongs to
    one loop. Not for an iteration that is captured as a CUDA graph, which runs no Python (RuntimeError).

    Raises ValueError for `every` below 1 and TypeError for a penalty that is no callable.

    Example:
        >>> D = nn.Linear(2, 1)
        >>> D.weight.data = torch.tensor([[3.0, 4.0]])  # its gradient has length 5 everywhere
        >>> x_real, x_fake = torch.rand(8, 2), torch.rand(8, 2)
        >>> lazy = dat.penalties.lazily(dat.penalties.r1(2.0), every=16)
        >>> [round(lazy(D, x_real, x_fake).item()) for _ in range(3)]
        [400, 0, 0]
        >>> lazy.calls  # into your checkpoint
        3

    Source: Karras et al. (2020), "Analyzing and Improving the Image Quality of StyleGAN", section 3.1 and appendix B.
    """
    return Lazily(penalty, every)
