"""discriminator_step, fused and reference, against Algorithm 1 in float64 autograd."""

import pytest
import torch

import datgan_fast as dat
from algorithm1 import (
    ROUNDING,
    M,
    N,
    algorithm1,
    assert_cut,
    batches,
    buffers_of,
    each_discriminator,
    each_path,
    each_sides_signs_agree,
    gradient_of,
    relative_error,
)
from networks import DISCRIMINATORS, build, conv, steeper, steepness
from oracle import FORMULATIONS, NORMS, OBJECTIVES

pytestmark = pytest.mark.usefixtures("one_thread", "merging")


def compare(name, fused, dtype=torch.float32, seed=7, steep=1.0, **options):
    """Runs the step and Algorithm 1 from the same weights and random state; returns the step's record."""
    discriminator = steeper(build(name, dtype), steep)
    x = [t / steep for t in batches(dtype)]
    torch.manual_seed(seed)
    record = dat.discriminator_step(discriminator, *x, **{"eps": 1.0, "fused": fused, **options})
    # float32 inputs are exact in float64, so both see the same images
    double = steeper(build(name, torch.float64), steep)
    torch.manual_seed(seed)
    expected = algorithm1(double, *(t / steep for t in batches()), **options)
    rounding = ROUNDING[dtype]
    assert relative_error(gradient_of(discriminator), expected.gradient) < rounding
    for field in ("loss", "loss_clean", "loss_adv"):
        torch.testing.assert_close(
            getattr(record, field).double(), expected.__dict__[field].double(), rtol=rounding, atol=rounding
        )
    assert relative_error(torch.cat([record.real_logits, record.fake_logits]), torch.cat(expected.logits)) < rounding
    torch.testing.assert_close(
        record.wasserstein.double(),
        expected.logits[0].mean() - expected.logits[1].mean(),
        rtol=rounding,
        atol=rounding,
    )
    buffers = buffers_of(discriminator)
    for key, value in expected.buffers.items():
        torch.testing.assert_close(
            buffers[key], value, rtol=rounding, atol=rounding, msg=lambda m, key=key: f"{key}: {m}"
        )
    assert not any(t.requires_grad for t in record if isinstance(t, torch.Tensor))
    return record, expected


@each_discriminator
@pytest.mark.parametrize(
    ("fused", "dtype"), [(True, torch.float32), (False, torch.float32), (True, torch.float64)], ids=str
)
def test_gradients_buffers_and_record(name, fused, dtype):
    record, expected = compare(name, fused, dtype)
    shared = DISCRIMINATORS[name][1] or all(each_sides_signs_agree(expected.logits))
    assert record.path == ("reference" if not fused else "shared" if shared else "separate")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("norm", NORMS)
@each_path
def test_objectives_formulations_norms(objective, formulation, norm, fused):
    options = {"norm": norm, "eps": {"none": 1.0, "l2": 2.0, "linf": 0.1, "clamp": 2**-8}[norm]}
    steep = steepness(norm)
    record, expected = compare("conv", fused, steep=steep, objective=objective, formulation=formulation, **options)
    assert record.path == ("shared" if fused else "reference")
    if norm == "clamp":
        assert_cut([t / steep for t in batches()], expected.adv, options["eps"])


