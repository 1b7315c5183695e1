"""What a penalty is: a callable (discriminator, x_real, x_fake) -> 0-d tensor. Our own add up by `+`, with anybody's too.

What D takes beside the images comes as keywords, condition_real, condition_fake and scores, to those whose signature has them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .processes import Over, Processes
from .step_arguments import Penalty

Discriminator = Callable[..., Any]

_same_step: ContextVar[bool] = ContextVar("_same_step", default=False)


class Addable:
    """A penalty that knows how the field writes it, and can be added to another, or to a user's callable."""

    @property
    def over(self) -> Over:
        """The images whose mean it is, by whose number a process's part counts."""
        return "both"

    def skip(self) -> None:
        """A step in which a process has none of its images."""

    def __call__(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        raise NotImplementedError

    def as_written(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        """The same value and gradients with the same random draws, by plain autograd: what a user would write."""
        return self(discriminator, x_real, x_fake, **beside)

    def __add__(self, other: Penalty) -> Total:
        return Total(self, other) if callable(other) else NotImplemented

    def __radd__(self, other: Penalty | Literal[0]) -> Addable:
        if isinstance(other, int) and other == 0:  # where sum() begins
            return self
        return Total(other, self) if callable(other) else NotImplemented


@dataclass(frozen=True, init=False)
class Total(Addable):
    """The sum of penalties; a sum among them is taken apart.

    Example:
        >>> def small_weights(discriminator, x_real, x_fake):
        ...     return 1e-4 * sum(p.square().sum() for p in discriminator.parameters())
        >>> len((dat.penalties.r1(1.0) + dat.penalties.r2(1.0) + small_weights).parts)
        3
    """

    parts: tuple[Penalty, ...]

    def __init__(self, *penalties: Penalty) -> None:
        for p in penalties:
            if not callable(p):
                raise TypeError(f"a penalty must be a callable (discriminator, x_real, x_fake); got {type(p).__name__}")
        parts = (q for p in penalties for q in (p.parts if isinstance(p, Total) else (p,)))
        object.__setattr__(self, "parts", tuple(parts))

    @property
    def over(self) -> Over:
        kinds = {over(p) for p in self.parts}
        if len(kinds) > 1:
            raise ValueError(
                "a sum of penalties over different images, such as r1() + r2(), has no one share of a batch in several "
                "processes; put each term by itself into what is around the sum"
            )
        return kinds.pop()

    def __call__(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        return torch.stack([applied(p, discriminator, x_real, x_fake, beside) for p in self.parts]).sum()

    def as_written(self, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, **beside: Any) -> Tensor:
        return torch.stack([applied(as_written(p), discriminator, x_real, x_fake, beside) for p in self.parts]).sum()


def total(*penalties: Penalty) -> Total | None:
    """The sum of several penalties, the library's own or anybody's callables; None for none.

    Example:
        >>> dat.penalties.total(dat.penalties.r1(1.0), dat.penalties.r2(1.0))
        Total(parts=(ZeroCentred(gamma=1.0, side='real'), ZeroCentred(gamma=1.0, side='fake')))
    """
    return Total(*penalties) if penalties else None


def terms_of(penalty: Penalty | None) -> Sequence[Penalty]:
    if penalty is None:
        return ()
    return penalty.parts if isinstance(penalty, Total) else (penalty,)


def over(penalty: Penalty) -> Over:
    """A user's own callable counts as a mean over real and generated images alike."""
    return penalty.over if isinstance(penalty, Addable) else "both"


@contextmanager
def same_step() -> Iterator[None]:
    """Inside, a penalty's call belongs to the step of its last one: a step takes it on clean images, and then on perturbed ones.
    Whoever counts steps asks `in_the_same_step`, however deep in sums and contexts it is."""
    token = _same_step.set(True)
    try:
        yield
    finally:
        _same_step.reset(token)


def in_the_same_step() -> bool:
    return _same_step.get()


def with_images(penalties: Sequence[Penalty], processes: Processes | None) -> list[Penalty]:
    """Those that have images in this process; the others are told that a step goes by."""
    found = []
    for p in penalties:
        if processes is None or processes.counts(over(p)):
            found.append(p)
        elif isinstance(p, Addable):
            p.skip()
    return found


def as_written(penalty: Penalty) -> Penalty:
    """What the reference runs: a built-in penalty by plain autograd, anybody else's as it is."""
    return penalty.as_written if isinstance(penalty, Addable) else penalty


def applied(
    penalty: Penalty, discriminator: Discriminator, x_real: Tensor, x_fake: Tensor, beside: dict[str, Any]
) -> Tensor:
    """The penalty's value, with those keywords that its signature takes."""
    return (
        penalty(discriminator, x_real, x_fake, **_taken(penalty, beside))
        if beside
        else penalty(discriminator, x_real, x_fake)
    )


def _taken(penalty: Penalty, beside: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(penalty).parameters.values()
    except (TypeError, ValueError):  # of compiled code
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return beside
    names = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    return {name: value for name, value in beside.items() if name in names}


def column(values: Tensor, images: Tensor) -> Tensor:
    """One number for each image, shaped to multiply the images."""
    return values.view(-1, *[1] * (images.dim() - 1))
