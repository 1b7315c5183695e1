"""D as one step calls it: with what it takes beside the images of each side, and with what its scores are among its output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import SIDES
from .module_state import Network
from .scores import Scores, scores_in

Index = slice | Tensor  # of rows
Extraction = Callable[[Any], Any]  # D's output -> its scores


class Beside(NamedTuple):
    """What a user says of D beyond the images; None: nothing."""

    condition_real: Any = None  # a tensor, a tuple (positional) or a dict (keywords)
    condition_fake: Any = None
    scores: Extraction | None = None

    @classmethod
    def of(cls, keywords: dict[str, Any]) -> Beside:
        """A penalty's keywords."""
        for name in keywords.keys() - set(cls._fields):
            raise TypeError(f"a penalty takes {', '.join(cls._fields)} beside the images; got {name}")
        return cls(**keywords)

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value is not None}


class Call:
    """D on the images of one batch, with what belongs to them.

    Tensors in the condition with one row for each of the batch's `count` images are the images'; anything else is handed on.
    """

    def __init__(self, network: Network, count: int, condition: Any = (), scores: Extraction | None = None) -> None:
        self.network, self.count, self.scores = network, count, scores
        self._condition = condition if isinstance(condition, (tuple, dict)) else (condition,)

    def __call__(self, images: Tensor) -> Scores:
        return scores_in(self.output(images), len(images))

    def output(self, images: Tensor) -> Any:
        """The part of D's output that is its scores, as D gave it."""
        c = self._condition
        output = self.network.call(images, **c) if isinstance(c, dict) else self.network.call(images, *c)
        if self.scores is None:
            return output
        output = self.scores(output)
        return list(output) if isinstance(output, tuple) else output

    def rows(self, index: Index) -> Call:
        """For some of the images."""
        count = len(range(self.count)[index]) if isinstance(index, slice) else len(index)
        condition = _each(self._condition, lambda t: _taken(t, index) if self._has_rows(t) else t)
        return Call(self.network, count, condition, self.scores)

    def with_own_tensors(self) -> Call:
        """The same with tensors of its own for what belongs to the images, onto which may be written where the images lie."""
        if not self._condition:
            return self
        alike = _each(self._condition, lambda t: t.view_as(t) if self._has_rows(t) else t)
        return Call(self.network, self.count, alike, self.scores)

    def tensors(self, of_images: bool) -> list[Tensor]:
        """Those of the condition that belong to the images, or those that do not."""
        return [t for t in _tensors(self._condition) if self._has_rows(t) == of_images]

    def described(self) -> object:
        return _described(self._condition)

    def _has_rows(self, t: Tensor) -> bool:
        return has_rows(t, self.count)

    @property
    def plain(self) -> bool:
        """Whether nobody's code runs but the network's."""
        return self.scores is None


class Calls:
    """D on both batches."""

    def __init__(self, network: Network, beside: Beside, m: int, n: int) -> None:
        self.network, self.beside = network, beside
        self._conditions = tuple(() if c is None else c for c in beside[:2])
        self.sides = tuple(
            Call(network, count, c, beside.scores) for count, c in zip((m, n), self._conditions, strict=True)
        )

    @cached_property
    def together(self) -> Call | None:
        """On both as one batch; None where what belongs to one side does not go with what belongs to the other."""
        real, fake = (c if isinstance(c, (tuple, dict)) else (c,) for c in self._conditions)
        m, n = (side.count for side in self.sides)
        try:
            return Call(self.network, m + n, _joined(real, fake, m, n), self.beside.scores)
        except _ApartError:
            return None

    def by_image(self, images: Tensor) -> Tensor:
        """[m + n]: the score of each of both batches' images, one behind the other."""
        if self.together is not None:
            return self.together(images).by_image()
        parts = images.split([side.count for side in self.sides])
        return torch.cat([side(x).by_image() for side, x in zip(self.sides, parts, strict=True)])


def check_beside(discriminator: Any, beside: Beside) -> None:
    if not callable(discriminator):
        raise TypeError(f"discriminator must be an nn.Module or another callable; got {type(discriminator).__name__}")
    if beside.scores is not None and not callable(beside.scores):
        raise TypeError(f"scores must be a callable from D's output to its scores; got {type(beside.scores).__name__}")
    for side, condition in zip(SIDES, beside[:2], strict=True):
        if condition is not None and not isinstance(condition, (Tensor, tuple, dict)):
            raise TypeError(
                f"condition_{side} must be a tensor, a tuple of positional arguments or a dict of keywords; "
                f"got {type(condition).__name__}"
            )


def check_both_conditions(beside: Beside) -> None:
    """Of what goes through D on both sides."""
    if (beside.condition_real is None) != (beside.condition_fake is None):
        missing, given = SIDES if beside.condition_real is None else reversed(SIDES)
        raise ValueError(
            f"condition_{missing} must be given beside condition_{given}; an empty tuple stands for a side without a condition"
        )


def has_rows(t: Tensor, count: int) -> bool:
    return t.dim() > 0 and len(t) == count


def _taken(t: Tensor, index: Index) -> Tensor:
    return t[index] if isinstance(index, slice) else t.index_select(0, index.to(t.device))


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return _like(value, [_each(v, change) for v in value])
    return {name: _each(v, change) for name, v in value.items()} if isinstance(value, dict) else value


def _like(value: Any, parts: list[Any]) -> Any:
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for v in value.values() if isinstance(value, dict) else value:
            yield from _tensors(v)


class _ApartError(Exception):
    """Two conditions that are none for both batches together."""


def _joined(real: Any, fake: Any, m: int, n: int) -> Any:
    if isinstance(real, Tensor) and isinstance(fake, Tensor):
        if has_rows(real, m) and has_rows(fake, n):
            if real.shape[1:] == fake.shape[1:] and real.dtype == fake.dtype and real.device == fake.device:
                return torch.cat([real, fake])
        elif real is fake and not (has_rows(real, m) or has_rows(fake, n)):
            return real
    elif type(real) is type(fake) and isinstance(real, (list, tuple)) and len(real) == len(fake):
        return _like(real, [_joined(a, b, m, n) for a, b in zip(real, fake, strict=True)])
    elif isinstance(real, dict) and isinstance(fake, dict) and real.keys() == fake.keys():
        return {name: _joined(real[name], fake[name], m, n) for name in real}
    elif real is fake or (isinstance(real, (int, float, str)) and type(real) is type(fake) and real == fake):
        return real
    raise _ApartError


def _described(value: Any) -> object:
    """What must be the same for two conditions to be of one kind."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    if isinstance(value, dict):
        return tuple((str(name), _described(v)) for name, v in value.items())
    return value if isinstance(value, (int, float, str, bool, type(None))) else type(value)
