"""One run over several processes: which of them this is, its part of every batch, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import BackendError, ConfigError, DataError, TrainingStopped
from ..method.drawn import Part

T = TypeVar("T")


class AnotherEnded(TrainingStopped):
    """A process with which this one shares the run is gone."""


WRONG = (ConfigError, DataError, BackendError)  # what a user asked for cannot be done


@dataclass(frozen=True)
class Share:
    """This process's: all of it, unless torch.distributed is initialised with others.

    The methods but `part` exchange messages: all processes call them in the same order. One process tells nobody anything.
    """

    rank: int = 0
    size: int = 1
    group: Any = None  # a torch.distributed process group; None without others

    @classmethod
    def of_default_group(cls) -> Share:
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    def part(self, batch_size: int) -> Part:
        """Of a batch, as even as can be. Raises ConfigError for one that is too small to be shared."""
        if batch_size < self.size:
            raise ConfigError(f"--batch-size {batch_size}: must be {self.size} or more, an image for each process")
        return Part(batch_size, batch_size * self.rank // self.size, batch_size * (self.rank + 1) // self.size)

    def tell(self, make: Callable[[], T]) -> T:
        """What the first process has made, to all; or the error, of WRONG, that it raised, in all."""
        if self.alone:
            return make()
        told: list[Any] = [None, None]
        if self.first:
            told = list(_outcome(make))
        dist.broadcast_object_list(told, 0, group=self.group)
        return _come_to(*told)

    def alike(self, make: Callable[[], T]) -> T:
        """What this process has made, if no process raised an error of WRONG; else the first one's, in all."""
        if self.alone:
            return make()
        made, error = _outcome(make)
        errors: list[Any] = [None] * self.size
        dist.all_gather_object(errors, error, group=self.group)
        return _come_to(made, next((e for e in errors if e is not None), None))

    def after_the_first(self, make: Callable[[], T]) -> T:
        """What each process makes itself, the others when the first has: of files that it fetches or writes."""
        if self.alone:
            return make()
        made, error = _outcome(make) if self.first else (None, None)
        self.wait()
        return _come_to(made, error) if self.first else make()

    def wait(self) -> None:
        """Until all are here."""
        if not self.alone:
            dist.barrier(group=self.group)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """The first process's numbers, into everybody's tensors."""
        for t in tensors:
            dense = t.detach().contiguous()
            dist.broadcast(dense, 0, group=self.group)
            if dense.data_ptr() != t.data_ptr():
                t.detach().copy_(dense)

    def total(self, t: Tensor) -> Tensor:
        """The sum of everybody's tensors, in place of this one."""
        if not self.alone:
            dist.all_reduce(t, group=self.group)
        return t

    def least(self, t: Tensor) -> Tensor:
        """The least of everybody's numbers, in place of this process's."""
        if not self.alone:
            dist.all_reduce(t, dist.ReduceOp.MIN, group=self.group)
        return t

    def everybodys(self, own: Tensor, part: Part) -> Tensor:
        """[whole, ...] of the whole batch, where this process has [n, ...] for its images; a gradient flows through these."""
        parts = [Share(rank, self.size).part(part.whole) for rank in range(self.size)]
        counts = [p.end - p.first for p in parts]
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own.detach()
        told = padded.new_empty(self.size, *padded.shape)
        dist.all_gather(list(told.unbind()), padded, group=self.group)
        rows = [t[:count] for t, count in zip(told, counts, strict=True)]
        rows[self.rank] = own
        return torch.cat(rows)


@contextmanager
def another_ended_is_said(sentence: Callable[[], str]) -> Iterator[None]:
    """A message that cannot be sent or received raises AnotherEnded with this sentence."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            raise
        raise AnotherEnded(sentence()) from None


def attempt() -> int:
    """How often torchrun has started the processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def store_of(purpose: str) -> dist.Store:
    """What all processes can read and write at any time, by keys; another one after a restart."""
    return dist.PrefixStore(f"datgan_fast/{attempt()}/{purpose}", dist.distributed_c10d._get_default_store())


def _outcome(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return make(), None
    except WRONG as error:
        return None, error


def _come_to(made: Any, error: Exception | None) -> Any:
    if error is not None:
        raise error
    return made
