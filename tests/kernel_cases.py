"""What every GPU kernel must do, against the float64 oracle; collected by the files that say where it runs.

Those files define the fixture `target`: which backend runs, on which device, and how many units in the last
place its stores to half-precision may be off.
"""

import math
from typing import NamedTuple

import numpy as np
import oracle
import pytest
import torch

import datgan_fast as dat
from datgan_fast.ops import attack_step_into

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MANTISSA_BITS = {torch.float16: 10, torch.bfloat16: 7}
GUARD = 32  # elements around each output that must stay as they were


class Target(NamedTuple):
    impl: str
    device: str
    half_ulps: float = 0.5


def name(dtype):
    return str(dtype).removeprefix("torch.")


def array(tensor):
    return tensor.detach().double().cpu().numpy()


def normal(target, *shape, seed, dtype=torch.float32, scale=1.0):
    values = np.random.default_rng(seed).normal(0, scale, shape)
    return torch.from_numpy(values).to(target.device, dtype)


def logits_of(target, m, n, dtype=torch.float32, seed=1):
    return normal(target, m, seed=seed, dtype=dtype, scale=2), normal(target, n, seed=seed + 1, dtype=dtype, scale=2)


def pair(target, m, n, *shape, seed, dtype=torch.float32, scale=1.0):
    return tuple(normal(target, k, *shape, seed=seed + i, dtype=dtype, scale=scale) for i, k in enumerate((m, n)))


def assert_close(target, actual, expected, what, double=True):
    """float64 nearly exact, unless something float32 went into it (not `double`); float32 arithmetic to 1e-5;
    a store to a half type may round on top of that."""
    actual_values, expected = array(actual), np.broadcast_to(expected, actual.shape)
    allowed = 1e-6 + 1e-5 * np.abs(expected)
    if actual.dtype == torch.float64 and double:
        allowed = 1e-12 * (1 + np.abs(expected))
    elif actual.dtype in MANTISSA_BITS:
        exponent = np.frexp(np.abs(expected) + allowed)[1] - 1
        allowed = allowed + target.half_ulps * 2.0 ** (np.maximum(exponent, -14) - MANTISSA_BITS[actual.dtype])
    excess = np.abs(actual_values - expected) - allowed
    wrong = ~(excess <= 0)  # NaN, what an element never written holds, is wrong too
    assert not wrong.any(), (
        f"{what}: {wrong.sum()} of {wrong.size} wrong, first at {np.argwhere(wrong)[0].tolist()}: "
        f"{actual_values[wrong][0]} instead of {expected[wrong][0]}"
    )


def guarded_like(t, shift=0):
    """NaN like t, inside a larger buffer of NaN; shift makes it misaligned."""
    room = torch.full((t.numel() + 2 * GUARD + shift,), math.nan, dtype=t.dtype, device=t.device)
    inside = room[GUARD + shift : GUARD + shift + t.numel()].as_strided(t.shape, torch.empty_like(t).stride())
    return inside, room


def assert_guard_untouched(room, n):
    assert room[:GUARD].isnan().all(), "written before the output's beginning"
    assert room[len(room) - GUARD :].isnan().all(), "written past the output's end"


def check_step(
    target,
    x,
    v,
    logits,
    *,
    eps=0.3,
    objective="vanilla",
    formulation="eq10",
    norm="none",
    low=-1.0,
    high=1.0,
    references=(None, None),
    weights=(None, None),
    optional=True,
    shift=0,
):
    """Runs attack_step and compares all it writes; `optional`: gradients and norms are asked for too."""
    adv = [guarded_like(t, shift) for t in x]
    grads = [guarded_like(t, shift) if optional else (None, None) for t in v]
    norms = [guarded_like(t.float()) if optional else (None, None) for t in logits]
    losses = attack_step_into(
        x,
        v,
        logits,
        eps,
        objective=objective,
        formulation=formulation,
        norm=norm,
        clip_min=low,
        clip_max=high,
        references=references,
        weights=weights,
        adv=tuple(out for out, _ in adv),
        grads=tuple(out for out, _ in grads),
        norms=tuple(out for out, _ in norms),
        impl=target.impl,
    )
    double = torch.float64 in (t.dtype for t in logits)
    expected = oracle.attack_step(
        [array(t) for t in x],
        [array(t) for t in v],
        [array(t) for t in logits],
        eps,
        objective,
        formulation,
        norm,
        low,
        high,
        references=[None if t is None else array(t) for t in references],
        weights=[1 if t is None else array(t) for t in weights],
        cap=700.0 if double else 80.0,
    )
    for i, side in enumerate(("real", "fake")):
        assert_close(target, adv[i][0], expected[0][i], f"adv_{side}", double)
        assert_close(target, losses[i], expected[2][i], f"loss_{side}")
        if optional:
            assert_close(target, grads[i][0], expected[1][i], f"grad_{side}", double)
            assert_close(target, norms[i][0], oracle.image_norm(array(v[i])), f"norm_{side}")
        for _, room in (adv[i], grads[i], norms[i]):
            if room is not None:
                assert_guard_untouched(room, x[i].numel())


