"""attack_step, C++ and reference, against the float64 oracle in oracle.py."""

import math

import pytest
import torch

import datgan_fast as dat
import oracle
from attack_inputs import (
    IMPLS,
    LAYOUTS,
    cap,
    each_dtype,
    each_formulation,
    each_impl,
    each_layout,
    each_norm,
    each_objective,
    images,
    logits,
)
from datgan_fast.method.arguments import Attack, AttackInputs
from datgan_fast.method.buffered_ops import attack_step_into
from layouts import FLOATS, name
from oracle import array, assert_close

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


def assert_step(x, v, lg, eps, *, impl, objective="vanilla", formulation="eq10", norm="none", low=-1.0, high=1.0):
    step = dat.attack_step(
        *x,
        *v,
        *lg,
        eps,
        objective=objective,
        formulation=formulation,
        norm=norm,
        clip_min=low,
        clip_max=high,
        impl=impl,
    )
    adv, grads, losses = oracle.attack_step(
        *([array(t) for t in pair] for pair in (x, v, lg)),
        eps,
        objective,
        formulation,
        norm,
        low,
        high,
        cap=cap(lg[0].dtype),
    )
    double = lg[0].dtype == torch.float64
    for i, side in enumerate(("real", "fake")):
        assert_close(step[i], adv[i], f"adv_{side}", double=double)
        assert_close(step[2 + i], grads[i], f"grad_{side}", double=double)
        assert_close(step[4 + i], losses[i], f"loss_{side}")
        for out, like in ((step[i], x[i]), (step[2 + i], v[i])):
            assert (out.shape, out.dtype) == (like.shape, like.dtype)
            assert out.stride() == torch.empty_like(like).stride()
            assert not out.requires_grad
    return step


@each_objective
@each_formulation
@each_norm
@each_dtype
@each_layout
@each_impl
def test_attack_step(objective, formulation, norm, dtype, layout, impl):
    x, v = images(5, 7, 3, 4, 5, dtype=dtype, layout=layout)
    assert_step(
        x,
        v,
        logits(5, 7, dtype),
        0.3,
        impl=impl,
        objective=objective,
        formulation=formulation,
        norm=norm,
    )


@each_norm
@pytest.mark.parametrize("x_layout", LAYOUTS)
@pytest.mark.parametrize("v_layout", LAYOUTS)
def test_images_and_gradients_of_different_layouts(norm, x_layout, v_layout):
    x, v = images(2, 3, 4, 3, 5, layout=x_layout)[0], images(2, 3, 4, 3, 5, layout=v_layout)[1]
    assert_step(x, v, logits(2, 3), 0.3, impl="cpu", norm=norm)


@each_norm
@each_impl
@pytest.mark.parametrize("x_dtype", FLOATS, ids=name)
@pytest.mark.parametrize("v_dtype", FLOATS, ids=name)
def test_mixed_dtypes(norm, impl, x_dtype, v_dtype):
    x, v = images(2, 3, 3, 5, 3, dtype=x_dtype)[0], images(2, 3, 3, 5, 3, dtype=v_dtype)[1]
    assert_step(x, v, logits(2, 3), 0.3, impl=impl, norm=norm)


@each_norm
@each_impl
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((), id="one number"),
        pytest.param((1,), id="one feature"),
        pytest.param((37,), id="features"),
        pytest.param((1, 1, 1), id="one pixel"),
        pytest.param((3, 1, 17), id="flat"),
        pytest.param((2, 3, 2, 3, 2), id="six dimensions"),
        pytest.param((1023,), id="chunk - 1"),
        pytest.param((1025,), id="chunk + 1"),
        pytest.param((16384,), id="unit"),
        pytest.param((16385,), id="unit + 1"),
        pytest.param((2, 100, 200), id="several units"),
        pytest.param((0,), id="no pixels"),
    ],
)
def test_shapes(norm, impl, shape):
    x, v = images(2, 3, *shape)
    assert_step(x, v, logits(2, 3), 0.3, impl=impl, norm=norm)


@each_norm
@pytest.mark.parametrize("layout", ["channels_last", "every second pixel", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_strided_images_larger_than_a_unit(norm, layout, dtype):
    x, v = images(2, 1, 3, 77, 83, dtype=dtype, layout=layout)
    assert_step(x, v, logits(2, 1), 0.3, impl="cpu", norm=norm)


@each_formulation
@each_norm
@each_impl
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 5), (0, 0), (0, 3), (3, 0)])
def test_batches_of_one_and_none(formulation, norm, impl, m, n):
    x, v = images(m, n, 3, 4)
    step = assert_step(x, v, logits(m, n), 0.3, impl=impl, formulation=formulation, norm=norm)
    if 0 in (m, n):  # nothing to compare with: nothing moves
        torch.testing.assert_close(step.adv_real, x[0].clamp(-1, 1))
        torch.testing.assert_close(step.adv_fake, x[1].clamp(-1, 1))


@each_norm
@each_impl
@pytest.mark.parametrize("eps", [0, 0.0, -0.4, 1e-3, 50.0])
def test_eps(norm, impl, eps):
    x, v = images(3, 2, 3, 4)
    step = assert_step(x, v, logits(3, 2), eps, impl=impl, norm=norm)
    if eps == 0:
        assert torch.equal(step.adv_real, x[0].clamp(-1, 1))


@each_impl
@pytest.mark.parametrize(("low", "high"), [(None, None), (None, 0.1), (-0.1, None), (0.2, 0.2), (0.0, 1.0)])
def test_clip_bounds(impl, low, high):
    x, v = images(3, 2, 3, 4)
    assert_step(x, v, logits(3, 2), 0.5, impl=impl, low=low, high=high)


