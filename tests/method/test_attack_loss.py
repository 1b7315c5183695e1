"""attack_loss, C++ and reference, against the float64 oracle in oracle.py."""

import numpy as np
import pytest
import torch

import datgan_fast as dat
import oracle
from attack_inputs import cap, each_dtype, each_formulation, each_impl, each_objective, logits, normal
from layouts import FLOATS
from oracle import array, assert_close

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


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
def test_attack_loss_with_given_targets(objective, formulation, impl, given):
    pair, targets = logits(3, 4), {f"target_{given}": normal(6, seed=9, scale=2)}
    losses = dat.attack_loss(
        *pair,
        objective=objective,
        formulation=formulation,
        impl=impl,
        **{f"{name}_logits": value for name, value in targets.items()},
    )
    targets = {name: array(value) for name, value in targets.items()}
    expected = oracle.attack_loss(*map(array, pair), objective, formulation, **targets)
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
            {"target_real_logits": torch.zeros(2, 2)},
            ValueError,
            "target_real_logits",
        ),
    ],
)
def test_attack_loss_names_what_is_wrong(real, fake, options, error, message):
    with pytest.raises(error, match=message):
        dat.attack_loss(real, fake, **options)