each_objective = pytest.mark.parametrize("objective", oracle.OBJECTIVES)
each_formulation = pytest.mark.parametrize("formulation", oracle.FORMULATIONS)
each_norm = pytest.mark.parametrize("norm", oracle.NORMS)


# attack_loss


@each_objective
@each_formulation
def test_attack_loss_and_gradient(target, objective, formulation):
    real, fake = (t.requires_grad_() for t in logits_of(target, 5, 3))
    losses = dat.attack_loss(real, fake, objective=objective, formulation=formulation, impl=target.impl)
    (2 * losses[0] + 3 * losses[1]).backward()
    expected = oracle.attack_loss(array(real), array(fake), objective, formulation)
    for i, (t, factor) in enumerate(((real, 2), (fake, 3))):
        assert_close(target, losses[i], expected[i].loss, "loss")
        assert_close(target, t.grad, factor * expected[i].coefficient, "gradient")


@each_formulation
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_attack_loss_dtypes_strides_and_references(target, dtype, formulation):
    """More reference logits than a program reads at a time, every second one of them."""
    real, fake = logits_of(target, 5, 3, dtype)
    gathered = tuple(t[::2] for t in logits_of(target, 2 * 1500, 2 * 1100, dtype, seed=7))
    losses = dat.attack_loss(
        real[::2],
        fake,
        formulation=formulation,
        reference_real_logits=gathered[0],
        reference_fake_logits=gathered[1],
        impl=target.impl,
    )
    expected = oracle.attack_loss(*map(array, (real[::2], fake)), "vanilla", formulation, *map(array, gathered))
    for loss, side in zip(losses, expected, strict=True):
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(target, loss, side.loss, "loss")


@each_objective
@each_formulation
def test_attack_loss_of_extreme_logits_is_finite(target, objective, formulation):
    real = torch.tensor([-3e4, -100.0, 0.0, 100.0, 3e4], device=target.device, requires_grad=True)
    fake = torch.tensor([-200.0, 50.0, 2e4], device=target.device, requires_grad=True)
    losses = dat.attack_loss(real, fake, objective=objective, formulation=formulation, impl=target.impl)
    (losses[0] + losses[1]).backward()
    expected = oracle.attack_loss(array(real), array(fake), objective, formulation)
    for t, loss, side in zip((real, fake), losses, expected, strict=True):
        assert_close(target, loss, side.loss, "loss")
        assert_close(target, t.grad, side.coefficient, "gradient")


@each_objective
@each_formulation
def test_equal_logits_move_nothing(target, objective, formulation):
    logits = torch.full((2, 3), 0.25, device=target.device)
    x, v = (pair(target, 2, 3, 4, seed=s, scale=0.3) for s in (3, 5))
    if formulation == "alg1" or objective == "wasserstein" or formulation == "batch_mean":
        check_step(target, x, v, (logits[0, :2], logits[1]), objective=objective, formulation=formulation)


def test_scores_that_differ_only_in_the_last_digits_of_1_keep_their_order(target):
    """log(1 + exp(-t)) computed as written would make all of these equal, and no image would move."""
    real = torch.tensor([17.0, 18.0, 19.5, 21.0], device=target.device, requires_grad=True)
    fake = torch.tensor([18.5, 19.0], device=target.device)
    dat.attack_loss(real, fake, impl=target.impl)[0].backward()
    expected = oracle.attack_loss(array(real), array(fake), "vanilla", "eq10")[0].coefficient
    np.testing.assert_allclose(array(real.grad), expected, rtol=1e-5)
    assert set(np.sign(expected)) == {-1, 1}


