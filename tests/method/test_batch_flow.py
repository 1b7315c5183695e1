"""Where a batch's images lie after each operation, against an oracle that asks the values: an image made of NaN spoils what
depends on it, whatever the weights are."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from datgan_fast.method.batch_flow import Images, Watch
from datgan_fast.method.batch_rules import rule_of

pytestmark = pytest.mark.usefixtures("one_thread")
N = 4


def followed(function, x):
    """(result, the watch) of a function of a batch."""
    x = x.clone()
    with Watch(x, rule_of) as watch:
        result = function(x)
    return result, watch


def stays_apart(function, x):
    result, watch = followed(function, x)
    return watch.why_not(result) is None


def spoilt(function, x, image):
    """Which entries of the result are not finite once an image is made of NaN."""
    x = x.clone()
    x[image] = float("nan")
    return function(x).isnan()


def owners(t, images):
    """The image that owns each entry of t."""
    index = torch.arange(t.shape[images.dim]) // images.rows % N
    return index.view(-1, *[1] * (t.dim() - images.dim - 1)).expand(t.shape)


# Random programs of random operations


def _factors(count, rng):
    """A random shape of this many elements."""
    shape = []
    while count > 1 and len(shape) < 5:
        divisors = [d for d in range(2, count + 1) if count % d == 0]
        shape.append(rng.choice(divisors))
        count //= shape[-1]
    return [*shape, count] if count > 1 or not shape else shape


def _random_operation(h, rng):
    """One operation on h with fixed random arguments, as a function of h."""
    d = rng.randrange(h.dim())
    e = rng.randrange(h.dim())
    order = rng.sample(range(h.dim()), h.dim())
    shape = _factors(h.numel(), rng)
    size = h.shape[d]
    cut = rng.randrange(size)
    generator = torch.Generator("cpu").manual_seed(rng.randrange(2**31))
    right = torch.randn(h.shape[-1], N, generator=generator)
    left = torch.randn(N, h.shape[-2] if h.dim() > 1 else 1, generator=generator)
    same = torch.randn(h.shape, generator=generator)
    row = torch.randn(h.shape[-1], generator=generator)
    index = torch.randint(size, (size,), generator=generator)
    half = torch.randn(h.shape[:-1], generator=generator).unsqueeze(-1)
    choices = {
        "permute": lambda h: h.permute(order),
        "transpose": lambda h: h.transpose(d, e),
        "reshape": lambda h: h.reshape(shape),
        "unsqueeze": lambda h: h.unsqueeze(d),
        "squeeze": lambda h: h.squeeze(),
        "sum": lambda h: h.sum(d),
        "mean kept": lambda h: h.mean(d, keepdim=True),
        "mean of two": lambda h: h.mean(tuple({d, e})),
        "amax": lambda h: h.amax(d, keepdim=True),
        "norm": lambda h: torch.linalg.vector_norm(h, dim=d),
        "std": lambda h: h.std(d, unbiased=False),
        "logsumexp": lambda h: h.logsumexp(d),
        "softmax": lambda h: h.softmax(d),
        "cumsum": lambda h: h.cumsum(d),
        "flip": lambda h: h.flip(d),
        "roll": lambda h: h.roll(1, d),
        "sort": lambda h: h.sort(d).values,
        "select": lambda h: h.select(d, cut),
        "narrow": lambda h: h.narrow(d, cut, size - cut),
        "chunk": lambda h: h.chunk(2, d)[0],
        "unbind": lambda h: h.unbind(d)[0],
        "cat": lambda h: torch.cat([h, h], d),
        "cat own": lambda h: torch.cat([h, same], d),
        "stack": lambda h: torch.stack([h, h * 2], d),
        "index": lambda h: h.index_select(d, index),
        "pick": lambda h: h[(slice(None),) * d + (index,)],
        "repeat": lambda h: h.repeat(*[2 if k == d else 1 for k in range(h.dim())]),
        "expand": lambda h: h.unsqueeze(d).expand(*h.shape[:d], 2, *h.shape[d:]),
        "pad": lambda h: F.pad(h, [1, -1] if h.shape[-1] > 1 else [1, 0]),
        "pad two": lambda h: F.pad(h, [0, 0, 1, -1]) if h.dim() > 1 and h.shape[-2] > 1 else h,
        "multiply": lambda h: h * row,
        "add own": lambda h: h + same,
        "add half": lambda h: h + half,
        "add itself moved": lambda h: h + h.transpose(d, e) if h.shape[d] == h.shape[e] else h - 1,
        "linear": lambda h: h @ right,
        "linear from the left": lambda h: left @ h if h.dim() > 1 else h.exp(),
        "product": lambda h: h @ h.transpose(-1, -2) if h.dim() > 1 else h.sin(),
        "layer norm": lambda h: F.layer_norm(h, h.shape[-1:]),
        "relu": lambda h: F.leaky_relu(h, 0.2),
        "in place": lambda h: (h * 1).mul_(0.5),
        "written into": lambda h: torch.zeros(h.shape, dtype=h.dtype).copy_(h),
        "written into a part": lambda h: _written_into_a_part(h, d),
        "filled": lambda h: torch.cat([h, h.new_zeros(h.shape)], d),
        "unfold": lambda h: h.unfold(d, 1, 1),
        "where": lambda h: torch.where(h > 0, h, h * 0.1),
        "matrix vector": lambda h: h @ row,
        "maximum of both": lambda h: torch.maximum(h, h * 2),
    }
    return rng.choice(list(choices.items()))


def _written_into_a_part(h, d):
    whole = torch.zeros([size + (k == d) for k, size in enumerate(h.shape)], dtype=h.dtype)
    whole.narrow(d, 0, h.shape[d]).copy_(h)
    return whole


@pytest.mark.parametrize("seed", range(20))
def test_random_programs(seed):
    """Whatever is said of where the images lie after a random program is true, and enough is said to be of use."""
    rng = random.Random(seed)
    said = 0
    for _ in range(60):
        x = torch.randn(N, *rng.choice([(4, 4), (6,), (2, 3), (4, 2, 2), (3, 1, 4)]))
        program, names, h = [], [], x
        for _ in range(rng.randrange(1, 7)):
            name, step = _random_operation(h, rng)
            h = step(h)
            if h.numel() > 4096 or h.numel() == 0 or h.dim() == 0:
                break
            program.append(step)
            names.append(name)

        def run(h, program=program):
            for step in program:
                h = step(h)
            return h

        result, watch = followed(run, x)
        if watch._meeting or (images := watch.images_in(result)) is None:
            continue
        said += 1
        for image in range(N):
            strange = spoilt(run, x, image) & (owners(result, images) != image)
            assert not strange.any(), f"{names}: {images} of {tuple(result.shape)}"
    assert said > 10


# Layers: those in which images meet, and those that must not lose their fast path

CONV = (N, 8, 6, 6)
WEIGHT = torch.randn(8, 8, 3, 3)


class Circle(nn.Module):
    def forward(self, x):
        return F.pad(x, (1, 1, 1, 1), mode="circular")


def _attention_by_products(x):
    """As scaled_dot_product_attention does it where no fast kernel serves."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])


