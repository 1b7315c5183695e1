"""One backward for weights and images: under every objective and formulation, however far the scores have saturated, and where a
batch's images depend on each other."""

import pytest
import torch

import datgan_fast as dat
from algorithm1 import M, N, algorithm1, batches, each_sides_signs_agree, gradient_of, relative_error
from datgan_fast.method.sharing import common_factor
from networks import NOT_LINEAR, build, conv, images
from oracle import FORMULATIONS, OBJECTIVES

pytestmark = pytest.mark.usefixtures("one_thread", "merging")


def scaled(scale, dtype, factory=conv):
    """A network with logits of about this size."""
    torch.manual_seed(0)
    network = factory().double()
    with torch.no_grad():
        spread = network(torch.cat(batches(torch.float64))).abs().max()
        for p in list(network.parameters())[-2:]:
            p.mul_(scale / spread)
    return network.to(dtype)


def algorithms_gradient(scale, **options):
    return algorithm1(scaled(scale, torch.float64), *batches(), **options)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("scale", [1.0, 8.0, 40.0])
def test_saturated_scores(objective, formulation, scale):
    options = {"objective": objective, "formulation": formulation, "eps": 0.5}
    expected = algorithms_gradient(scale, **options)
    network = scaled(scale, torch.float64)
    record = dat.discriminator_step(network, *batches(torch.float64), **options)
    assert record.path == "shared"
    assert relative_error(gradient_of(network), expected.gradient) < 1e-12
    torch.testing.assert_close(record.input_grad_norm, expected.input_grad_norm, rtol=1e-12, atol=0)
    errors = {}
    for fused in (True, False):
        network = scaled(scale, torch.float32)
        record = dat.discriminator_step(network, *batches(), fused=fused, **options)
        errors[fused] = relative_error(gradient_of(network), expected.gradient)
        if fused:
            torch.testing.assert_close(record.input_grad_norm.double(), expected.input_grad_norm, rtol=1e-4, atol=0)
    assert errors[True] < max(5 * errors[False], 1e-6)


@pytest.mark.parametrize("objective", ["hinge", "vanilla"])
def test_images_without_weight_are_attacked(objective):
    """alg1's slopes are those of the other side's objective, which is at its steepest where an image's own has saturated."""
    network, double = scaled(30.0, torch.float32), scaled(30.0, torch.float64)
    for net in (network, double):
        list(net.parameters())[-1].data.add_(60)  # real images: no weight at all, in float32 not even in vanilla's
    options = {"objective": objective, "formulation": "alg1", "eps": 1.0}
    expected = algorithm1(double, *batches(), **options)
    assert (expected.adv[0] - batches()[0]).abs().amax((1, 2, 3)).min() > 1e-3
    dat.discriminator_step(network, *batches(), **options)
    assert relative_error(gradient_of(network), expected.gradient) < 1e-5


@pytest.mark.parametrize("inside", [False, True], ids=["autocast", "inside the network"])
def test_float16_keeps_the_attacks_own_backward(inside):
    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = build("conv")

        def forward(self, x):
            with torch.autocast("cpu", torch.float16):
                return self.body(x).float()

    network = Half() if inside else build("conv")
    options = {"objective": "hinge", "formulation": "alg1", "eps": 1.0}
    for _ in range(2):
        with torch.autocast("cpu", torch.float16, enabled=not inside):
            record = dat.discriminator_step(network, *batches(), **options)
        with torch.autocast("cpu", torch.float16, enabled=not inside):
            assert dat.discriminator_step(network, *batches(), eps=1.0).path == "shared"
        assert record.path == "separate"
        assert record.reason == "alg1 wants gradients that hinge's objective may have saturated to zero"


@pytest.mark.parametrize("lambda_clean", [0.0, 0.7])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_batchnorm(objective, formulation, lambda_clean, shift):
    """shift: real images' scores above, generated ones' below, so that a side's signs agree."""

    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = build("BatchNorm", torch.float64)

        def forward(self, x):
            return self.body(x).flatten() + shift * x[:, 0, 0, 0]

    x = batches(torch.float64)
    x[0][:, 0, 0, 0], x[1][:, 0, 0, 0] = 0.9, -0.9
    network = Shifted()
    options = {"objective": objective, "formulation": formulation, "lambda_clean": lambda_clean, "eps": 0.3}
    record = dat.discriminator_step(network, *x, **options)
    expected = algorithm1(Shifted(), *x, **options)
    assert relative_error(gradient_of(network), expected.gradient) < 1e-12
    linear, agree = objective == "wasserstein", all(each_sides_signs_agree(expected.logits, objective))
    assert agree or not shift or objective in ("hinge", "least_squares")
    if formulation == "batch_mean":
        shares = linear or not lambda_clean
    else:
        shares = agree and (linear or (formulation == "eq10" and lambda_clean > 0))
    assert record.path == ("shared" if shares else "separate")


@pytest.mark.parametrize("layer", NOT_LINEAR)
def test_a_backward_that_is_not_linear_shares_nothing_under_batchnorm(layer):
    def factory():
        torch.manual_seed(0)
        return conv(torch.nn.BatchNorm2d(8), layer()).double()

    network = factory()
    options = {"objective": "wasserstein", "formulation": "batch_mean", "eps": 0.3, "lambda_clean": 0.5}
    record = dat.discriminator_step(network, *batches(torch.float64), **options)
    assert record.path == "separate"
    assert relative_error(gradient_of(network), algorithm1(factory(), *batches(), **options).gradient) < 1e-12


def test_the_penalty_that_is_recorded_is_the_penalty():
    """Not the attack's loss, under BatchNorm."""
    network = build("BatchNorm", torch.float64)
    penalty = dat.penalties.r1(0.5)
    record = dat.discriminator_step(network, *batches(torch.float64), eps=1.0, penalty=penalty)
    x = batches(torch.float64)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(build("BatchNorm", torch.float64)(x).sum(), x)
    torch.testing.assert_close(record.penalty, 0.25 * gradient.square().sum() / M, rtol=1e-12, atol=0)
    assert len(record.fake_logits) == N


@pytest.mark.parametrize(
    ("coefficients", "weights", "factor"),
    [
        ([2.0, 4.0, 0.0], [-1.0, -2.0, 0.0], -2.0),
        ([2.0, -4.0], [1.0, -2.0], 2.0),
        ([2.0, -4.0], [1.0, 2.0], None),
        ([2.0, 0.0], [1.0, 2.0], None),
        ([0.0, 0.0], [1.0, 2.0], 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
    ],
)
def test_common_factor(coefficients, weights, factor):
    found = common_factor(torch.tensor(coefficients), torch.tensor(weights))
    assert found is None if factor is None else found == factor


def test_a_batch_of_one():
    for m, n in ((1, 3), (4, 1), (1, 1)):
        x = images(m, 1, torch.float64), images(n, 2, torch.float64)
        network = scaled(8.0, torch.float64)
        dat.discriminator_step(network, *x, eps=0.5, objective="hinge", formulation="alg1")
        expected = algorithm1(scaled(8.0, torch.float64), *x, eps=0.5, objective="hinge", formulation="alg1")
        assert relative_error(gradient_of(network), expected.gradient) < 1e-12