@pytest.mark.parametrize("name", ["BatchNorm", "minibatch stddev"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("objective", ["hinge", "least_squares"])
@each_path
def test_dependent_images_under_other_objectives(name, formulation, objective, fused):
    compare(name, fused, objective=objective, formulation=formulation)


@pytest.mark.parametrize("name", ["conv", "BatchNorm", "dropout", "spectral norm"])
@pytest.mark.parametrize("formulation", ["eq10", "alg1"])
@pytest.mark.parametrize(("lambda_clean", "lambda_adv"), [(0.0, 1.0), (1.0, 0.0), (0.3, 2.5)])
@each_path
def test_lambdas(name, formulation, lambda_clean, lambda_adv, fused):
    record, _ = compare(name, fused, formulation=formulation, lambda_clean=lambda_clean, lambda_adv=lambda_adv)
    if lambda_adv == 0:
        assert record.loss_adv == 0
    if fused and name == "conv":
        assert record.path == "shared"


@pytest.mark.parametrize("name", ["conv", "BatchNorm", "spectral norm"])
@pytest.mark.parametrize(("norm", "eps"), [("none", 1.0), ("l2", 0.2), ("linf", 0.05)])
@each_path
def test_several_attack_steps(name, norm, eps, fused):
    record, expected = compare(name, fused, norm=norm, eps=eps, steps=3, alpha=0.6 * eps)
    assert record.path == ("separate" if fused else "reference")
    if norm != "none":
        for x, adv in zip(batches(), expected.adv, strict=True):
            size = (adv - x).flatten(1).norm(dim=1, p=2 if norm == "l2" else float("inf"))
            assert size.max() > 0.99 * eps  # the projection was at work


@each_path
def test_clip_bounds(fused):
    for low in (-0.92, None):
        _, expected = compare("conv", fused, eps=30.0, clip_min=low, clip_max=0.91)
        adv = torch.cat(expected.adv)
        assert (adv == 0.91).any() and (adv.min() == -0.92 if low else adv.min() < -1)  # the bounds were at work


@pytest.mark.parametrize("name", ["conv", "spectral norm", "BatchNorm"])
@pytest.mark.parametrize(("norm", "eps"), [("l2", 1.5), ("linf", 0.1)])
def test_random_start_is_the_same_in_both_paths(name, norm, eps):
    gradients = []
    for fused in (True, False):
        discriminator = build(name, torch.float64)
        torch.manual_seed(3)
        options = {"eps": eps, "norm": norm, "steps": 2, "random_start": True, "fused": fused}
        dat.discriminator_step(discriminator, *batches(torch.float64), **options)
        gradients.append(gradient_of(discriminator))
    assert relative_error(*gradients) < 1e-10


@pytest.mark.parametrize("name", ["conv", "BatchNorm", "spectral norm"])
@each_path
def test_penalty_is_added(name, fused):
    def penalty(discriminator, x_real, x_fake):
        assert len(x_real) == M
        assert len(x_fake) == N
        return 0.1 * discriminator(x_real).square().mean() + 0.01 * sum(p.sum() for p in discriminator.parameters())

    discriminator, double = build(name, torch.float64), build(name, torch.float64)
    record = dat.discriminator_step(discriminator, *batches(torch.float64), eps=1.0, penalty=penalty, fused=fused)
    expected = algorithm1(double, *batches())
    value = penalty(double, *batches(torch.float64))
    value.backward()  # onto the step's own gradients
    assert relative_error(gradient_of(discriminator), gradient_of(double)) < 1e-10
    torch.testing.assert_close(record.penalty, value.detach())
    torch.testing.assert_close(record.loss, expected.loss + value.detach())


def test_random_penalties_agree_in_both_paths():
    gradients = []
    for fused in (True, False):
        discriminator = build("residual, GroupNorm", torch.float64)
        torch.manual_seed(3)
        penalty = dat.penalties.gradient_penalty()
        dat.discriminator_step(discriminator, *batches(torch.float64), eps=1.0, penalty=penalty, fused=fused)
        gradients.append(gradient_of(discriminator))
    assert relative_error(*gradients) < 1e-10


# Where images depend on each other an image's own gradient is not what a backward gives.
@pytest.mark.parametrize("name", ["dropout", *(name for name, (_, alone) in DISCRIMINATORS.items() if alone)])
@each_path
@pytest.mark.parametrize("lambda_clean", [1.0, 0.0])
def test_input_gradient_norms(name, fused, lambda_clean):
    record, expected = compare(name, fused, lambda_clean=lambda_clean)
    assert record.input_grad_norm.shape == (M + N,)
    torch.testing.assert_close(record.input_grad_norm.double(), expected.input_grad_norm, rtol=1e-5, atol=1e-7)


@each_path
def test_gradient_norms_of_images_without_weight(fused):
    """Hinge gives no slope to real logits above 1: one plain backward of the loss does not know their norms."""
    discriminator, double = build("conv"), build("conv", torch.float64)
    for network in (discriminator, double):
        list(network.parameters())[-1].data.add_(5)
    record = dat.discriminator_step(discriminator, *batches(), eps=1.0, objective="hinge", fused=fused)
    expected = algorithm1(double, *batches(), objective="hinge")
    assert (expected.logits[0] > 1).all()
    if fused:
        torch.testing.assert_close(record.input_grad_norm.double(), expected.input_grad_norm, rtol=1e-5, atol=0)
    else:
        assert record.input_grad_norm[:M].isnan().all()
    assert record.input_grad_norm[M:].isfinite().all()
    assert gradient_of(discriminator).isfinite().all()


def test_norms_of_saturated_logits_agree():
    discriminator = conv()
    with torch.no_grad():
        list(discriminator.parameters())[-1].fill_(60.0)
    norms = [dat.discriminator_step(discriminator, *batches(), eps=1.0, fused=f).input_grad_norm for f in (True, False)]
    torch.testing.assert_close(*norms, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["conv", "residual, GroupNorm", "BatchNorm"])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 weights"])
def test_bfloat16_is_as_exact_as_plain_torch(name, autocast):
    expected = algorithm1(build(name, torch.float64), *batches(torch.bfloat16)).gradient
    errors = {}
    for fused in (True, False):
        dtype = torch.float32 if autocast else torch.bfloat16
        discriminator = build(name, dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            x = (t.to(dtype) for t in batches(torch.bfloat16))
            dat.discriminator_step(discriminator, *x, eps=1.0, fused=fused)
        errors[fused] = relative_error(gradient_of(discriminator), expected)
    assert errors[True] < 2 * errors[False] < 0.2


@each_path
def test_channels_last_images(fused):
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        discriminator = build("conv").to(memory_format=layout)
        dat.discriminator_step(
            discriminator, *(x.contiguous(memory_format=layout) for x in batches()), eps=1.0, fused=fused
        )
        results.append(gradient_of(discriminator))
    assert relative_error(results[1], results[0]) < 1e-5
