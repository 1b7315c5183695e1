"""Follows the images of a batch through one forward, operation by operation, and says whether any two of them meet.

Two images can meet only in an operation that works along the dimension in which they lie: a reduction, a matrix product, a
normalisation, a sum with the same images in another order. `Watch` knows of every tensor where its images lie, and
batch_rules.py has a rule for each of torch's operations. Both look at shapes and arguments, never at values, so that the answer
does not depend on what weights or images are or will become. An operation without a rule counts as one in which images meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode


class Images(NamedTuple):
    """Where N images lie in a tensor: dimension `dim` has blocks * N * rows entries, and image n owns the entries
    (b * N + n) * rows + r."""

    dim: int
    blocks: int = 1
    rows: int = 1


class Own(NamedTuple):
    """A tensor that this forward made from something else than images."""

    alike: frozenset[int] = frozenset()  # the dimensions along which it has the same content for every image


class Meeting(Exception):  # noqa: N818  no error: an answer
    """Images meet here, or nobody knows whether they do; the message says where."""


class Watch(TorchDispatchMode):
    """Inside this context every operation on `images` is followed.

    Args:
        images: [N, ...]; the tensor itself, and all that is computed from it, is recognised.
        rule_of: the rule of an operation, None where there is none.
        program: a list to which every operation is appended, in a form that is the same for every N as long as nothing but the
            batch's extent follows it.
        known: with a program, the tensors that the network has by itself; any other that no operation has made may hold what
            another library made of the images.
        beside: tensors with one row for each image, such as labels, that are the images' too. They are written onto.
    """

    def __init__(
        self,
        images: Tensor,
        rule_of: Callable[[OpOverload], Rule | None],
        program: list[object] | None = None,
        known: Iterable[Tensor] = (),
        beside: Sequence[Tensor] = (),
    ) -> None:
        super().__init__()
        self.count = len(images)
        self._rule_of = rule_of
        self.program = program
        self.numbers: list[object] = []  # that the program took from tensors
        self._meeting: str | None = None
        self._change: str | None = None  # weaker: a statistic that changes is mostly part of a meeting
        self.written: set[int] = set()  # storages of this forward into which images were written
        self._rewritten: set[int] = set()  # ... into which anything was written
        self._known = {_memory(t) for t in known}
        self._lent = {_memory(t) for t in beside}
        for t in (images, *beside):
            self._mark(t, Images(0))

    def why_not(self, scores: object) -> str | None:
        """Why the images are not known to stay apart on their way to `scores`, [N, ...] or a list of such; None if they are."""
        found = self._meeting or self._change
        every = scores if isinstance(scores, list) else [scores]
        if not found and not all(isinstance(t, Tensor) and self.state(t) == Images(0) for t in every):
            found = "its output could not be followed"
        return found

    # What is known of a tensor is written onto it.

    def _mark(self, tensor: Tensor, state: Images | Own) -> None:
        tensor._datgan_fast_flow = (self, state)  # type: ignore[attr-defined]

    def state(self, tensor: Tensor) -> Images | Own | None:
        watch, state = getattr(tensor, "_datgan_fast_flow", (None, None))
        if watch is not self:
            state = None
        if not isinstance(state, Images) and self.written and _memory(tensor) in self.written:
            raise Meeting("images were written into a part of this tensor")
        return state

    def images_in(self, tensor: Tensor) -> Images | None:
        state = self.state(tensor)
        return state if isinstance(state, Images) else None

    def mark_images(self, tensor: Tensor, images: Images) -> None:
        """Of a result; one of no elements, as of a statistic that was not asked for, has no images."""
        if tensor.numel() == 0:
            return
        if images.dim >= tensor.dim() or tensor.shape[images.dim] != images.blocks * self.count * images.rows:
            raise Meeting("the batch's dimension changes its size")
        self._mark(tensor, images)

    def same_for_each(self, tensor: Tensor, dim: int) -> bool:
        """Whether a tensor without images has one content for all of them, seen along `dim` (negative: no such dimension)."""
        return dim < 0 or tensor.shape[dim] == 1 or tensor.stride(dim) == 0 or dim in self.alike_in(tensor)

    def alike_in(self, tensor: Tensor) -> frozenset[int]:
        """The dimensions along which a tensor of this forward has the same content for every image."""
        state = self.state(tensor)
        return state.alike if isinstance(state, Own) and _memory(tensor) not in self._rewritten else frozenset()

    def __torch_dispatch__(self, op: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        if self._meeting is None:
            try:
                self._follow(op, args, kwargs, result)
            except Meeting as meeting:
                self._meeting = f"{meeting} (in {name_of(op)})"
        return result

    # Branches: what an operation may do to the batch, in the order in which it is asked.
    def _follow(self, op: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        given = list(_tensors((*args, *kwargs.values())))
        carriers = [t for t in given if self.images_in(t)]
        call = Call(op, args, kwargs, carriers, [t for t in given if not self.images_in(t)], result)
        if torch.Tag.nondeterministic_seeded in op.tags and call.argument("dropout_p") != 0:
            raise Meeting("random numbers are drawn for the batch")
        if name_of(op) in _READS:
            raise Meeting("the network reads a number back and may go another way with the next one")
        for t in _tensors(map(call.argument, _written(op))):
            self._rewritten.add(_memory(t))
            if self.state(t) is None or _memory(t) in self._lent:  # and nothing may be written onto it either
                self._change = f"the network changes a tensor that outlives its forward (in {name_of(op)})"
                return
        if not carriers or name_of(op).startswith("new_"):  # which takes nothing of its operand but device and dtype
            self._mark_own(op, given, result)
        elif self.count == 1:  # nothing can meet
            for t in _tensors((result,)):
                self._mark(t, Images(0))
        else:
            rule = self._rule_of(op)
            if rule is None:
                raise Meeting("images may meet")
            rule(self, call)
        if self.program is not None and name_of(op) not in _FLEETING:
            self.program.append(self._described(op, args, kwargs, result))

    def _mark_own(self, op: OpOverload, given: list[Tensor], result: Any) -> None:
        if op.is_view and self.state(given[0]) is None:  # a part of a parameter is no tensor of this forward
            return
        for t in _tensors((result,)):
            alike: Iterable[int] = ()
            if name_of(op) in _FILLED:
                alike = range(t.dim())
            elif name_of(op) == "repeat":
                new = t.dim() - given[0].dim()
                alike = (d for d in range(t.dim()) if d < new or t.shape[d] != given[0].shape[d - new])
            self._mark(t, Own(frozenset(alike)))
        depends = any(self.alike_in(t) for t in given)
        if depends and self.program is not None and not op.is_view and torch.Tag.pointwise not in op.tags:
            self.program.append(self.count)  # a sum of ones tells how many there are

    def _described(self, op: OpOverload, args: Any, kwargs: Any, result: Any) -> object:
        names = (a.name for a in op._schema.arguments)
        named = [*zip(names, args, strict=False), *kwargs.items()]
        arguments = [value for name, value in named if name not in _SIZES]
        return str(op), self._shown(arguments), self._shown(list(_tensors((result,))))

    # Branches: one for each kind of value.
    def _shown(self, value: Any) -> object:
        if isinstance(value, Tensor):
            images, alike = self.images_in(value), self.alike_in(value)
            dims = zip(value.shape, value.stride(), strict=True)
            shape: list[float] = [1 if stride == 0 else size for size, stride in dims]
            if images:
                shape[images.dim] //= self.count
            elif alike:
                shape = [s / self.count if d in alike and s % self.count == 0 else s for d, s in enumerate(shape)]
            elif value.numel() == 1 and value.device.type != "meta":
                self.numbers.append(value.item())
            elif value.numel() and self.state(value) is None and _memory(value) not in self._known:
                raise Meeting("a tensor comes from outside torch's operations")
            return images, tuple(shape), value.dtype
        if isinstance(value, (list, tuple)):
            return tuple(map(self._shown, value))
        return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@cache
def name_of(op: OpOverload) -> str:
    namespace, _, name = op._schema.name.partition("::")
    return name if namespace == "aten" else op._schema.name


@cache
def _written(op: OpOverload) -> tuple[str, ...]:
    return tuple(a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write)


_READS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim"}
_FILLED = {"zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "scalar_tensor"}
_FLEETING = {"detach", "alias"}  # which come and go with hooks on saved tensors
_SIZES = {"size", "repeats", "N"}  # arguments that the shape of the result repeats


class Call(NamedTuple):
    """One operation on images, after it has run."""

    op: OpOverload
    args: Sequence[Any]
    kwargs: dict[str, Any]
    carriers: list[Tensor]  # the tensors among its arguments in which images lie
    others: list[Tensor]
    result: Any

    @property
    def results(self) -> list[Tensor]:
        return list(_tensors((self.result,)))

    def argument(self, *names: str) -> Any:
        """The first argument of one of these names; None if it was not given."""
        for i, a in enumerate(self.op._schema.arguments):
            if a.name in names:
                return self.kwargs.get(a.name, self.args[i] if i < len(self.args) else a.default_value)
        return None

    def dims(self, of: Tensor, *names: str) -> set[int]:
        """The dimensions named by an argument, counted from the front; all where none are named."""
        value = self.argument(*names)
        if value is None or value == []:
            return set(range(of.dim()))
        return {d % of.dim() for d in ([value] if isinstance(value, int) else value)}

    def only_carrier_is(self, position: int) -> Tensor:
        carrier = self.args[position]
        if any(t is not carrier for t in self.carriers):
            raise Meeting("images are multiplied with images")
        return carrier


Rule = Callable[[Watch, Call], None]
