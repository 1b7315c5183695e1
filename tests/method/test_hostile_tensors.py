"""Whatever the public functions are given: what the formula says, or one documented error in one sentence."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import datgan_fast as dat
import oracle
from datgan_fast.errors import ConfigError, DataError
from datgan_fast.metrics import measures
from datgan_fast.training.option_values import convert
from datgan_fast.training.options import KINDS, Options
from datgan_fast.training.own_parts import own_images
from repeatable import repeatable

DOCUMENTED = (ValueError, TypeError, dat.BackendError)


def outcome(function, *arguments, **options):
    """What it gives; None after a documented error."""
    try:
        return function(*arguments, **options)
    except DOCUMENTED as error:
        said = str(error)
        assert said and "\n" not in said and len(said) < 600, said
        return None


# Anything that may be handed over

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
OTHERS = (torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
SPECIAL = (0.0, math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-30, 1.0, -1.0)
LAYOUTS = ("plain", "transposed", "strided", "expanded", "channels_last", "offset")
STRANGE = (None, 1.0, "image", [[0.0]], np.zeros((2, 3)), object)


def laid_out(t, layout):
    if layout == "transposed" and t.dim() > 1:
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        return torch.stack([t, t], -1)[..., 0]
    if layout == "expanded" and t.dim() and len(t):
        return t[:1].expand(t.shape)
    if layout == "channels_last" and t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "offset":
        return torch.cat([t.flatten()[:1], t.flatten()])[min(1, t.numel()) :].view(t.shape)
    return t


@st.composite
def tensors(draw, shape=None, dtypes=FLOATS, special=True):
    if shape is None:
        shape = draw(st.lists(st.integers(0, 4), max_size=5))
    random = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    t = torch.rand(list(shape), generator=random, dtype=torch.float64) * 1.8 - 0.9
    if special and t.numel() and draw(st.booleans()):
        t.view(-1)[draw(st.integers(0, t.numel() - 1))] = draw(st.sampled_from(SPECIAL))
    dtype = draw(st.sampled_from(dtypes))
    t = torch.nan_to_num(t, 0, 1, 0).to(dtype) if dtype in OTHERS else t.to(dtype)
    return laid_out(t, draw(st.sampled_from(LAYOUTS)))


def unusual(t):
    """The same on another device or of another layout, or as a gradient's beginning."""
    kinds = [lambda: t.to("meta"), lambda: t.to_sparse() if t.dim() else t, lambda: t.clone().requires_grad_()]
    return st.integers(0, 2).map(lambda i: kinds[i]())


THINGS = st.one_of(
    tensors(),
    tensors(dtypes=OTHERS, special=False),
    tensors(special=False).flatmap(unusual),
    st.sampled_from(STRANGE),
)
NUMBERS = st.one_of(
    st.floats(),
    st.sampled_from([0.0, 0.1, 1.0, -0.5, 1e30]),
    st.sampled_from(["0.1", None, True, 1j, np.float32(0.25), torch.tensor(0.25), torch.zeros(2), [1.0], 10**400]),
)
NORMS = st.sampled_from([*oracle.NORMS, "l1", None, 2])
OBJECTIVES = st.sampled_from([*oracle.OBJECTIVES, "relativistic", "gan", None, 1.5])
FORMULATIONS = st.sampled_from([*oracle.FORMULATIONS, "eq9", None])
BOUNDS = st.one_of(st.sampled_from([None, -1.0, 1.0, 0.0]), NUMBERS, tensors())
IMPLS = st.sampled_from([None, None, None, "cpu", "reference", "cuda", "triton", "numpy", 3])


def like(x):
    """Mostly of x's shape."""
    shape = tuple(x.shape) if isinstance(x, torch.Tensor) else (2, 3)
    return st.one_of(tensors(shape=shape), tensors(shape=shape), THINGS)


def is_usual(*things):
    return all(isinstance(t, torch.Tensor) and t.dtype in FLOATS and t.layout == torch.strided for t in things) and all(
        t.device.type == "cpu" for t in things
    )


def finite(*things):
    return all(bool(t.detach().double().abs().max() < 1e4) if t.numel() else True for t in things)


@repeatable(350)
@given(st.data())
def test_perturb(data):
    x = data.draw(THINGS)
    grad, eps = data.draw(like(x)), data.draw(NUMBERS)
    norm, low, high = data.draw(NORMS), data.draw(BOUNDS), data.draw(BOUNDS)
    result = outcome(dat.perturb, x, grad, eps, norm=norm, clip_min=low, clip_max=high, impl=data.draw(IMPLS))
    if result is None:
        return
    assert result.shape == x.shape == grad.shape and result.dtype == x.dtype and not result.requires_grad
    if is_usual(x, grad) and finite(x, grad) and abs(float(eps)) < 1e4:
        bounds = [oracle.array(b) if isinstance(b, torch.Tensor) else b and float(b) for b in (low, high)]
        if not any(b is not None and np.isnan(b).any() for b in bounds):
            expected = oracle.perturb(oracle.array(x), oracle.array(grad), float(eps), norm, *bounds)
            both = torch.float64 in (x.dtype, grad.dtype)
            oracle.assert_close(result, expected, double=both, loose=4)


