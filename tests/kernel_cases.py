"""What every GPU kernel must do, against the float64 oracle; collected by the files that say where it runs.

Those files define the fixture `target`: which backend runs and on which device.
"""

import math
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch

import datgan_fast as dat
import oracle
from attack_inputs import each_formulation, each_norm, each_objective
from datgan_fast.method.arguments import Attack, AttackInputs
from datgan_fast.method.buffered_ops import attack_step_into
from layouts import FLOATS, LAYOUTS, assert_nothing_written_around, laid_out, name, unwritten
from oracle import array


class Target(NamedTuple):
    impl: str
    device: str
    half_ulps: float = 0.5  # how many units in the last place its stores to half precision may be off


def normal(target, *shape, seed, dtype=torch.float32, scale=1.0):
    values = np.random.default_rng(seed).normal(0, scale, shape)
    return torch.from_numpy(values).to(target.device, dtype)


def logits_of(target, m, n, dtype=torch.float32, seed=1):
    return normal(target, m, seed=seed, dtype=dtype, scale=2), normal(target, n, seed=seed + 1, dtype=dtype, scale=2)


def pair(target, m, n, *shape, seed, dtype=torch.float32, scale=1.0):
    return tuple(normal(target, k, *shape, seed=seed + i, dtype=dtype, scale=scale) for i, k in enumerate((m, n)))


def assert_close(target, actual, expected, what, double=True):
    """GPUs have faster exponentials than libm's: 1e-5."""
    oracle.assert_close(actual, expected, what, double=double, loose=5, half_ulps=target.half_ulps)


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
    targets=(None, None),
    weights=(None, None),
    optional=True,
    out_layout=None,
):
    """Runs attack_step and compares all it writes; `optional`: gradients and norms are asked for too."""
    adv = [unwritten(t, out_layout) for t in x]
    grads = [unwritten(t, out_layout) for t in v] if optional else []
    norms = [unwritten(t.float()) for t in logits] if optional else []
    target_logits = tuple(own if given is None else given for own, given in zip(logits, targets, strict=True))
    losses = attack_step_into(
        AttackInputs(x, v, logits, target_logits, weights),
        Attack(eps, objective, formulation, norm, low, high),
        tuple(adv),
        grads=grads,
        norms=norms,
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
        targets=[None if t is None else array(t) for t in targets],
        weights=[1 if t is None else array(t) for t in weights],
        cap=700.0 if double else 80.0,
    )
    for i, side in enumerate(("real", "fake")):
        assert_close(target, losses[i], expected[2][i], f"loss_{side}")
        wanted = [("adv", adv[i], expected[0][i])]
        if optional:
            weight = None if weights[i] is None else array(weights[i])
            wanted += [("grad", grads[i], expected[1][i]), ("norm", *known_norms(norms[i], array(v[i]), weight))]
        for what, out, value in wanted:
            assert_close(target, out, value, f"{what}_{side}", double)
            assert_nothing_written_around(out, f"{what}_{side}")