# perturb


@each_norm
@pytest.mark.parametrize("grad_dtype", FLOATS, ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_perturb_dtypes(target, dtype, grad_dtype, norm):
    x = normal(target, 3, 3, 5, 7, seed=1, dtype=dtype, scale=0.5)
    grad = normal(target, 3, 3, 5, 7, seed=2, dtype=grad_dtype)
    grad[0, 0, 0] = 0
    out = dat.perturb(x, grad, 0.3, norm=norm, impl=target.impl)
    assert (out.dtype, out.shape) == (x.dtype, x.shape)
    assert_close(target, out, oracle.perturb(array(x), array(grad), 0.3, norm), "out")


@pytest.mark.parametrize(("low", "high"), [(None, None), (None, 0.5), (-0.25, None), (0.0, 0.0)])
def test_perturb_clips(target, low, high):
    x, grad = (normal(target, 2, 100, seed=s) for s in (1, 2))
    out = dat.perturb(x, grad, 0.7, clip_min=low, clip_max=high, impl=target.impl)
    assert_close(target, out, oracle.perturb(array(x), array(grad), 0.7, "none", low, high), "out")


@pytest.mark.parametrize("norm", ["none", "l2"])
def test_perturb_keeps_nan_visible(target, norm):
    x, grad = (normal(target, 2, 6, seed=s) for s in (1, 2))
    x[0, 1], grad[1, 2] = math.nan, math.nan
    expected = x.isnan() | grad.isnan()
    if norm == "l2":
        expected[1] = True  # its length is not a number
    assert torch.equal(dat.perturb(x, grad, 0.1, norm=norm, impl=target.impl).isnan(), expected)


@pytest.mark.parametrize(
    "shape", [(0,), (0, 3, 4, 4), (2, 0), (1,), (3,), (2, 1, 1, 1), (2, 3, 2, 2, 2), (1, 4097)], ids=str
)
@each_norm
def test_perturb_shapes(target, shape, norm):
    x, grad = (normal(target, *shape, seed=s) for s in (1, 2))
    out = dat.perturb(x, grad, 0.1, norm=norm, impl=target.impl)
    assert_close(target, out, oracle.perturb(array(x), array(grad), 0.1, norm), "out")


@pytest.mark.parametrize("size", [1e-5, 1e-15, 1e-30])
def test_small_gradients_are_normalised_down_to_the_floor(target, size):
    x, grad = normal(target, 2, 30, seed=1, scale=0.3), size * normal(target, 2, 30, seed=2)
    out = dat.perturb(x, grad, 0.3, norm="l2", impl=target.impl)
    assert_close(target, out, oracle.perturb(array(x), array(grad), 0.3, "l2"), "out")


def test_zero_gradient_moves_nothing(target):
    x = normal(target, 2, 10, seed=1, scale=0.2)
    for norm in oracle.NORMS:
        assert torch.equal(
            dat.perturb(x, torch.zeros_like(x), 0.1, norm=norm, clip_max=None, clip_min=None, impl=target.impl),
            x,
        )


# attack_step


@each_objective
@each_formulation
@each_norm
def test_attack_step(target, objective, formulation, norm):
    """Unequal batches, an odd shape, weights on one side, one of them zero."""
    x = pair(target, 3, 2, 3, 5, 7, seed=3, scale=0.5)
    v = pair(target, 3, 2, 3, 5, 7, seed=5)
    weight = torch.tensor([0.5, 0.0, -2.0], device=target.device)
    v[0][1] = 0
    check_step(
        target,
        x,
        v,
        logits_of(target, 3, 2),
        objective=objective,
        formulation=formulation,
        norm=norm,
        weights=(weight, None),
    )


@each_norm
@pytest.mark.parametrize("grad_dtype", FLOATS, ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_attack_step_dtypes(target, dtype, grad_dtype, norm):
    """The two sides and the logits differ in dtype as well."""
    x = tuple(t.to(d) for t, d in zip(pair(target, 2, 3, 50, seed=3, scale=0.5), (dtype, torch.float32), strict=True))
    v = tuple(t.to(d) for t, d in zip(pair(target, 2, 3, 50, seed=5), (grad_dtype, torch.bfloat16), strict=True))
    check_step(target, x, v, logits_of(target, 2, 3, grad_dtype), norm=norm)


def laid_out(t, layout):
    if layout == "channels_last":
        return t.contiguous(memory_format=torch.channels_last)
    if layout == "every second pixel":
        room = torch.full([2 * size + 1 for size in t.shape], math.nan, dtype=t.dtype, device=t.device)
        return room[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t)
    if layout == "transposed":
        return t.transpose(1, 3).contiguous().transpose(1, 3)
    if layout == "expanded":
        return t[:1, :, :1].expand(t.shape)
    if layout == "misaligned":
        return torch.cat([t.new_full([1], math.nan), t.flatten()])[1:].view(t.shape)
    return t


LAYOUTS = ("contiguous", "channels_last", "every second pixel", "transposed", "expanded", "misaligned")


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attack_step_layouts(target, layout, grad_layout):
    norm = oracle.NORMS[(LAYOUTS.index(layout) + LAYOUTS.index(grad_layout)) % 3]
    x = tuple(laid_out(t, layout) for t in pair(target, 2, 1, 3, 4, 6, seed=3, scale=0.5))
    v = tuple(laid_out(t, grad_layout) for t in pair(target, 2, 1, 3, 4, 6, seed=5))
    check_step(target, x, v, logits_of(target, 2, 1), norm=norm, shift=int(layout == "misaligned"))


@each_norm
@pytest.mark.parametrize("optional", [False, True])
def test_images_larger_than_a_block(target, norm, optional):
    """4551 elements: a whole block of the Triton kernels and a tail."""
    x = pair(target, 2, 1, 3, 37, 41, seed=3, scale=0.5)
    v = pair(target, 2, 1, 3, 37, 41, seed=5)
    check_step(target, x, v, logits_of(target, 2, 1), norm=norm, optional=optional)


@each_formulation
@pytest.mark.parametrize("numel", [600, 1400])
def test_more_logits_than_pixels(target, formulation, numel):
    """Gathered logits outweigh the images, so that a program takes several of these."""
    x = pair(target, 5, 3, numel, seed=3, scale=0.5)
    v = pair(target, 5, 3, numel, seed=5)
    references = logits_of(target, 800, 700, seed=9)
    check_step(target, x, v, logits_of(target, 5, 3), formulation=formulation, references=references)


@each_formulation
@pytest.mark.parametrize(("m", "n"), [(0, 2), (2, 0), (0, 0), (1, 1)])
def test_empty_batches(target, m, n, formulation):
    x, v = pair(target, m, n, 3, 4, 4, seed=3, scale=0.5), pair(target, m, n, 3, 4, 4, seed=5)
    check_step(target, x, v, logits_of(target, m, n), formulation=formulation)


def test_images_without_pixels(target):
    x, v = pair(target, 2, 3, 0, 4, seed=3), pair(target, 2, 3, 0, 4, seed=5)
    check_step(target, x, v, logits_of(target, 2, 3), norm="l2")


def test_tiny_weights_keep_the_direction(target):
    """A saturated objective leaves gradients whose squares float32 cannot hold."""
    weights = (torch.tensor([1e-25, 1.0], device=target.device), None)
    x, v = pair(target, 2, 2, 40, seed=3, scale=0.3), pair(target, 2, 2, 40, seed=5)
    v[0][0] *= 1e-25
    check_step(target, x, v, logits_of(target, 2, 2), norm="l2", weights=weights, optional=False)


def test_eps_and_bounds_keep_float64_precision(target):
    x, v = (pair(target, 2, 2, 40, seed=s, dtype=torch.float64) for s in (3, 5))
    check_step(target, x, v, logits_of(target, 2, 2, torch.float64), eps=0.1, low=-0.7, high=0.7, norm="linf")


def test_same_input_same_bits(target):
    x, v = pair(target, 3, 2, 5000, seed=3), pair(target, 3, 2, 5000, seed=5)
    logits = logits_of(target, 3, 2)
    first, second = (dat.attack_step(*x, *v, *logits, 0.3, norm="l2", impl=target.impl) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