APART = {
    "conv": (nn.Conv2d(8, 4, 3, padding=1), CONV),
    "conv, groups, reflect": (nn.Conv2d(8, 4, 3, padding=1, groups=2, padding_mode="reflect"), CONV),
    "transposed conv": (nn.ConvTranspose2d(8, 4, 4, 2), CONV),
    "conv 1d": (nn.Conv1d(8, 4, 3), (N, 8, 6)),
    "conv 3d": (nn.Conv3d(2, 4, 2), (N, 2, 4, 4, 4)),
    "linear": (nn.Linear(6, 3), CONV),
    "GroupNorm": (nn.GroupNorm(2, 8), CONV),
    "LayerNorm": (nn.LayerNorm(6), CONV),
    "RMSNorm": (nn.RMSNorm(6), CONV),
    "InstanceNorm": (nn.InstanceNorm2d(8), CONV),
    "InstanceNorm, affine": (nn.InstanceNorm2d(8, affine=True), CONV),
    "InstanceNorm, eval": (nn.InstanceNorm2d(8, track_running_stats=True).eval(), CONV),
    "BatchNorm, eval": (nn.BatchNorm2d(8).eval(), CONV),
    "LocalResponseNorm": (nn.LocalResponseNorm(3), CONV),
    "activations": (nn.Sequential(nn.ReLU(), nn.ELU(), nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.Mish(), nn.Softplus()), CONV),
    "PReLU": (nn.PReLU(), CONV),
    "GLU": (nn.GLU(1), CONV),
    "max pool": (nn.MaxPool2d(2), CONV),
    "average pool": (nn.AvgPool2d(2), CONV),
    "adaptive pools": (nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.AdaptiveMaxPool2d(2), nn.AdaptiveAvgPool2d(1)), CONV),
    "upsampling": (nn.Sequential(nn.Upsample(scale_factor=2), nn.Upsample(size=5, mode="bilinear")), CONV),
    "pixel shuffles": (nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2)), CONV),
    "unfold": (nn.Unfold(2), CONV),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), CONV),
    "attention": (lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]), (N, 5, 8)),
    "attention by products": (_attention_by_products, (N, 5, 8)),
    "transformer": (nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), (N, 5, 8)),
    "einsum": (lambda x: torch.einsum("nchw,dchw->nd", x, WEIGHT[:, :, :1, :1].expand(8, 8, 6, 6)), CONV),
    "class token": (lambda x: torch.cat([WEIGHT[:1, :, 0, 0, None].expand(len(x), 8, 1), x], 2), (N, 8, 6)),
    "a plane of ones": (lambda x: torch.cat([x, torch.ones(len(x), 1, 6, 6)], 1), CONV),
    "groups within an image": (lambda x: x.view(len(x), 2, 4, 6, 6).std(1), CONV),
    "Fourier": (lambda x: torch.fft.rfft(x, dim=3).abs(), CONV),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_images_stay_apart(name):
    layer, shape = APART[name]
    x = torch.randn(shape)
    result, watch = followed(layer, x)
    assert watch.why_not(result) is None
    for image in range(N):
        assert not spoilt(layer, x, image).flatten(1).any(1)[torch.arange(N) != image].any()