def known_norms(norms, v, weight):
    """(the norms, ||v / weight||); where the weight is 0 nothing is known, and 0 stands for that in both."""
    if weight is None:
        return norms, oracle.image_norm(v)
    zero = weight == 0
    assert norms.isnan().tolist() == zero.tolist()
    norms[torch.from_numpy(zero).to(norms.device)] = 0
    return norms, np.where(zero, 0, oracle.image_norm(v / oracle.column(np.where(zero, 1, weight), v)))


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
def test_attack_loss_dtypes_strides_and_targets(target, dtype, formulation):
    """More target logits than a program reads at a time, every second one of them."""
    real, fake = logits_of(target, 5, 3, dtype)
    gathered = tuple(t[::2] for t in logits_of(target, 2 * 1500, 2 * 1100, dtype, seed=7))
    losses = dat.attack_loss(
        real[::2],
        fake,
        formulation=formulation,
        target_real_logits=gathered[0],
        target_fake_logits=gathered[1],
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
    """Whatever their number does to the rounding of the mean."""
    value = 0.5 if objective == "least_squares" else 0.3  # fused multiply-adds see digits that a stored square has lost
    real, fake = (torch.full((n,), value, device=target.device, requires_grad=True) for n in (3, 7))
    losses = dat.attack_loss(real, fake, objective=objective, formulation=formulation, impl=target.impl)
    sum(losses).backward()
    assert losses == (0, 0)
    assert not real.grad.any()
    assert not fake.grad.any()


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


@pytest.mark.parametrize("norm", ["none", "l2", "clamp"])
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


@pytest.mark.parametrize("size", [1e18, 1e-5, 1e-15, 1e-30])
def test_gradients_of_any_size_are_normalised_down_to_the_floor(target, size):
    x, grad = normal(target, 2, 30, seed=1, scale=0.3), size * normal(target, 2, 30, seed=2)
    out = dat.perturb(x, grad, 0.3, norm="l2", impl=target.impl)
    assert_close(target, out, oracle.perturb(array(x), array(grad), 0.3, "l2"), "out")


def test_zero_gradient_moves_nothing(target):
    x = normal(target, 2, 10, seed=1, scale=0.2)
    for norm in oracle.NORMS:
        assert torch.equal(
            dat.perturb(x, torch.zeros_like(x), 1e30, norm=norm, clip_max=None, clip_min=None, impl=target.impl),
            x,
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name)
def test_half_rounds_to_nearest_even_over_its_whole_range(target, dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32, device=target.device).to(torch.int16).view(dtype)
    x = x[x.isfinite()].view(1, -1)
    v = torch.full_like(x, 2**-12)
    out = dat.perturb(x, v, 1.0, clip_min=None, clip_max=None, impl=target.impl)
    off = (places(out) - places((x.float() - v.float()).to(dtype))).abs()
    assert off.max() <= (0 if target.half_ulps == 0.5 else 1)


def places(half):
    """Each number's place among all numbers of its type."""
    bits = half.view(torch.int16).int()
    return torch.where(bits < 0, -(2**15) - bits, bits)


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


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float16, torch.bfloat16)], ids=str)
@pytest.mark.parametrize(
    ("layout", "grad_layout"), [*product(LAYOUTS, LAYOUTS[:3]), *product(LAYOUTS[:3], LAYOUTS[3:])]
)
def test_attack_step_layouts(target, layout, grad_layout, dtypes):
    x = [laid_out(t, layout) for t in pair(target, 2, 1, 3, 4, 6, seed=3, dtype=dtypes[0], scale=0.5)]
    v = [laid_out(t, grad_layout) for t in pair(target, 2, 1, 3, 4, 6, seed=5, dtype=dtypes[1])]
    norm = oracle.NORMS[(LAYOUTS.index(layout) + LAYOUTS.index(grad_layout)) % len(oracle.NORMS)]
    check_step(target, x, v, logits_of(target, 2, 1), norm=norm)


@pytest.mark.parametrize("layout", LAYOUTS[1:-1])
def test_outputs_of_another_layout(target, layout):
    x, v = pair(target, 2, 1, 3, 4, 6, seed=3, scale=0.5), pair(target, 2, 1, 3, 4, 6, seed=5)
    check_step(target, x, v, logits_of(target, 2, 1), norm="l2", out_layout=layout)


@each_norm
@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "misaligned"])
@pytest.mark.parametrize("numel", [1, 3, 129, 1024, 1027, 4551])
def test_sizes(target, norm, numel, layout, optional):
    """One block and several, whole and with heads and tails."""
    x, v = (tuple(laid_out(t, layout) for t in pair(target, 2, 1, numel, seed=seed, scale=0.5)) for seed in (3, 5))
    logits = logits_of(target, 2, 1)
    check_step(target, x, v, logits, norm=norm, optional=optional, out_layout=layout)


@each_norm
def test_sides_of_different_shape(target, norm):
    for shapes in (((2, 3, 4), (1, 3000)), ((1, 3000), (5, 1, 1))):
        x, v = (
            tuple(normal(target, *shape, seed=seed + i, scale=0.5) for i, shape in enumerate(shapes)) for seed in (3, 5)
        )
        check_step(target, x, v, logits_of(target, len(x[0]), len(x[1])), norm=norm)


@each_formulation
@pytest.mark.parametrize("numel", [600, 1400])
def test_more_logits_than_pixels(target, formulation, numel):
    """Gathered logits outweigh the images, so that a program takes several of these."""
    x = pair(target, 5, 3, numel, seed=3, scale=0.5)
    v = pair(target, 5, 3, numel, seed=5)
    targets = logits_of(target, 800, 700, seed=9)
    check_step(target, x, v, logits_of(target, 5, 3), formulation=formulation, targets=targets)


