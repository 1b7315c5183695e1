"""The tables of objectives and norms: names, defaults, and rows added while the program runs."""

import math
import warnings
from typing import get_args

import pytest
import torch

import datgan_fast as dat
import oracle
from datgan_fast.method import dispatch
from datgan_fast.method.backend import BackendName
from datgan_fast.method.formulas import (
    FORMULATIONS,
    NORMS,
    OBJECTIVES,
    FormulationName,
    Norm,
    NormName,
    Objective,
    ObjectiveName,
    default_alpha,
    generator_loss,
)
from datgan_fast.method.native import cpu_backend
from networks import build, conv, images

T = torch.linspace(-3, 3, 14)  # without the corners of hinge


@pytest.fixture(autouse=True)
def nothing_warned(monkeypatch):
    monkeypatch.delenv("DATGAN_FAST_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_warned", set())


def test_the_literal_names_are_the_built_in_rows():
    assert get_args(ObjectiveName) == tuple(OBJECTIVES) == (*oracle.OBJECTIVES, "relativistic")
    assert get_args(FormulationName) == FORMULATIONS == oracle.FORMULATIONS
    assert get_args(NormName) == tuple(NORMS) == oracle.NORMS
    assert get_args(BackendName) == tuple(dat.backends())
    for table in (OBJECTIVES, NORMS):
        assert all(row.name == name for name, row in table.items())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_slopes_are_those_of_autograd(name):
    row = OBJECTIVES[name]
    by_autograd = Objective("plain", row.g1, row.g2)
    for closed, default in ((row.slope1, by_autograd.slope1), (row.slope2, by_autograd.slope2)):
        torch.testing.assert_close(closed(T), default(T))
        with torch.no_grad():
            torch.testing.assert_close(closed(T.double()), default(T.double()), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_formulas_of_half_precision_are_computed_in_float32(name):
    row, half = OBJECTIVES[name], T.bfloat16()
    generator = (lambda t: row.generator_loss(t, 2 * t)) if row.generator_compares else row.generator_loss
    for formula in (row.g1, row.g2, row.slope1, row.slope2, generator):
        assert formula(half).dtype == torch.float32
        assert torch.equal(formula(half), formula(half.float()))
        assert formula(T.double()).dtype == torch.float64


def test_linear_objectives_have_constant_slopes():
    for row in OBJECTIVES.values():
        constant = all(len(slope(T).unique()) == 1 for slope in (row.slope1, row.slope2))
        assert row.linear == constant, row.name


def test_the_default_generator_loss_is_mean_g2():
    row = Objective("plain", lambda t: t, lambda t: -(t**3))
    torch.testing.assert_close(row.generator_loss(T), -(T**3).mean())
    assert row.saturating_loss is None


def test_only_vanilla_has_a_saturating_loss():
    for name in OBJECTIVES:
        losses = [generator_loss(T, name, saturating=variant, real_logits=2 * T) for variant in (True, False)]
        differs = not torch.equal(*losses)
        assert differs == (name == "vanilla")


def test_a_norm_without_a_length_has_general_step_sizes():
    assert Norm("half", lambda grad: grad / 2, "half").step_sizes == (0.1, 1.0, 10.0)
    sized = Norm("unit", torch.sign, "unit", default_eps=0.5)
    assert sized.step_sizes == pytest.approx((0.01, 0.025, 0.1))
    assert not sized.has_ball


def test_built_in_norms():
    assert [row.default_eps for row in NORMS.values()] == [None, 1.0, 0.03, None]
    assert [row.has_ball for row in NORMS.values()] == [False, True, True, False]
    assert [row.needs_image_norm for row in NORMS.values()] == [False, True, False, False]
    for row in NORMS.values():
        assert row.has_ball == (row.random_point is not None)
        assert list(row.step_sizes) == sorted(row.step_sizes)


@pytest.mark.parametrize("function", ["g1", "g2", "slope1", "slope2"])
def test_unknown_objectives_are_refused_with_the_names(function):
    with pytest.raises(ValueError, match=r"objective must be one of vanilla, .*, relativistic; got 'wgan'"):
        getattr(dat.reference, function)("wgan", T)


# Rows added at run time


@pytest.fixture
def cubic(monkeypatch):
    """An objective in plain torch, without slopes."""
    monkeypatch.setitem(OBJECTIVES, "cubic", Objective("cubic", lambda t: t**3 / 9, lambda t: -(t**3) / 9 - t))
    return "cubic"


@pytest.fixture
def l1(monkeypatch):
    """A norm in plain torch: each image's step has absolute sum 1."""

    def direction(grad):
        return grad / grad.abs().flatten(1).sum(1).view(-1, *[1] * (grad.dim() - 1))

    monkeypatch.setitem(NORMS, "l1", Norm("l1", direction, "l1 step", default_eps=2.0))
    return "l1"


X, V = (tuple(images(n, seed) for n, seed in ((3, s), (2, s + 1))) for s in (1, 3))
LOGITS = torch.tensor([0.5, 2.0, -1.0]), torch.tensor([-1.0, 1.5])


def cubic_coefficients():
    """eq10 by hand: sign(score - the other side's mean score) * slope."""
    real, fake = LOGITS
    g1, g2 = real**3 / 9, -(fake**3) / 9 - fake
    target_real, target_fake = (fake**3 / 9).mean(), (-(real**3) / 9 - real).mean()
    return (g1 - target_real).sign() * real**2 / 3, (g2 - target_fake).sign() * (-(fake**2) / 3 - 1)


def test_an_added_objective_has_loss_and_gradient(cubic):
    leaves = [t.clone().requires_grad_() for t in LOGITS]
    with pytest.warns(
        UserWarning, match=r"slower reference implementation for objective 'cubic' \(no kernel knows it\)"
    ):
        losses = dat.attack_loss(*leaves, objective=cubic)
    for actual, expected in zip(torch.autograd.grad(sum(losses), leaves), cubic_coefficients(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_an_added_objective_attacks_in_a_single_pass(cubic):
    with pytest.warns(UserWarning, match="'cubic'"):
        step = dat.attack_step(*X, *V, *LOGITS, 0.1, objective=cubic)
    for k, coefficient in enumerate(cubic_coefficients()):
        grad = coefficient.view(-1, 1, 1, 1) * V[k]
        torch.testing.assert_close(step[2 + k], grad)
        torch.testing.assert_close(step[k], (X[k] - 0.1 * grad).clamp(-1, 1))


def test_an_added_norm_moves_images(l1):
    with pytest.warns(UserWarning, match="for norm 'l1'"):
        adv = dat.perturb(X[0], V[0], 0.1, norm=l1, clip_min=None, clip_max=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        step = dat.attack_step(*X, *V, *LOGITS, 0.1, norm=l1, clip_min=None, clip_max=None)
    torch.testing.assert_close((adv - X[0]).abs().flatten(1).sum(1), torch.full((3,), 0.1))
    torch.testing.assert_close((step.adv_fake - X[1]).abs().flatten(1).sum(1), torch.full((2,), 0.1))


def test_a_backend_asked_for_by_name_says_that_it_has_no_kernel(cubic, l1, monkeypatch):
    with pytest.raises(dat.BackendError, match="impl: backend 'cpu' has no kernel for objective 'cubic'"):
        dat.attack_loss(*LOGITS, objective=cubic, impl="cpu")
    with dat.use_backend("cpu"), pytest.raises(dat.BackendError, match=r"use_backend: backend 'cpu' .* norm 'l1'"):
        dat.perturb(X[0], V[0], 0.1, norm=l1)
    monkeypatch.setenv("DATGAN_FAST_BACKEND", "cpu")
    with pytest.raises(dat.BackendError, match=r"DATGAN_FAST_BACKEND: backend 'cpu' .* norm 'l1'"):
        dat.attack_step(*X, *V, *LOGITS, 0.1, norm=l1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # by name it is no fallback
        dat.attack_loss(*LOGITS, objective=cubic, impl="reference")


def test_built_in_rows_beside_an_added_one_keep_their_kernels(cubic, l1):
    assert dispatch.backend(torch.device("cpu"), "", objective="hinge", norm="linf") is cpu_backend()


@pytest.mark.filterwarnings("ignore:datgan_fast runs its slower reference")
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_steps_with_added_rows_agree(cubic, l1, formulation):
    """The fused step and the reference's."""
    gradients = []
    for fused in (True, False):
        network = build("conv")
        record = dat.discriminator_step(
            network, *X, eps=0.5, objective=cubic, norm=l1, formulation=formulation, fused=fused
        )
        assert math.isfinite(record.loss)
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:datgan_fast runs its slower reference")
def test_several_steps_with_an_added_norm(l1):
    """It has no ball: alpha is eps / steps, nothing is projected, and no start can be drawn."""
    assert default_alpha(1.0, 4, l1) == 0.25
    adv = dat.adversarial_batch(conv(), *X, eps=0.4, steps=4, norm=l1, clip_min=None, clip_max=None)
    moved = (adv[0] - X[0]).abs().flatten(1).sum(1)
    assert (moved <= 0.4 + 1e-4).all()
    assert (moved > 0.1).all()
    with pytest.raises(ValueError, match="random_start needs an eps-ball; use norm 'l2' or 'linf' instead of 'l1'"):
        dat.adversarial_batch(conv(), *X, eps=0.4, steps=4, norm=l1, random_start=True)