@repeatable(350)
@given(st.data())
def test_perturb_of_what_is_right(data):
    """So that not all is refused at the door."""
    x = data.draw(tensors(shape=data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4)), special=False))
    grad = data.draw(tensors(shape=tuple(x.shape), special=False))
    eps, norm = data.draw(st.floats(-3, 3)), data.draw(st.sampled_from(oracle.NORMS))
    result = dat.perturb(x, grad, eps, norm=norm, impl=data.draw(st.sampled_from(["cpu", "reference"])))
    expected = oracle.perturb(oracle.array(x), oracle.array(grad), eps, norm)
    oracle.assert_close(result, expected, double=torch.float64 in (x.dtype, grad.dtype), loose=4)
    assert result.dtype == x.dtype and result.shape == x.shape


@repeatable(350)
@given(st.data())
def test_attack_loss(data):
    vectors = st.one_of(tensors(shape=(data.draw(st.integers(0, 5)),)), THINGS)
    real, fake = data.draw(vectors), data.draw(vectors)
    objective, formulation = data.draw(OBJECTIVES), data.draw(FORMULATIONS)
    target = data.draw(st.one_of(st.none(), st.none(), vectors))
    result = outcome(
        dat.attack_loss, real, fake, objective=objective, formulation=formulation, target_real_logits=target,
        impl=data.draw(IMPLS),
    )  # fmt: skip
    if result is None:
        return
    own = real if target is None else target
    assert all(t.dim() == 0 and t.dtype in FLOATS[:2] for t in result)
    if is_usual(real, fake, own) and finite(real, fake, own) and objective in oracle.OBJECTIVES:
        double = torch.float64 in (real.dtype, fake.dtype)
        expected = oracle.attack_loss(*map(oracle.array, (real, fake)), objective, formulation, oracle.array(own))
        for value, side in zip(result, expected, strict=True):
            oracle.assert_close(value, side.loss, double=double and own.dtype == torch.float64, loose=100)


@repeatable(300)
@given(st.data())
def test_attack_step(data):
    x = [data.draw(st.one_of(tensors(), THINGS)) for _ in range(2)]
    v = [data.draw(like(t)) for t in x]
    lengths = [(len(t),) if isinstance(t, torch.Tensor) and t.dim() else (2,) for t in x]
    logits = [data.draw(st.one_of(tensors(shape=n), tensors(shape=n), THINGS)) for n in lengths]
    options = {"objective": data.draw(OBJECTIVES), "formulation": data.draw(FORMULATIONS), "norm": data.draw(NORMS)}
    bounds = {"clip_min": data.draw(BOUNDS), "clip_max": data.draw(BOUNDS)}
    result = outcome(dat.attack_step, *x, *v, *logits, data.draw(NUMBERS), **options, **bounds, impl=data.draw(IMPLS))
    if result is not None:
        for images, gradients, adv, grad in zip(x, v, result[:2], result[2:4], strict=True):
            assert adv.shape == images.shape and adv.dtype == images.dtype
            assert grad.shape == gradients.shape and grad.dtype == gradients.dtype