def _gate(x):
    """Closed now, open once it has learnt."""
    return x + torch.zeros(()) * x.mean(0)


def _data(x):
    return x - x.data.mean(0)


def _detached(x):
    return x - x.detach().mean(0)


def _underflow(x):
    """Minibatch discrimination: unlike images do not see each other, until they are alike."""
    f = x.flatten(1) * 1e6
    return x.flatten(1) + torch.exp(-(f[:, None] - f[None]).abs().sum(-1)).sum(1, keepdim=True)


def _hidden_by_a_comparison(x):
    return x * (x.mean(0) > 1e9).float()


def _nearest(x):
    flat = x.flatten(1)
    return flat + flat[torch.cdist(flat, flat).argmin(1)]


def _by_value(x):
    return x - x.mean(0) if float(x.max()) > 1e9 else x


WEIGHT_OF_A_GATE = torch.zeros(())


def _by_weight(x):
    return x - x.mean(0) if float(WEIGHT_OF_A_GATE) > 0 else x


def _into_the_other_half(x):
    whole = torch.zeros(len(x), 2 * x[0].numel(), dtype=x.dtype)
    whole[:, : x[0].numel()] = x.flatten(1)
    return whole.roll(1, 0)


def _through_a_view_made_before(x):
    whole = torch.zeros(x.shape, dtype=x.dtype)
    first = whole[0]
    whole.copy_(x)
    return x + first


