"""What discriminator and generator play for, as one record: the rows of formulas.py's table, and a user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Formula = Callable[[Tensor], Tensor]

LINEAR = "wasserstein"  # the row whose g1 and g2 are t and -t


def as_float(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


@dataclass(frozen=True, eq=False, repr=False)
class Objective:
    """What discriminator and generator play for. Wherever `objective=` takes a name it takes one of these too.

    Formulas are plain torch, differentiable, and given float32 or float64 scores, whatever the discriminator computes in. They
    have no kernels: the reference backend computes them, on any device.

    Args:
        name: what messages call it; of a row in OBJECTIVES, its key.
        g1, g2: elementwise: the scores that the attack compares. Without `loss` the discriminator maximises E[g1(r)] + E[g2(f)].
            With `loss` both may be left out: t and -t, whose attack has kernels.
        generator_loss: of the scores of generated images, (f) -> 0-d, or of those and of real ones, (f, r) -> 0-d. Default: mean
            g2(f); with `loss` the same loss with the roles exchanged, loss(f, r).
        loss: (r, f) -> 0-d, what the discriminator minimises, for losses that compare the scores of both batches, [m] and [n], of
            maps and tokens [m, positions] and [n, positions]; of several scales it is summed. Batches of different sizes are
            its own affair.
        slope1, slope2: g1' and g2', elementwise; default: by autograd.
        generator_side: whose term the generator's loss is: "real" for -mean g1(f), "fake" for mean g2(f), None for neither.
        saturating_loss: the variant of it that `--saturating` asks for; None where there is none.
        linear: whether g1 and g2 have constant slopes, which never vanish.
        needs_logits: whether a discriminator that ends in a sigmoid or softmax is a mistake.

    Attributes:
        kernels: the row whose kernels compute g1 and g2, by its name.
        generator_compares: whether the generator's loss takes real scores too.

    Raises:
        TypeError, ValueError: a part is missing or no function; where it is used, a formula gives what it should not.

    Example:
        >>> exponential = dat.Objective("exponential", lambda t: -torch.exp(-t), lambda t: -torch.exp(t))
        >>> D = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
        >>> x_real, x_fake = torch.rand(8, 3, 2, 2), torch.rand(8, 3, 2, 2)
        >>> dat.discriminator_step(D, x_real, x_fake, eps=0.1, objective=exponential).path
        'shared'
        >>> apart = dat.Objective("apart", loss=lambda r, f: nn.functional.softplus(f - r.mean()).mean())
        >>> step = dat.discriminator_step(D, x_real, x_fake, eps=0.1, objective=apart)
        >>> bool(step.loss > 0)
        True
    """

    name: str
    g1: Formula = None  # type: ignore[assignment]  # here and below __post_init__ puts the default
    g2: Formula = None  # type: ignore[assignment]
    _: KW_ONLY
    generator_loss: Callable[..., Tensor] = None  # type: ignore[assignment]
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    slope1: Formula = None  # type: ignore[assignment]
    slope2: Formula = None  # type: ignore[assignment]
    generator_side: Literal["real", "fake"] | None = None
    saturating_loss: Formula | None = None
    linear: bool = False
    needs_logits: bool = False
    kernels: str = field(init=False)
    generator_compares: bool = field(init=False)

    def __post_init__(self) -> None:
        self._check()
        self._put(kernels=self.name)
        if self.g1 is None:
            self._put(g1=lambda t: t, g2=lambda t: -t, slope1=torch.ones_like, slope2=lambda t: -torch.ones_like(t))
            self._put(linear=True, kernels=LINEAR)
        for g, slope in (("g1", "slope1"), ("g2", "slope2")):
            formula = self._elementwise(g)
            self._put(**{g: formula})
            self._put(**{slope: _slope_of(formula) if getattr(self, slope) is None else self._elementwise(slope)})
        if self.loss is not None:
            self._put(loss=self._scalar("loss"))
        self._put_generator_loss()
        if self.saturating_loss is not None:
            self._put(saturating_loss=self._scalar("saturating_loss"))

    def __repr__(self) -> str:
        return f"Objective({self.name!r})"

    def _check(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"an objective's name must be a string that is not empty; got {self.name!r}")
        if (self.g1 is None) != (self.g2 is None) or (self.g1 is None and self.loss is None):
            raise TypeError(f"objective {self.name!r} needs both g1 and g2, or a loss of the scores of both batches")
        for part in ("g1", "g2", "generator_loss", "loss", "slope1", "slope2", "saturating_loss"):
            formula = getattr(self, part)
            if formula is not None and not callable(formula):
                raise TypeError(f"objective {self.name!r}: {part} must be a function of scores; got {formula!r}")

    def _put(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # the way into a frozen dataclass

    def _put_generator_loss(self) -> None:
        if self.generator_loss is not None:
            compares = _arguments(self.generator_loss) == 2
            self._put(generator_compares=compares, generator_loss=self._scalar("generator_loss"))
        elif (loss := self.loss) is not None:
            self._put(generator_compares=True, generator_loss=lambda f, r: loss(f, r))
        else:
            g2 = self.g2
            self._put(generator_compares=False, generator_loss=lambda f: g2(f).mean(), generator_side="fake")

    def _elementwise(self, part: str) -> Formula:
        """That formula, in float32 at least, and looked at."""
        formula, name = getattr(self, part), self.name

        def checked(t: Tensor) -> Tensor:
            value = formula(as_float(t))
            if not isinstance(value, Tensor) or value.shape != t.shape or not value.is_floating_point():
                raise ValueError(
                    f"objective {name!r}: {part} must be elementwise, one number for each score; scores {tuple(t.shape)} gave "
                    f"{_shown(value)}"
                )
            return value

        return checked

    def _scalar(self, part: str) -> Callable[..., Tensor]:
        formula, name = getattr(self, part), self.name

        def checked(*scores: Tensor) -> Tensor:
            value = formula(*map(as_float, scores))
            if not isinstance(value, Tensor) or value.dim() != 0 or not value.is_floating_point():
                raise TypeError(
                    f"objective {name!r}: {part} must return a floating 0-d tensor, such as a mean over the batch; got "
                    f"{_shown(value)}"
                )
            if not value.requires_grad and torch.is_grad_enabled() and any(t.requires_grad for t in scores):
                raise ValueError(
                    f"objective {name!r}: {part} depends on none of the scores, so that there is nothing to learn from it; a "
                    "detach() or torch.no_grad() inside it would do that"
                )
            return value.to(torch.float64 if any(t.dtype == torch.float64 for t in scores) else torch.float32)

        return checked


def _shown(value: Any) -> str:
    return f"{value.dtype}, {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _arguments(formula: Callable[..., Any]) -> int:
    """How many it must be given."""
    try:
        parameters = inspect.signature(
            getattr(formula, "forward", formula)
        ).parameters.values()  # a module's are its forward's
    except (TypeError, ValueError):  # of a function that is not Python's
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def _slope_of(g: Formula) -> Formula:
    def slope(t: Tensor) -> Tensor:
        with torch.enable_grad():
            t = as_float(t).detach().requires_grad_()
            value = g(t)
            if not value.requires_grad:  # a constant
                return torch.zeros_like(t)
            return torch.autograd.grad(value.sum(), t, materialize_grads=True)[0]

    return slope
