"""attack_loss, perturb and attack_step, C++ and reference, against the float64 oracle in oracle.py."""

import math

import numpy as np
import oracle
import pytest
import torch
from kernel_cases import FLOATS, laid_out, name
from oracle import array, assert_close

import datgan_fast as dat
from datgan_fast.attack_arguments import Attack, AttackInputs
from datgan_fast.ops import attack_step_into

LAYOUTS = ("contiguous", "channels_last", "every second pixel", "transposed", "expanded", "misaligned")
IMPLS = ("cpu", "reference")

each_objective = pytest.mark.parametrize("objective", oracle.OBJECTIVES)
each_formulation = pytest.mark.parametrize("formulation", oracle.FORMULATIONS)
each_norm = pytest.mark.parametrize("norm", oracle.NORMS)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=name)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_impl = pytest.mark.parametrize("impl", IMPLS)


@pytest.fixture(autouse=True)
def poisoned_outputs():
    """torch.empty gives NaN, so that an element no kernel wrote shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def normal(*shape, seed=0, dtype=torch.float32, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, shape)).to(dtype)


def cap(*dtypes):
    return 700.0 if torch.float64 in dtypes else 80.0


def logits(m, n, dtype=torch.float32):
    return normal(m, seed=1, dtype=dtype, scale=2), normal(n, seed=2, dtype=dtype, scale=2)


def images(m, n, *shape, dtype=torch.float32, layout="contiguous"):
    """(x, v): images inside the clip range and gradients large enough to reach its edges now and then."""
    x = [laid_out(normal(k, *shape, seed=s, dtype=dtype, scale=0.4), layout) for k, s in ((m, 3), (n, 4))]
    v = [laid_out(normal(k, *shape, seed=s, dtype=dtype), layout) for k, s in ((m, 5), (n, 6))]
    return x, v


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


# attack_loss


@each_objective
@each_formulation
def test_random_inputs_are_away_from_ties(objective, formulation):
    """The sign of score - target must not hang on rounding, or the comparisons below would compare coins."""
    for dtype in FLOATS:
        for attack in oracle.attack_loss(*map(array, logits(5, 7, dtype)), objective, formulation):
            moving = (attack.coefficient != 0) if attack.difference.size > 1 else slice(None)
            assert np.abs(attack.difference[moving]).min() > 1e-3


@each_objective
@each_formulation
@each_dtype
@each_impl
@pytest.mark.parametrize(("m", "n"), [(5, 7), (1, 1), (1, 4), (6, 1)])
def test_attack_loss_and_its_gradient(objective, formulation, dtype, impl, m, n):
    real, fake = (t.requires_grad_() for t in logits(m, n, dtype))
    losses = dat.attack_loss(real, fake, objective=objective, formulation=formulation, impl=impl)
    (2 * losses[0] + 3 * losses[1]).backward()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = oracle.attack_loss(array(real), array(fake), objective, formulation, cap=cap(dtype))
    for loss, leaf, factor, attack in zip(losses, (real, fake), (2, 3), expected, strict=True):
        assert (loss.shape, loss.dtype) == ((), wide)
        assert_close(loss, attack.loss)
        assert leaf.grad.dtype == dtype
        assert_close(leaf.grad, factor * attack.coefficient)


@each_impl
def test_each_loss_moves_its_own_logits_only(impl):
    """The other batch's mean is a constant: no gradient flows into it."""
    real, fake = (t.requires_grad_() for t in logits(3, 4))
    loss_real, loss_fake = dat.attack_loss(real, fake, impl=impl)
    assert not torch.autograd.grad(loss_real, fake, retain_graph=True)[0].any()
    assert not torch.autograd.grad(loss_fake, real, retain_graph=True)[0].any()
    only_real = torch.autograd.grad(loss_real, real)[0]
    np.testing.assert_allclose(
        only_real, oracle.attack_loss(array(real), array(fake), "vanilla", "eq10")[0].coefficient, 1e-5
    )


@each_impl
@pytest.mark.parametrize("side", [0, 1], ids=["real", "fake"])
def test_one_side_alone_can_need_a_gradient(impl, side):
    pair = logits(3, 4)
    pair[side].requires_grad_()
    sum(dat.attack_loss(*pair, impl=impl)).backward()
    assert pair[1 - side].grad is None
    expected = oracle.attack_loss(*map(array, pair), "vanilla", "eq10")[side].coefficient
    assert_close(pair[side].grad, expected)