@each_formulation
@pytest.mark.parametrize(("m", "n"), [(0, 2), (2, 0), (0, 0), (1, 1)])
def test_empty_batches(target, m, n, formulation):
    x, v = pair(target, m, n, 3, 4, 4, seed=3, scale=0.5), pair(target, m, n, 3, 4, 4, seed=5)
    check_step(target, x, v, logits_of(target, m, n), formulation=formulation)


@each_formulation
def test_targets_of_every_process(target, formulation):
    """More than the batch's own, of another dtype, or none."""
    x, v = pair(target, 3, 2, 20, seed=3, scale=0.5), pair(target, 3, 2, 20, seed=5)
    gathered = logits_of(target, 9, 11, torch.float16, seed=7)
    for targets in (gathered, (gathered[0], None), (gathered[0], gathered[1][:0])):
        check_step(target, x, v, logits_of(target, 3, 2), formulation=formulation, targets=targets)


def test_images_without_pixels(target):
    x, v = pair(target, 2, 3, 0, 4, seed=3), pair(target, 2, 3, 0, 4, seed=5)
    check_step(target, x, v, logits_of(target, 2, 3), norm="l2")


def test_tiny_weights_keep_the_direction(target):
    """A saturated objective leaves gradients whose squares float32 cannot hold."""
    weights = (torch.tensor([1e-25, 1.0], device=target.device), None)
    x, v = pair(target, 2, 2, 40, seed=3, scale=0.3), pair(target, 2, 2, 40, seed=5)
    v[0][0] *= 1e-25
    check_step(target, x, v, logits_of(target, 2, 2), norm="l2", weights=weights)


def test_eps_and_bounds_keep_float64_precision(target):
    x, v = (pair(target, 2, 2, 40, seed=s, dtype=torch.float64) for s in (3, 5))
    check_step(target, x, v, logits_of(target, 2, 2, torch.float64), eps=0.1, low=-0.7, high=0.7, norm="linf")


@pytest.mark.parametrize("numel", [700, 9000])
def test_same_input_same_bits(target, numel):
    x, v = pair(target, 3, 2, numel, seed=3), pair(target, 3, 2, numel, seed=5)
    logits = logits_of(target, 3, 2)
    first, second = (dat.attack_step(*x, *v, *logits, 0.3, norm="l2", impl=target.impl) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_norm
@each_formulation
def test_differentiable_step(target, formulation, norm):
    """The losses' gradients with respect to the logits, and the images': 1 where x + delta lies in the range, else 0."""
    low, high, eps = -0.4, 0.6, 0.7
    x, v = pair(target, 3, 2, 3, 4, 5, seed=3, scale=0.5), pair(target, 3, 2, 3, 4, 5, seed=5)
    logits = logits_of(target, 3, 2)
    for t in (*x, *logits):
        t.requires_grad_()
    how = {"formulation": formulation, "norm": norm, "clip_min": low, "clip_max": high, "impl": target.impl}
    step = dat.attack_step(*x, *v, *logits, eps, differentiable=True, **how)
    (2 * step.loss_real + 3 * step.loss_fake + 5 * step.adv_real.sum() + 7 * step.adv_fake.sum()).backward()
    given = [[array(t) for t in tensors] for tensors in (x, v, logits)]
    moved, _, losses = oracle.attack_step(*given, eps, "vanilla", formulation, norm, None, None)
    attacks = oracle.attack_loss(*given[2], "vanilla", formulation)
    for i, (loss_factor, image_factor) in enumerate(((2, 5), (3, 7))):
        assert_close(target, step[4 + i], losses[i], "loss")
        assert_close(target, logits[i].grad, loss_factor * attacks[i].coefficient, "gradient of the logits")
        assert_close(target, step[i], oracle.clip(moved[i], low, high), "adv")
        certain = np.minimum(np.abs(moved[i] - low), np.abs(moved[i] - high)) > 1e-5
        inside = (moved[i] > low) & (moved[i] < high)
        assert np.array_equal(array(x[i].grad)[certain], (image_factor * inside)[certain])