MEETING = {
    "BatchNorm": nn.BatchNorm2d(8),
    "BatchNorm without statistics": nn.BatchNorm2d(8, track_running_stats=False),
    "InstanceNorm with statistics": nn.InstanceNorm2d(8, track_running_stats=True),
    "dropout": nn.Dropout(0.5),
    "noise": lambda x: x + torch.randn_like(x),
    "noise for one": lambda x: x + torch.randn(1),
    "mean": lambda x: x - x.mean(0),
    "mean of all": lambda x: x - x.mean(),
    "sum, kept": lambda x: x / x.sum(0, keepdim=True),
    "variance in groups": lambda x: x.view(2, -1, *x.shape[1:]).var(0).repeat(2, 1, 1, 1) + x,
    "softmax over the batch": lambda x: x.softmax(0),
    "median": lambda x: x - x.median(0).values,
    "attention by products over the batch": lambda x: _attention_by_products(x.flatten(2).transpose(0, 1)).squeeze(1),
    "attention over the batch": lambda x: F.scaled_dot_product_attention(*3 * [x.flatten(1)[None, None]]).view(x.shape),
    "the one before": lambda x: x + x.roll(1, 0),
    "in reverse": lambda x: x + x.flip(0),
    "half of them": lambda x: torch.cat([x[N // 2 :], x[: N // 2]]),
    "Gram matrix": lambda x: (x.flatten(1) @ x.flatten(1).T) @ x.flatten(1),
    "the batch as channels": lambda x: F.conv2d(x.transpose(0, 1), torch.ones(8, N, 1, 1)).transpose(0, 1),
    "labels of this batch": lambda x: x * torch.arange(float(N))[:, None, None, None],
    "a closed gate": _gate,
    "a detached mean": _detached,
    "data's mean": _data,
    "minibatch discrimination": _underflow,
    "hidden by a comparison": _hidden_by_a_comparison,
    "nearest neighbour": _nearest,
    "a way chosen by value": _by_value,
    "a way chosen by a weight": _by_weight,
    "a part of another tensor": _into_the_other_half,
    "a view made before": _through_a_view_made_before,
    "recurrent": nn.LSTM(36, 3, batch_first=True),
}


@pytest.mark.parametrize("name", MEETING)
def test_images_meet(name):
    x = torch.randn(CONV)
    layer = MEETING[name]
    function = (lambda x: layer(x.flatten(2))[0]) if name == "recurrent" else layer
    assert not stays_apart(function, x)


def test_a_rule_is_needed(monkeypatch):
    """What nobody has thought of counts as a meeting."""
    x = torch.randn(CONV)
    assert not stays_apart(lambda x: torch.special.polygamma(1, x).cumprod(3).renorm(2, 0, 1.0), x)


def test_a_buffer_that_changes_is_named():
    counter = torch.zeros(())
    result, watch = followed(lambda x: x * counter.add_(1), torch.randn(CONV))
    assert "outlives its forward (in add_)" in watch.why_not(result)


@pytest.mark.parametrize("out", [False, True])
def test_a_buffer_that_images_are_written_to(out):
    buffer = torch.zeros(CONV)
    write = (lambda x: torch.add(x, 1, out=buffer)) if out else (lambda x: buffer.copy_(x))
    result, watch = followed(write, torch.randn(CONV))
    assert watch.why_not(result)


def test_the_place_of_the_operation_is_said():
    result, watch = followed(lambda x: x - x.mean(0), torch.randn(CONV))
    assert watch.why_not(result) == "images are put into one statistic (in mean)"


def test_one_image_meets_nobody():
    x = torch.randn(1, 8, 6, 6)
    assert stays_apart(lambda x: x - x.mean(0), x)
    assert not stays_apart(nn.BatchNorm2d(8), x)  # its statistics still change


def test_places():
    """Folded into another dimension and back."""
    x = torch.randn(N, 2, 6)
    for function, images in {
        lambda x: x.flatten(0, 1): Images(0, 1, 2),
        lambda x: x.transpose(0, 1): Images(1),
        lambda x: x.transpose(0, 1).reshape(2 * N, 6): Images(0, 2, 1),
        lambda x: x.transpose(0, 1).reshape(2 * N, 6).view(2, N, 6).transpose(0, 1): Images(0),
        lambda x: x.permute(1, 2, 0).reshape(2, 6 * N): Images(1, 6, 1),
        lambda x: torch.stack([x, x]): Images(1),
        lambda x: torch.stack([x, x], 1): Images(0),
        lambda x: x.transpose(0, 2).sum((0, 1)): Images(0),
        lambda x: x.permute(1, 2, 0).amax(0): Images(1),
        lambda x: x.repeat(3, 1, 1): Images(0, 3, 1),
        lambda x: x.transpose(0, 1).select(0, 1): Images(0),
        lambda x: torch.ones(3, 6) @ x.permute(1, 2, 0): Images(2),
    }.items():
        result, watch = followed(function, x)
        assert watch.images_in(result) == images