@each_objective
@each_formulation
@each_impl
@pytest.mark.parametrize("given", ["real", "fake"])
def test_attack_loss_with_given_references(objective, formulation, impl, given):
    pair, references = logits(3, 4), {f"reference_{given}": normal(6, seed=9, scale=2)}
    losses = dat.attack_loss(
        *pair,
        objective=objective,
        formulation=formulation,
        impl=impl,
        **{f"{name}_logits": value for name, value in references.items()},
    )
    references = {name: array(value) for name, value in references.items()}
    expected = oracle.attack_loss(*map(array, pair), objective, formulation, **references)
    for loss, attack in zip(losses, expected, strict=True):
        assert_close(loss, attack.loss)


@each_objective
@each_formulation
@each_impl
def test_exact_ties_do_not_move(objective, formulation, impl):
    """sign(0) = 0: equal logits everywhere are at their target already."""
    real, fake = torch.full((4,), 0.5, requires_grad=True), torch.full((2,), 0.5, requires_grad=True)
    losses = dat.attack_loss(real, fake, objective=objective, formulation=formulation, impl=impl)
    sum(losses).backward()
    assert losses == (0, 0)
    assert not real.grad.any()
    assert not fake.grad.any()


@each_objective
@each_formulation
@each_impl
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_huge_logits_stay_finite(objective, formulation, impl, dtype):
    real = torch.tensor([1e4, -1e4, 3.0, -90.0, 90.0], dtype=dtype, requires_grad=True)
    fake = torch.tensor([-1e4, 1e4, -2.0], dtype=dtype, requires_grad=True)
    losses = dat.attack_loss(real, fake, objective=objective, formulation=formulation, impl=impl)
    coefficients = torch.autograd.grad(sum(losses), (real, fake))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for loss, c, attack in zip(
        losses,
        coefficients,
        oracle.attack_loss(array(real), array(fake), objective, formulation, cap=cap(dtype)),
        strict=True,
    ):
        assert loss.isfinite()
        # exp(80) in float32: one unit in the argument's last place is a relative 8e-6
        np.testing.assert_allclose(array(loss), attack.loss, rtol=1e-12 if wide == torch.float64 else 2e-5)
        if dtype != torch.float16:  # float16 holds no more than 65504
            assert c.isfinite().all()
            np.testing.assert_allclose(array(c), attack.coefficient, rtol=2e-5, atol=1e-30)


@each_formulation
@each_impl
@pytest.mark.parametrize(("m", "n"), [(0, 0), (0, 3), (3, 0)])
def test_attack_loss_of_an_empty_batch(formulation, impl, m, n):
    real, fake = (t.requires_grad_() for t in logits(m, n))
    losses = dat.attack_loss(real, fake, formulation=formulation, impl=impl)
    sum(losses).backward()
    assert losses == (0, 0)
    assert not real.grad.any()
    assert not fake.grad.any()


@each_impl
def test_attack_loss_of_strided_and_mixed_logits(impl):
    real, fake = normal(6, 2, dtype=torch.float16)[:, 1], normal(5, seed=1, dtype=torch.float64).flip(0)[::2]
    losses = dat.attack_loss(real, fake, impl=impl)
    assert losses[0].dtype == torch.float64
    for loss, attack in zip(losses, oracle.attack_loss(array(real), array(fake), "vanilla", "eq10"), strict=True):
        assert_close(loss, attack.loss, double=False)


@each_objective
@each_formulation
@each_impl
def test_gathered_references_make_processes_agree_with_one(objective, formulation, impl):
    """Three processes of unequal shares, given everyone's logits, do what one with the whole batch does."""
    real, fake = logits(9, 6)
    x, v = images(9, 6, 3, 5)
    tensors = (*x, *v, real, fake)
    options = {"objective": objective, "formulation": formulation, "impl": impl}
    whole = dat.attack_step(*tensors, 0.5, **options)
    everyone = {"reference_real_logits": real, "reference_fake_logits": fake}
    splits = zip(*(t.split([4, 4, 1] if len(t) == 9 else [3, 2, 1]) for t in tensors), strict=True)
    shares = [dat.attack_step(*mine, 0.5, **options, **everyone) for mine in splits]
    for i in range(4):
        torch.testing.assert_close(torch.cat([share[i] for share in shares]), whole[i], rtol=1e-6, atol=1e-7)
    for i in (4, 5):
        losses = torch.stack([share[i] for share in shares])
        total = losses[0] if formulation == "batch_mean" else losses.sum()
        torch.testing.assert_close(total, whole[i], rtol=1e-5, atol=1e-6)


