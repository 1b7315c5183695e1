"""A rule for each of torch's operations: where the images of a batch lie in its results, or that they meet in it.

A rule takes the watch and the call, after it has run, and marks the results; it raises Meeting where images meet. A new operation
gets a function or, where it works like another, its name in that one's list.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch._ops import OpOverload

from .batch_flow import Call, Images, Meeting, Own, Rule, Watch, name_of

_RULES: dict[str, Rule] = {}


def rule_of(op: OpOverload) -> Rule | None:
    known = _RULES.get(name_of(op))
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


# Activations that not every torch has tagged as elementwise.
_ACTIVATIONS = [
    "celu",
    "elu",
    "gelu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "mish",
    "relu",
]
_ACTIVATIONS += ["selu", "sigmoid", "silu", "softplus", "softshrink", "tanh", "threshold", "clamp", "_prelu_kernel"]


@_for(
    "_to_copy", "clone", "detach", "alias", "copy_", "lift_fresh", "zeros_like", "ones_like", "full_like", "empty_like"
)
@_for("log_sigmoid_forward", *_ACTIVATIONS, *(f"{name}_" for name in _ACTIVATIONS))
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
        if t.numel() and t.dim() != width:  # an operation that gives something else too
            raise Meeting("images may meet")
        if isinstance(watch.state(t), Own):  # written in place, and other tensors may see the same memory
            watch.written.add(t.untyped_storage()._cdata)
        watch.mark_images(t, where)


@_for("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten")
def _reshaped(watch: Watch, call: Call) -> None:
    """The same elements in the same order: an image's block keeps its length, so that one dimension can hold it."""
    source, images = _source(watch, call)
    if source.numel() != call.result.numel():  # the same bytes as another dtype
        raise Meeting("images are cut into pieces of another size")
    block = images.rows * math.prod(source.shape[images.dim + 1 :])
    shape = call.result.shape
    for d, size in enumerate(shape):
        below = math.prod(shape[d + 1 :])
        if below and block and block % below == 0 and size % (watch.count * (block // below)) == 0:
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
    if name_of(call.op) == "permute":
        order = [d % source.dim() for d in call.argument("dims")]
    elif source.dim() > 1:
        a, b = (0, 1) if name_of(call.op) == "t" else (call.argument("dim0"), call.argument("dim1"))
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
    _, images = _source(watch, call)
    for t in call.results:
        watch.mark_images(t, images)


@_for("_softmax", "_safe_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "flip", "roll", "sort", "topk",
      "glu", "_fft_r2c", "_fft_c2c", "_fft_c2r")  # fmt: skip
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
    if name_of(call.op) in ("max", "min") and len(call.others) + len(call.carriers) > 1:
        return _elementwise(watch, call)
    source, images = _source(watch, call)
    dims = call.dims(source, "dim")
    if images.dim in dims:
        raise Meeting("images are put into one statistic")
    for t in call.results:
        gone = 0 if t.dim() == source.dim() else sum(d < images.dim for d in dims)
        watch.mark_images(t, images._replace(dim=images.dim - gone))
    return None


# Branches: each is a way in which images may meet.
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
    if name_of(call.op).endswith("convolution") and source.dim() != call.args[1].dim():
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


@_for("pixel_shuffle", "pixel_unshuffle")
def _shuffled(watch: Watch, call: Call) -> None:
    _last_dimensions(watch, call, 3)


@_for("channel_shuffle")
def _channels_shuffled(watch: Watch, call: Call) -> None:
    """Works on dimension 1, however many there are."""
    source, _ = _source(watch, call)
    _last_dimensions(watch, call, source.dim() - 1)


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
        learns = "no_training" not in name_of(call.op) and "no_update" not in name_of(call.op)
    if learns and images.dim != 1:
        raise Meeting("images are normalised by the statistics of their batch")
    if learns and call.argument("running_mean") is not None:
        raise Meeting("a statistic is kept of the batch")
    if images.dim > 1:
        raise Meeting("images lie where the operation mixes")
    if images.dim == 1 and any(t.numel() and 0 not in watch.alike_in(t) for t in call.others):
        raise Meeting("the batch is combined with a tensor that has an entry for each of its images")
    for t in call.results:
        if t.shape == source.shape:
            watch.mark_images(t, images)
        elif images.dim == 1 and t.dim() == 1 and t.numel():
            watch.mark_images(t, images._replace(dim=0))


# Branches: each is a way in which images may meet.
@_for("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear")
def _product(watch: Watch, call: Call) -> None:
    """A matrix product sums over the left factor's last dimension and the right one's first behind the batch's."""
    name = name_of(call.op)
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
    stacked = name_of(call.op) == "stack"
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
    """One list of positions along another dimension than the batch's; or positions of the images' own, as labels, in a table."""
    source = call.args[0]
    if name_of(call.op) == "index_select":
        dim, index = call.argument("dim") % source.dim(), call.argument("index")
    else:
        chosen = [(d, index) for d, index in enumerate(call.args[1]) if index is not None]
        if len(chosen) != 1 or chosen[0][1].dim() != 1 or chosen[0][1].dtype == torch.bool:
            raise Meeting("images may meet")
        ((dim, index),) = chosen
    if not watch.images_in(source):
        where = watch.images_in(index)
        assert where is not None
        return watch.mark_images(call.result, where._replace(dim=dim))
    call.only_carrier_is(0)
    images = watch.images_in(source)
    assert images is not None
    if images.dim == dim:
        raise Meeting("single images are taken out of the batch")
    watch.mark_images(call.result, images)
    return None


@_for("gather")
def _gathered(watch: Watch, call: Call) -> None:
    """Positions along another dimension than the batch's, of each image's own."""
    places = {watch.images_in(t) for t in call.carriers}
    if len(places) > 1:
        raise Meeting("images are combined with the same images in another order")
    (images,) = places
    assert images is not None
    if call.argument("dim") % call.result.dim() == images.dim:
        raise Meeting("single images are taken out of the batch")
    if any(not watch.same_for_each(t, images.dim) for t in call.others):
        raise Meeting("the batch is combined with a tensor that has an entry for each of its images")
    watch.mark_images(call.result, images)


@_for("embedding")
def _embedded(watch: Watch, call: Call) -> None:
    images = watch.images_in(call.only_carrier_is(1))
    assert images is not None
    if call.argument("scale_grad_by_freq"):
        raise Meeting("a gradient is divided by how often the batch has an index")
    watch.mark_images(call.result, images)