class Anything(torch.nn.Module):
    """One logit of each image, of whatever shape and dtype; images do not depend on each other."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([0.7, -0.3]))

    def forward(self, x):
        x = x.reshape(len(x), math.prod(x.shape[1:])).to(self.scale.dtype)
        return (self.scale[0] * x).tanh().sum(1) + self.scale[1] * (x**2).sum(1)


def test_images_without_pixels():
    x = torch.zeros(2, 1), torch.zeros(2, 0)
    for fused in (True, False):
        assert outcome(dat.discriminator_step, Anything(), *x, eps=0.1, fused=fused) is not None
    assert outcome(own_images, torch.zeros(1, 1, 0, 0)) is None


def test_images_without_values():
    for images in (torch.zeros(1, 1, 4, 4, device="meta"), torch.zeros(1, 1, 4, 4).to_sparse()):
        assert outcome(own_images, images) is None


def test_bounds_beyond_a_dtype_are_none():
    x = torch.tensor([[0.5, -0.5]], dtype=torch.float16)
    for impl in ("cpu", "reference"):
        for low, high in ((-1e30, 0.2), (-1e30, torch.tensor(0.2)), (None, 0.2)):
            moved = dat.perturb(x, x, 1.0, clip_min=low, clip_max=high, impl=impl)
            assert torch.equal(moved, torch.zeros_like(x))
        far = dat.perturb(x, x, -1e3, clip_min=None, clip_max=1e30, impl=impl)
        torch.testing.assert_close(far, x * 1001, rtol=1e-2, atol=0)


ATTACKS = st.fixed_dictionaries(
    {"eps": NUMBERS},
    optional={
        "objective": OBJECTIVES,
        "formulation": FORMULATIONS,
        "norm": NORMS,
        "steps": st.sampled_from([1, 1, 2, 0, -1, 1.5, "2", None]),
        "alpha": st.one_of(st.none(), NUMBERS),
        "random_start": st.sampled_from([False, True, "yes"]),
        "clip_min": BOUNDS,
        "clip_max": BOUNDS,
        "condition_real": st.sampled_from([None, torch.zeros(2), (1,), {"labels": 3}]),
    },
)


def both_batches(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    batch = st.one_of(
        tensors(shape=(data.draw(st.integers(0, 4)), *shape)), tensors(shape=(2, *shape), special=False), THINGS
    )
    return data.draw(batch), data.draw(batch)


def networks(data):
    strange = [None, "D", lambda x: x, lambda x: None, lambda x: x.detach().sum(1), torch.nn.Identity(), Anything]
    return data.draw(st.one_of(st.just(Anything()), st.just(Anything()), st.just(Anything()), st.sampled_from(strange)))


@repeatable(300)
@given(st.data())
def test_adversarial_batch(data):
    x, network = both_batches(data), networks(data)
    result = outcome(dat.adversarial_batch, network, *x, **data.draw(ATTACKS))
    if result is not None:
        for images, adv in zip(x, result, strict=True):
            assert adv.shape == images.shape and adv.dtype == images.dtype and not adv.requires_grad


@repeatable(300)
@given(st.data())
def test_discriminator_step(data):
    x, network = both_batches(data), networks(data)
    more = {"lambda_clean": NUMBERS, "lambda_adv": NUMBERS, "grad_scale": NUMBERS, "fused": st.booleans()}
    more |= {"penalty": st.sampled_from([None, dat.penalties.r1(), "r1", lambda *a: 1.0, lambda *a: torch.zeros(2)])}
    chosen = data.draw(st.fixed_dictionaries({}, optional=more))
    result = outcome(dat.discriminator_step, network, *x, **data.draw(ATTACKS), **chosen)
    if result is not None:
        assert result.path in ("shared", "separate", "reference")
        assert result.loss.dim() == 0 and not result.loss.requires_grad


PENALTIES = (
    dat.penalties.gradient_penalty(),
    dat.penalties.gradient_penalty(one_sided=True),
    dat.penalties.r1(),
    dat.penalties.r2() + dat.penalties.r1(),
    dat.penalties.adversarial_lipschitz(),
    dat.penalties.r1_approximate(),
)


@repeatable(200)
@given(st.data())
def test_penalties(data):
    result = outcome(data.draw(st.sampled_from(PENALTIES)), networks(data), *both_batches(data))
    if result is not None:
        assert result.dim() == 0


@repeatable(150)
@given(st.data())
def test_measures(data):
    functions = (
        measures.sliced_wasserstein, measures.frechet_distance, measures.exact_wasserstein, measures.classifier_score
    )  # fmt: skip
    function = data.draw(st.sampled_from(functions))
    shape = (data.draw(st.integers(0, 5)), data.draw(st.integers(0, 4)))
    given = [data.draw(st.one_of(tensors(shape=shape, special=False), THINGS)) for _ in range(2)]
    result = outcome(function, *given[: 1 if function is measures.classifier_score else 2])
    assert result is None or isinstance(result, float)


@repeatable(150)
@given(
    st.one_of(THINGS, tensors(shape=(2, 3, 4, 4)), tensors(shape=(2, 1, 4, 4), dtypes=(torch.uint8,), special=False))
)
def test_own_images(images):
    result = outcome(own_images, images)
    assert result is None or (result.dtype == torch.uint8 and result.shape == images.shape)


@repeatable(300)
@given(
    st.dictionaries(st.sampled_from([*KINDS, "surplus"]), st.one_of(NUMBERS, NORMS, st.text(max_size=9)), max_size=3)
)
def test_options(values):
    try:
        config = Options.from_mapping({"device": "cpu", **values}, "options").resolved()
    except (ConfigError, DataError, dat.BackendError) as error:
        assert "\n" not in str(error) and len(str(error)) < 700  # noqa: PT017  or else it is a configuration
    else:
        assert {name: convert(name, value, KINDS[name]) for name, value in config.typed().items() if value is not None}