@each_norm
@each_impl
def test_zero_gradients_do_not_move(norm, impl):
    x, v = images(2, 2, 3, 4)
    v[0][0] = 0
    step = assert_step(x, v, logits(2, 2), 0.5, impl=impl, norm=norm)
    assert torch.equal(step.adv_real[0], x[0][0].clamp(-1, 1))


@each_norm
@each_impl
@pytest.mark.parametrize("shape", [(0,), (3, 0, 4), (5,), (3, 100, 100)], ids=str)
def test_norms_of_the_gradients_handed_in(norm, impl, shape):
    x, v = images(3, 2, *shape)
    norms = torch.full((3,), math.nan), torch.full((2,), math.nan)
    attack = Attack(0.3, "vanilla", "eq10", norm, -1.0, 1.0)
    adv = tuple(torch.empty_like(t) for t in x)
    attack_step_into(AttackInputs(x, v, logits(3, 2), logits(3, 2)), attack, adv, norms=norms, impl=impl)
    for out, gradient in zip(norms, v, strict=True):
        assert_close(out, oracle.image_norm(array(gradient)))


@each_objective
@each_formulation
@each_impl
def test_gathered_targets_make_processes_agree_with_one(objective, formulation, impl):
    """Three processes of unequal shares, given everyone's logits, do what one with the whole batch does."""
    real, fake = logits(9, 6)
    x, v = images(9, 6, 3, 5)
    tensors = (*x, *v, real, fake)
    options = {"objective": objective, "formulation": formulation, "impl": impl}
    whole = dat.attack_step(*tensors, 0.5, **options)
    everyone = {"target_real_logits": real, "target_fake_logits": fake}
    splits = zip(*(t.split([4, 4, 1] if len(t) == 9 else [3, 2, 1]) for t in tensors), strict=True)
    shares = [dat.attack_step(*mine, 0.5, **options, **everyone) for mine in splits]
    for i in range(4):
        torch.testing.assert_close(torch.cat([share[i] for share in shares]), whole[i], rtol=1e-6, atol=1e-7)
    for i in (4, 5):
        losses = torch.stack([share[i] for share in shares])
        total = losses[0] if formulation == "batch_mean" else losses.sum()
        torch.testing.assert_close(total, whole[i], rtol=1e-5, atol=1e-6)


@each_objective
@each_norm
@each_impl
def test_grad_weight(objective, norm, impl):
    """A known weight per image in the gradients changes nothing; an image of weight 0 is not moved."""
    x, v = images(5, 4, 3, 4)
    weights = [torch.tensor([0.2, -3.0, 1e-3, 0.0, 7.0]), torch.tensor([-1.0, 0.0, 0.25, 40.0])]
    weighted = [w.view(-1, 1, 1) * t for w, t in zip(weights, v, strict=True)]
    lg = logits(5, 4)
    step = dat.attack_step(
        *x,
        *weighted,
        *lg,
        0.5,
        objective=objective,
        norm=norm,
        grad_weight_real=weights[0],
        grad_weight_fake=weights[1],
        impl=impl,
    )
    inputs = ([array(t) for t in pair] for pair in (x, weighted, lg))
    adv, grads, _ = oracle.attack_step(*inputs, 0.5, objective, "eq10", norm, weights=[array(w) for w in weights])
    for i in (0, 1):
        assert_close(step[i], adv[i])
        assert_close(step[2 + i], grads[i])
    assert torch.equal(step.adv_real[3], x[0][3].clamp(-1, 1))
    assert torch.equal(step.adv_fake[1], x[1][1].clamp(-1, 1))


@each_impl
def test_one_weight_alone(impl):
    x, v = images(2, 2, 3)
    lg = logits(2, 2)
    step = dat.attack_step(*x, *v, *lg, 0.5, grad_weight_fake=torch.tensor([2.0, 4.0]), impl=impl)
    plain = dat.attack_step(*x, *v, *lg, 0.5, impl=impl)
    assert torch.equal(step.grad_real, plain.grad_real)
    torch.testing.assert_close(step.grad_fake * torch.tensor([[2.0], [4.0]]), plain.grad_fake)


@each_norm
@each_impl
def test_without_gradients(norm, impl):
    x, v = images(3, 2, 3, 4)
    full = dat.attack_step(*x, *v, *logits(3, 2), 0.5, norm=norm, impl=impl)
    lean = dat.attack_step(*x, *v, *logits(3, 2), 0.5, norm=norm, return_grad=False, impl=impl)
    assert (lean.grad_real, lean.grad_fake) == (None, None)
    assert torch.equal(lean.adv_real, full.adv_real)
    assert torch.equal(lean.adv_fake, full.adv_fake)


@each_norm
@pytest.mark.parametrize("shape", [(3, 20, 20), (40000,)], ids=str)
def test_the_same_bits_every_time_and_for_any_thread_count(norm, shape):
    x, v = images(6, 5, *shape)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 1):
            torch.set_num_threads(count)
            results.append(dat.attack_step(*x, *v, *logits(6, 5), 0.5, norm=norm, impl="cpu"))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_kernels_and_reference_agree_closely():
    """float32 against float32, closer than either need be to float64."""
    x, v = images(4, 3, 3, 32, 32)
    for norm in oracle.NORMS:
        steps = [dat.attack_step(*x, *v, *logits(4, 3), 0.5, norm=norm, impl=impl) for impl in IMPLS]
        for a, b in zip(*steps, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=2e-7)