# perturb and attack_step: the grid


@each_norm
@each_dtype
@each_layout
@each_impl
def test_perturb(norm, dtype, layout, impl):
    x, grad = (side[0] for side in images(3, 0, 3, 5, 7, dtype=dtype, layout=layout))
    adv = dat.perturb(x, grad, 0.75, norm=norm, clip_min=-0.5, clip_max=0.8, impl=impl)
    assert_close(adv, oracle.perturb(array(x), array(grad), 0.75, norm, -0.5, 0.8))
    assert (adv.shape, adv.dtype, adv.stride()) == (x.shape, x.dtype, torch.empty_like(x).stride())


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


@each_impl
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_number_survives(impl, dtype):
    """Subnormals, infinities and NaNs too, read and written one by one and in vectors."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for images_of_x in (x.view(256, 256), x.view(256, 256).T):
        adv = dat.perturb(images_of_x, torch.zeros(256, 256), 0.5, clip_min=None, clip_max=None, impl=impl)
        torch.testing.assert_close(adv, images_of_x, rtol=0, atol=0, equal_nan=True)


@each_impl
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_nan_of_any_payload_stays_one(impl, dtype):
    grad = torch.tensor([[0x7FFFFFFF, -1, 0x7F800001]], dtype=torch.int32).view(torch.float32)
    assert dat.perturb(torch.zeros(1, 3, dtype=dtype), grad, 0.5, impl=impl).isnan().all()


@each_norm
@each_impl
def test_float64_images_are_not_rounded_by_float32_gradients(norm, impl):
    x = images(3, 0, 3, 4, dtype=torch.float64)[0][0].clamp(-1, 1)
    assert torch.equal(dat.perturb(x, torch.zeros(x.shape), 0.5, norm=norm, impl=impl), x)


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


@each_impl
@pytest.mark.parametrize("scale", [1e-14, 1e-20, 1e18])
def test_l2_floor_and_range(impl, scale):
    """Below 1e-12 the gradient is divided by the floor; the squares of large gradients do not overflow."""
    x, grad = (side[0] for side in images(3, 0, 3, 4))
    grad = scale * grad
    adv = dat.perturb(x, grad, 0.5, norm="l2", impl=impl)
    assert_close(adv, oracle.perturb(array(x), array(grad), 0.5, "l2"))


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


# what one image does to another, and the caller's tensors


@each_norm
@each_impl
@pytest.mark.parametrize("where", ["x", "grad"])
def test_a_nan_stays_in_its_image(norm, impl, where):
    x, grad = (side[0] for side in images(4, 0, 3, 600))
    expected = dat.perturb(x, grad, 0.5, norm=norm, impl=impl)
    {"x": x, "grad": grad}[where][1, 2, 3] = math.nan
    adv = dat.perturb(x, grad, 0.5, norm=norm, impl=impl)
    others = [0, 2, 3]
    assert torch.equal(adv[others], expected[others])
    if where == "x" or norm == "none":
        assert adv[1, 2, 3].isnan()
        assert adv[1].isnan().sum() == 1
    elif norm == "l2":  # its length is not a number
        assert adv[1].isnan().all()


@each_impl
def test_inputs_are_left_untouched(impl):
    x, v = images(3, 2, 3, 4, 5, layout="every second pixel")
    tensors = [*x, *v, *logits(3, 2)]
    before = [(t.clone(), t._version) for t in tensors]
    step = dat.attack_step(*tensors, 0.5, norm="l2", impl=impl)
    dat.perturb(x[0], v[0], 0.5, impl=impl)
    dat.attack_loss(*tensors[4:], impl=impl)
    for t, (value, version) in zip(tensors, before, strict=True):
        assert torch.equal(t, value)
        assert t._version == version
    addresses = {t.untyped_storage().data_ptr() for t in tensors}
    assert not addresses & {t.untyped_storage().data_ptr() for t in step}


@each_impl
def test_results_carry_no_graph(impl):
    x, v = images(3, 2, 3, 4)
    tensors = [t.requires_grad_() for t in (*x, *v, *logits(3, 2))]
    assert not any(t.requires_grad for t in dat.attack_step(*tensors, 0.5, impl=impl))
    assert not dat.perturb(tensors[0], tensors[2], 0.5, impl=impl).requires_grad


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


# torch.library


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_registration(dtype):
    """Schemas say truly what is written, and fakes give the shapes and dtypes of the real thing."""
    tests = ("test_schema", "test_faketensor")
    x, v = images(3, 2, 3, 4, dtype=dtype)
    real, fake = logits(3, 2, dtype)
    losses = torch.empty(2, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    ops = torch.ops.datgan_fast
    torch.library.opcheck(ops.attack_loss.default, (real, fake, real, fake, "hinge", "alg1", "cpu"), test_utils=tests)
    arguments = (x[0], v[0], 0.5, "l2", -1.0, None, "cpu", torch.empty_like(x[0]))
    torch.library.opcheck(ops.perturb.default, arguments, test_utils=tests)
    outputs = [torch.empty_like(t) for t in (*x, *v)]
    arguments = (
        *x,
        *v,
        real,
        fake,
        real,
        fake,
        None,
        None,
        0.5,
        "hinge",
        "alg1",
        "none",
        -1.0,
        1.0,
        "cpu",
        *outputs,
    )
    torch.library.opcheck(ops.attack_step.default, (*arguments, None, None, losses), test_utils=tests)


def test_compiles_as_one_graph():
    def attack(x, v, real, fake):
        step = dat.attack_step(x, 0.5 * x, v, v, real, fake, 0.3, norm="l2")
        moved = dat.perturb(step.adv_real, v, 0.1)
        return moved, sum(dat.attack_loss(2 * real, fake))

    x, v = (side[0] for side in images(3, 0, 3, 4))
    real, fake = logits(3, 3)
    real.requires_grad_()
    compiled, plain = (
        function(x, v, real, fake) for function in (torch.compile(attack, backend="aot_eager", fullgraph=True), attack)
    )
    torch.testing.assert_close(compiled, plain)
    torch.testing.assert_close(*(torch.autograd.grad(result[1], real) for result in (compiled, plain)))


# errors


def call_attack_step(**changes):
    x, v = images(3, 2, 3, 4)
    real, fake = logits(3, 2)
    arguments = {
        "x_real": x[0],
        "x_fake": x[1],
        "input_grad_real": v[0],
        "input_grad_fake": v[1],
        "real_logits": real,
        "fake_logits": fake,
        "eps": 0.5,
    }
    return dat.attack_step(**(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"objective": "wgan"}, ValueError, "objective must be one of vanilla, .*'wgan'"),
        ({"formulation": "eq9"}, ValueError, "formulation must be one of eq10, .*'eq9'"),
        ({"norm": "l1"}, ValueError, "norm must be one of none, l2, linf; got 'l1'"),
        ({"eps": math.nan}, ValueError, "eps must be a finite number"),
        ({"eps": math.inf}, ValueError, "eps must be a finite number"),
        ({"clip_min": 1.0, "clip_max": 0.0}, ValueError, "clip_min must not exceed clip_max"),
        ({"x_real": torch.zeros(3, 3, 4, dtype=torch.int64)}, TypeError, "x_real .*int64"),
        ({"x_fake": torch.zeros(2, 3, 4, dtype=torch.uint8)}, TypeError, "x_fake .*uint8"),
        (
            {"input_grad_real": torch.zeros(3, 3, 4, dtype=torch.complex64)},
            TypeError,
            "gradient of x_real .*complex64",
        ),
        (
            {"input_grad_fake": torch.zeros(2, 3, 4).to(torch.float8_e5m2)},
            TypeError,
            "gradient of x_fake .*float8",
        ),
        ({"real_logits": torch.zeros(3, dtype=torch.bool)}, TypeError, "real_logits .*bool"),
        ({"fake_logits": [0.0, 0.0]}, TypeError, "fake_logits .*list"),
        ({"x_real": [[0.0], [0.0], [0.0]]}, TypeError, "x_real must be a float64.* tensor; got list"),
        ({"x_fake": [[0.0], [0.0]]}, TypeError, "x_fake must be a float64.* tensor; got list"),
        ({"input_grad_fake": None}, TypeError, "the input gradient of x_fake must be a float64.* tensor; got NoneType"),
        ({"grad_weight_real": 1.0}, TypeError, "grad_weight_real .*float"),
        ({"real_logits": torch.zeros(3, 1)}, ValueError, r"real_logits must have shape \[batch\]"),
        (
            {"real_logits": torch.zeros(2)},
            ValueError,
            "real_logits must have one logit for each of the 3 images; got 2",
        ),
        ({"fake_logits": torch.zeros(())}, ValueError, r"fake_logits must have shape \[batch\]"),
        ({"reference_real_logits": torch.zeros(1, 1)}, ValueError, "reference_real_logits must have shape"),
        (
            {"reference_fake_logits": torch.zeros(1, dtype=torch.int32)},
            TypeError,
            "reference_fake_logits .*int32",
        ),
        (
            {"input_grad_real": torch.zeros(3, 12)},
            ValueError,
            "x_real and its input gradient must have one shape",
        ),
        (
            {"input_grad_fake": torch.zeros(3, 3, 4)},
            ValueError,
            "x_fake and its input gradient must have one shape",
        ),
        (
            {"grad_weight_real": torch.ones(2)},
            ValueError,
            "grad_weight_real must have one weight for each of the 3",
        ),
        ({"grad_weight_fake": torch.ones(2, 1)}, ValueError, "grad_weight_fake must have shape"),
        ({"grad_weight_fake": torch.ones(2, dtype=torch.int32)}, TypeError, "grad_weight_fake .*int32"),
        ({"fake_logits": torch.zeros(2, device="meta")}, ValueError, "fake_logits must be on cpu .*meta"),
        (
            {"grad_weight_real": torch.ones(3, device="meta")},
            ValueError,
            "grad_weight_real must be on cpu .*meta",
        ),
        (
            {"input_grad_real": torch.ones(3, 3, 4, device="meta")},
            ValueError,
            "x_real and its input gradient .*meta",
        ),
        (
            {
                "x_fake": torch.ones(2, 3, 4, device="meta"),
                "input_grad_fake": torch.ones(2, 3, 4, device="meta"),
            },
            ValueError,
            "x_real and x_fake must be on one device",
        ),
        ({"impl": "fast"}, dat.BackendError, "'fast' is not a backend"),
    ],
)
def test_attack_step_names_what_is_wrong(changes, error, message):
    with pytest.raises(error, match=message):
        call_attack_step(**changes)


@pytest.mark.parametrize(
    ("real", "fake", "options", "error", "message"),
    [
        (torch.zeros(2, 1), torch.zeros(2), {}, ValueError, "real_logits must have shape"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), {}, TypeError, "fake_logits .*int64"),
        (3.0, torch.zeros(2), {}, TypeError, "real_logits .*float"),
        (torch.zeros(2), torch.zeros(2, device="meta"), {}, ValueError, "fake_logits must be on cpu"),
        (torch.zeros(2), torch.zeros(2), {"objective": ""}, ValueError, "objective"),
        (torch.zeros(2), torch.zeros(2), {"formulation": None}, ValueError, "formulation"),
        (
            torch.zeros(2),
            torch.zeros(2),
            {"reference_real_logits": torch.zeros(2, 2)},
            ValueError,
            "reference_real_logits",
        ),
    ],
)
def test_attack_loss_names_what_is_wrong(real, fake, options, error, message):
    with pytest.raises(error, match=message):
        dat.attack_loss(real, fake, **options)


@pytest.mark.parametrize(
    ("x", "grad", "options", "error", "message"),
    [
        (torch.zeros(()), torch.zeros(()), {}, ValueError, "x and its input gradient must have one shape"),
        (
            torch.zeros(2, 3),
            torch.zeros(3, 2),
            {},
            ValueError,
            "x and its input gradient must have one shape",
        ),
        (torch.zeros(2, dtype=torch.int32), torch.zeros(2), {}, TypeError, "x must be a float64"),
        (torch.zeros(2), None, {}, TypeError, "gradient of x .*NoneType"),
        (torch.zeros(2), torch.zeros(2), {"norm": "L2"}, ValueError, "norm"),
        (
            torch.zeros(2),
            torch.zeros(2, device="meta"),
            {},
            ValueError,
            "x and its input gradient must be on one device",
        ),
    ],
)
def test_perturb_names_what_is_wrong(x, grad, options, error, message):
    with pytest.raises(error, match=message):
        dat.perturb(x, grad, 0.5, **options)
