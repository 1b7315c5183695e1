"""Follows the images of a batch through one forward, operation by operation, and says whether any two of them meet.

Two images can meet only in an operation that works along the dimension in which they lie: a reduction, a matrix product, a
normalisation, a sum with the same images in another order. `Watch` knows of every tensor where its images lie and has a rule
for each of torch's operations. It looks at shapes and arguments, never at values, so that its answer does not depend on what
weights or images are or will become. An operation without a rule counts as one in which images meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
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


class Own(Enum):
    """A tensor that this forward made from something else than images."""

    ALIKE = "the same content for every image, such as a number it was filled with"
    OTHER = "any other"


class Meeting(Exception):  # noqa: N818  no error: an answer
    """Images meet here, or nobody knows whether they do; the message says where."""


class Watch(TorchDispatchMode):
    """Inside this context every operation on `images` is followed.

    Args:
        images: [N, ...]; the tensor itself, and all that is computed from it, is recognised.
        program: a list to which every operation is appended, in a form that is the same for every N as long as nothing but the
            batch's extent follows it.
    """

    def __init__(self, images: Tensor, program: list[object] | None = None) -> None:
        super().__init__()
        self.count = len(images)
        self.program = program
        self.numbers: list[object] = []  # that the program took from tensors
        self._meeting: str | None = None
        self._change: str | None = None  # weaker: a statistic that changes is mostly part of a meeting
        self._hook: str | None = None
        self._written: set[int] = set()  # storages of this forward into which images were written
        self._mark(images, Images(0))

    def why_not(self, scores: object) -> str | None:
        """Why the images are not known to stay apart on their way to `scores`, [N, ...]; None if they are."""
        found = self._meeting or self._change or self._hook
        if not found and not (isinstance(scores, Tensor) and self._state(scores) == Images(0)):
            found = "its output could not be followed"
        return found

    # What is known of a tensor is written onto it.

    def _mark(self, tensor: Tensor, state: Images | Own) -> None:
        tensor._datgan_fast_flow = (self, state)  # type: ignore[attr-defined]

    def _state(self, tensor: Tensor) -> Images | Own | None:
        watch, state = getattr(tensor, "_datgan_fast_flow", (None, None))
        if watch is not self:
            state = None
        if not isinstance(state, Images) and self._written and tensor.untyped_storage()._cdata in self._written:
            raise Meeting("images were written into a part of this tensor")
        return state

    def images_in(self, tensor: Tensor) -> Images | None:
        state = self._state(tensor)
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
        return dim < 0 or tensor.shape[dim] == 1 or tensor.stride(dim) == 0 or self._state(tensor) is Own.ALIKE

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # compiled code is not watched, and telling the compiler so at every operation costs time

    def __torch_dispatch__(self, op: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        if self._meeting is None:
            try:
                self._follow(op, args, kwargs, result)
            except Meeting as meeting:
                self._meeting = f"{meeting} (in {_name(op)})"
        return result

    def _follow(self, op: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        given = list(_tensors((*args, *kwargs.values())))
        carriers = [t for t in given if self.images_in(t)]
        if any(t._backward_hooks for t in carriers):
            self._hook = "a hook on a tensor inside the network may change its gradient"
        if (
            torch.Tag.nondeterministic_seeded in op.tags
            and Call(op, args, kwargs, [], [], None).argument("dropout_p") != 0
        ):
            raise Meeting("random numbers are drawn for the batch")
        if _name(op) in _READS:
            raise Meeting("the network reads a number back and may go another way with the next one")
        for position in _written_arguments(op):
            target = args[position] if position < len(args) else None
            for t in _tensors((target,)):
                if self._state(t) is None:
                    self._change = f"the network changes a tensor that outlives its forward (in {_name(op)})"
        if not carriers or _name(op).startswith("new_"):  # which takes nothing of its operand but device and dtype
            self._mark_own(op, given, result)
        elif self.count == 1:  # nothing can meet
            for t in _tensors((result,)):
                self._mark(t, Images(0))
        else:
            rule = _rule(op)
            if rule is None:
                raise Meeting("images may meet")
            rule(self, Call(op, args, kwargs, carriers, [t for t in given if not self.images_in(t)], result))
        if self.program is not None and _name(op) not in (
            "detach",
            "alias",
        ):  # which come and go with hooks on saved tensors
            self.program.append(self._described(op, args, kwargs, result))

    def _mark_own(self, op: OpOverload, given: list[Tensor], result: Any) -> None:
        if op.is_view and self._state(given[0]) is None:  # a part of a parameter is no tensor of this forward
            return
        state = Own.ALIKE if _name(op) in _ALIKE_MAKERS else Own.OTHER
        for t in _tensors((result,)):
            self._mark(t, state)

    def _described(self, op: OpOverload, args: Any, kwargs: Any, result: Any) -> object:
        names = (a.name for a in op._schema.arguments)
        named = [*zip(names, args, strict=False), *kwargs.items()]
        arguments = [value for name, value in named if name not in _SIZES]
        return str(op), self._shown(arguments), self._shown(list(_tensors((result,))))

    def _shown(self, value: Any) -> object:
        if isinstance(value, Tensor):
            images, own = self.images_in(value), self._state(value)
            dims = zip(value.shape, value.stride(), strict=True)
            shape: list[float] = [1 if stride == 0 else size for size, stride in dims]
            if images:
                shape[images.dim] //= self.count
            elif own is Own.ALIKE:
                shape = [size if size % self.count else size / self.count for size in shape]
            elif value.numel() == 1 and value.device.type != "meta":
                self.numbers.append(value.item())
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


@cache
def _name(op: OpOverload) -> str:
    namespace, _, name = op._schema.name.partition("::")
    return name if namespace == "aten" else op._schema.name


@cache
def _written_arguments(op: OpOverload) -> tuple[int, ...]:
    arguments = op._schema.arguments
    return tuple(i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write)


_READS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim"}
_ALIKE_MAKERS = {"zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "scalar_tensor", "repeat"}
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
_RULES: dict[str, Rule] = {}


def _rule(op: OpOverload) -> Rule | None:
    known = _RULES.get(_name(op))
    return known or (_elementwise if torch.Tag.pointwise in op.tags else None)


def _for(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _source(watch: Watch, call: Call) -> tuple[Tensor, Images]:
    """The one tensor with images, and where they lie in it."""
    if len(call.carriers) != 1:
        raise Meeting("images may meet")
    images = watch.images_in(call.carriers[0])
    assert images is not None
    return call.carriers[0], images


@_for("_to_copy", "detach", "alias", "copy_", "lift_fresh", "zeros_like", "ones_like", "full_like", "empty_like", "hardswish",
      "_prelu_kernel", "log_sigmoid_forward", "hardswish_")  # fmt: skip
def _elementwise(watch: Watch, call: Call) -> None:
    """Every operand is aligned from its last dimension, as broadcasting does."""
    results = call.results
    width = results[0].dim() if results else 0
    where: Images | None = None
    for t in call.carriers:
        images = watch.images_in(t)
        assert images is not None
        aligned = images._replace(dim=images.dim + width - t.dim())
        if where not in (None, aligned):
            raise Meeting("images are combined with the same images in another order")
        where = aligned
    assert where is not None
    for t in call.others:
        if not watch.same_for_each(t, where.dim - width + t.dim()):
            raise Meeting("the batch is combined with a tensor that has an entry for each of its images")
    for t in results:
        if t.dim() < width:  # an operation that gives something else too
            raise Meeting("images may meet")
        if isinstance(watch._state(t), Own):  # written in place, and other tensors may see the same memory
            watch._written.add(t.untyped_storage()._cdata)
        watch.mark_images(t, where)


@_for("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten")
def _reshaped(watch: Watch, call: Call) -> None:
    """The same elements in the same order: an image's block keeps its length, so that one dimension can hold it."""
    source, images = _source(watch, call)
    block = images.rows * math.prod(source.shape[images.dim + 1 :])
    shape = call.result.shape
    for d, size in enumerate(shape):
        below = math.prod(shape[d + 1 :])
        if below and block % below == 0 and size % (watch.count * (block // below)) == 0:
            rows = block // below
            watch.mark_images(call.result, Images(d, size // (watch.count * rows), rows))
            return
    raise Meeting("images are cut into pieces of another size")


@_for("expand")
def _expanded(watch: Watch, call: Call) -> None:
    source, images = _source(watch, call)
    watch.mark_images(call.result, images._replace(dim=images.dim + call.result.dim() - source.dim()))


@_for("repeat")
def _repeated(watch: Watch, call: Call) -> None:
    source, images = _source(watch, call)
    dim = images.dim + call.result.dim() - source.dim()
    watch.mark_images(call.result, Images(dim, images.blocks * call.argument("repeats")[dim], images.rows))


@_for("permute", "transpose", "t", "movedim")
def _permuted(watch: Watch, call: Call) -> None:
    source, images = _source(watch, call)
    order = list(range(source.dim()))
    if _name(call.op) == "permute":
        order = [d % source.dim() for d in call.argument("dims")]
    elif source.dim() > 1:
        a, b = (0, 1) if _name(call.op) == "t" else (call.argument("dim0"), call.argument("dim1"))
        order[a], order[b] = order[b], order[a]
    watch.mark_images(call.result, images._replace(dim=order.index(images.dim)))


@_for("select", "unbind")
def _selected(watch: Watch, call: Call) -> None:
    source, images = _source(watch, call)
    dim = call.argument("dim") % source.dim()
    if dim == images.dim:
        raise Meeting("single images are taken out of the batch")
    for t in call.results:
        watch.mark_images(t, images._replace(dim=images.dim - (dim < images.dim)))


@_for("slice", "split", "split_with_sizes", "unfold")
def _batch_untouched(watch: Watch, call: Call) -> None:
    """Works along other dimensions, which keep their places, and would show in the batch's size if it worked along that."""
    source, images = _source(watch, call)
    for t in call.results:
        if t.shape[images.dim] != source.shape[images.dim]:
            raise Meeting("images are taken out of the batch")
        watch.mark_images(t, images)


@_for("_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "flip", "roll", "sort", "topk", "glu", "_fft_r2c",
      "_fft_c2c", "_fft_c2r")  # fmt: skip
def _along(watch: Watch, call: Call) -> None:
    """Works along the dimensions it names, which stay."""
    source, images = _source(watch, call)
    if images.dim in call.dims(source, "dim", "dims"):
        raise Meeting("images are put into one sum or order")
    for t in call.results:
        watch.mark_images(t, images)


@_for("sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm",
      "logsumexp", "prod", "any", "all", "argmax", "argmin", "median", "nanmedian", "count_nonzero", "kthvalue", "mode",
      "aminmax")  # fmt: skip
def _reduced(watch: Watch, call: Call) -> None:
    if _name(call.op) in ("max", "min") and len(call.others) + len(call.carriers) > 1:
        return _elementwise(watch, call)
    source, images = _source(watch, call)
    dims = call.dims(source, "dim")
    if images.dim in dims:
        raise Meeting("images are put into one statistic")
    for t in call.results:
        gone = 0 if t.dim() == source.dim() else sum(d < images.dim for d in dims)
        watch.mark_images(t, images._replace(dim=images.dim - gone))
    return None


@_for("convolution", "convolution_overrideable", "cudnn_convolution", "mkldnn_convolution", "native_group_norm",
      "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
      "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention", "im2col", "col2im",
      "grid_sampler_2d", "grid_sampler_3d")  # fmt: skip
def _first_dimension(watch: Watch, call: Call) -> None:
    """Works on each entry of the first dimension by itself."""
    places = {watch.images_in(t) for t in call.carriers}
    if len(places) > 1:
        raise Meeting("images are combined with the same images in another order")
    (images,) = places
    source = call.carriers[0]
    if images is None or images.dim != 0 or call.args[0] is not source:
        raise Meeting("images lie where the operation mixes")
    weights = call.op._schema.arguments[1].name == "weight"
    if weights and len(call.carriers) > 1:
        raise Meeting("images are multiplied with images")
    if _name(call.op).endswith("convolution") and source.dim() != call.args[1].dim():
        raise Meeting("images lie where the operation mixes")
    if not weights and any(not watch.same_for_each(t, 0) for t in call.others if t.dim() == source.dim()):
        raise Meeting("the batch is combined with a tensor that has an entry for each of its images")
    for t in call.results:
        if t.dim() and t.shape[0] == source.shape[0]:
            watch.mark_images(t, images)
        elif t.numel() > 2:  # a random state is none of the images'
            raise Meeting("images may meet")


def _last_dimensions(watch: Watch, call: Call, count: int) -> None:
    """Works on the last `count` dimensions only."""
    source, images = _source(watch, call)
    if images.dim >= source.dim() - count:
        raise Meeting("images lie where the operation mixes")
    for t in call.results:
        watch.mark_images(t, images)


@_for("constant_pad_nd")
def _padded(watch: Watch, call: Call) -> None:
    _last_dimensions(watch, call, len(call.argument("pad")) // 2)


@_for("pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
def _shuffled(watch: Watch, call: Call) -> None:
    _last_dimensions(watch, call, 3)


def _over_space(dimensions: int) -> Rule:
    return lambda watch, call: _last_dimensions(watch, call, dimensions)


_RESAMPLING = {1: ["upsample_linear1d"], 2: ["upsample_bilinear2d", "upsample_bicubic2d"], 3: ["upsample_trilinear3d"]}
_RESAMPLING[2] += ["_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"]
_OVER_SPACE = [
    "avg_pool{}d",
    "_adaptive_avg_pool{}d",
    "adaptive_avg_pool{}d",
    "adaptive_max_pool{}d",
    "max_pool{}d_with_indices",
]
_OVER_SPACE += ["reflection_pad{}d", "replication_pad{}d", "upsample_nearest{}d", "_upsample_nearest_exact{}d"]
for _d, _names in _RESAMPLING.items():
    _for(*_names, *(name.format(_d) for name in _OVER_SPACE))(_over_space(_d))


@_for("native_layer_norm", "_fused_rms_norm")
def _layer_norm(watch: Watch, call: Call) -> None:
    _last_dimensions(watch, call, len(call.argument("normalized_shape")))


@_for("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit",
      "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_batch_norm_no_update",
      "_batch_norm_with_update_functional")  # fmt: skip
def _batch_norm(watch: Watch, call: Call) -> None:
    """One statistic for each entry of dimension 1: the batch's where images lie in dimension 0, one image's (as instance
    normalisation does it) where they lie in dimension 1."""
    source, images = call.only_carrier_is(0), watch.images_in(call.args[0])
    assert images is not None
    learns = call.argument("training", "train")
    if learns is None:
        learns = "no_training" not in _name(call.op) and "no_update" not in _name(call.op)
    if learns and images.dim != 1:
        raise Meeting("images are normalised by the statistics of their batch")
    if images.dim > 1:
        raise Meeting("images lie where the operation mixes")
    if images.dim == 1 and any(watch._state(t) is not Own.ALIKE for t in call.others):
        raise Meeting("the batch is combined with a tensor that has an entry for each of its images")
    for t in call.results:
        if t.shape == source.shape:
            watch.mark_images(t, images)
        elif images.dim == 1 and t.dim() == 1 and t.numel():
            watch.mark_images(t, images._replace(dim=0))


@_for("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear")
def _product(watch: Watch, call: Call) -> None:
    """A matrix product sums over the left factor's last dimension and the right one's first behind the batch's."""
    name = _name(call.op)
    added, (left, right) = (call.args[0], call.args[1:3]) if name.startswith(("add", "badd")) else (None, call.args[:2])
    if added is not None and watch.images_in(added):
        raise Meeting("images are added to a product of images")
    mine, theirs = watch.images_in(left), watch.images_in(right)
    batched = name in ("bmm", "baddbmm")
    if mine and theirs:
        if not batched or mine != theirs or mine.dim != 0:
            raise Meeting("images are multiplied with images")
        place = mine
    elif mine:
        if mine.dim == left.dim() - 1:
            raise Meeting("images are put into one sum")
        if batched and mine.dim == 0 and not watch.same_for_each(right, 0):
            raise Meeting("the batch is combined with a tensor that has an entry for each of its images")
        place = mine
    elif theirs:
        if name in ("mv", "addmv", "linear") or theirs.dim == right.dim() - 2:
            raise Meeting("images are put into one sum")
        if batched and theirs.dim == 0 and not watch.same_for_each(left, 0):
            raise Meeting("the batch is combined with a tensor that has an entry for each of its images")
        place = theirs
    else:
        raise Meeting("images may meet")
    if added is not None and not watch.same_for_each(added, place.dim - call.result.dim() + added.dim()):
        raise Meeting("the batch is combined with a tensor that has an entry for each of its images")
    watch.mark_images(call.result, place)


@_for("cat", "stack")
def _joined(watch: Watch, call: Call) -> None:
    parts = list(call.args[0])
    dim = call.argument("dim") % call.result.dim()
    stacked = _name(call.op) == "stack"
    places = {watch.images_in(t) for t in call.carriers}
    if len(places) > 1:
        raise Meeting("images are combined with the same images in another order")
    (images,) = places
    assert images is not None
    if not stacked and dim == images.dim:
        raise Meeting("batches are joined")
    if any(not watch.same_for_each(t, images.dim) for t in parts if not watch.images_in(t) and t.dim() > images.dim):
        raise Meeting("the batch is combined with a tensor that has an entry for each of its images")
    watch.mark_images(call.result, images._replace(dim=images.dim + (stacked and dim <= images.dim)))


@_for("index_select", "index")
def _indexed(watch: Watch, call: Call) -> None:
    """One list of positions along another dimension than the batch's."""
    source, images = call.only_carrier_is(0), watch.images_in(call.args[0])
    assert images is not None
    if _name(call.op) == "index_select":
        chosen = [call.argument("dim") % source.dim()]
    else:
        chosen = [d for d, index in enumerate(call.args[1]) if index is not None]
        if len(chosen) != 1 or call.args[1][chosen[0]].dim() != 1 or call.args[1][chosen[0]].dtype == torch.bool:
            raise Meeting("images may meet")
    if images.dim in chosen:
        raise Meeting("single images are taken out of the batch")
    watch.mark_images(call.result, images)


@_for("embedding")
def _embedded(watch: Watch, call: Call) -> None:
    images = watch.images_in(call.only_carrier_is(1))
    assert images is not None
    watch.mark_images(call.result, images)
