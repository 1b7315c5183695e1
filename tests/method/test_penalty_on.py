"""A penalty on clean and perturbed images: the gradients and values of both terms, in float64 autograd from their formulas."""

import contextlib
import inspect

import pytest
import torch
from torch.nn.utils import parametrize

import datgan_fast as dat
from algorithm1 import M, N, algorithm1, batches, each_path, gradient_of, relative_error
from datgan_fast import penalties
from datgan_fast.method.joined_penalties import Within
from designs import Projection
from networks import build, conv
from penalty_formulas import alp, gp, lp, r1, r2

pytestmark = pytest.mark.usefixtures("one_thread", "merging")

SEED = 3
ROUNDING = {torch.float64: 1e-11, torch.float32: 1e-5}


def drawn(discriminator, x_real, x_fake):
    """A user's own, with a random number of its own."""
    number = torch.rand((), dtype=torch.float32)
    return number * discriminator(x_real).square().mean() + 0.1 * discriminator(x_fake).square().mean()


CASES = {
    "gp": (penalties.gradient_penalty(), [gp]),
    "lp": (penalties.gradient_penalty(one_sided=True), [lp]),
    "alp": (penalties.adversarial_lipschitz(), [alp]),
    "r1": (penalties.r1(), [r1]),
    "r2": (penalties.r2(), [r2]),
    "r1 + r2": (penalties.r1() + penalties.r2(), [r1, r2]),
    "one's own": (drawn, [drawn]),
    # in the order of the sum on clean images, and then once more
    "alp + r1 + gp": (
        penalties.total(penalties.adversarial_lipschitz(), penalties.r1(), penalties.gradient_penalty()),
        [alp, r1, gp],
    ),
    "gp + one's own + alp": (
        penalties.total(penalties.gradient_penalty(), drawn, penalties.adversarial_lipschitz()),
        [gp, drawn, alp],
    ),
}
NETWORKS = ["conv", "MLP, LayerNorm", "BatchNorm"]  # of the last images depend on each other


def steep(name, dtype=torch.float64):
    network = build(name, dtype)
    with torch.no_grad():
        list(network.parameters())[-2].mul_(20)  # for the penalties that punish slopes of more than 1
    return network


def terms(network, formulas, x, adv):
    """[clean, perturbed]"""
    return [sum(formula(network, *images) for formula in formulas) for images in (x, adv)]


def compare(name, case, fused, dtype=torch.float64, scale=1.0, **options):
    penalty, formulas = CASES[case]
    network, double = steep(name, dtype), steep(name)
    torch.manual_seed(SEED)
    record = dat.discriminator_step(
        network, *batches(dtype), eps=0.5, penalty=penalty, penalty_on="both", fused=fused, grad_scale=scale, **options
    )
    expected = algorithm1(double, *batches(), eps=0.5, **options)
    torch.manual_seed(SEED)
    clean, perturbed = terms(double, formulas, batches(torch.float64), expected.adv)
    (clean + perturbed).backward()
    assert relative_error(gradient_of(network) / scale, gradient_of(double)) < ROUNDING[dtype]
    value = (clean + perturbed).detach()
    torch.testing.assert_close(record.penalty.double(), value, rtol=ROUNDING[dtype], atol=0)
    torch.testing.assert_close(record.loss.double(), expected.loss + value, rtol=ROUNDING[dtype], atol=0)
    assert clean > 1e-3 and perturbed > 1e-3 and abs(clean - perturbed) > 1e-3 * clean  # neither passes for the other
    return record


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("formulation", ["eq10", "batch_mean"])
@pytest.mark.parametrize("case", CASES)
@each_path
def test_both_terms(name, formulation, case, fused):
    record = compare(name, case, fused, formulation=formulation)
    assert fused or record.path == "reference"


@pytest.mark.parametrize("case", ["gp", "alp + r1 + gp"])
@pytest.mark.parametrize(
    "options",
    [
        {"objective": "wasserstein", "norm": "linf"},
        {"objective": "hinge", "formulation": "alg1", "lambda_adv": 0.3},
        {"lambda_clean": 0.0},
        {"norm": "l2", "steps": 2, "alpha": 0.4},
    ],
    ids=str,
)
@each_path
def test_objectives_and_options(case, options, fused):
    compare("conv", case, fused, **options)


@pytest.mark.parametrize("scale", [1.0, torch.tensor(1024.0)])
@pytest.mark.parametrize("case", ["gp", "r1 + r2"])
@each_path
def test_float32_and_a_loss_scale(case, scale, fused):
    compare("conv", case, fused, torch.float32, scale, objective="wasserstein")


@pytest.mark.parametrize("case", CASES)
def test_the_same_random_numbers_as_the_reference(case):
    found = []
    for fused in (True, False):
        network = steep("spectral norm")
        torch.manual_seed(SEED)
        options = {"eps": 0.1, "norm": "linf", "random_start": True, "fused": fused, "penalty_on": "both"}
        record = dat.discriminator_step(network, *batches(torch.float64), penalty=CASES[case][0], **options)
        found.append((gradient_of(network), record.penalty, torch.rand(3)))
    assert relative_error(found[0][0], found[1][0]) < 1e-11
    torch.testing.assert_close(found[0][1:], found[1][1:])


@pytest.mark.parametrize("penalty_on", ["clean", "both"])
@each_path
def test_without_an_attack_there_is_the_clean_term_alone(penalty_on, fused):
    network, double = steep("conv"), steep("conv")
    options = {"eps": 0.5, "lambda_adv": 0.0}
    record = dat.discriminator_step(
        network, *batches(torch.float64), penalty=penalties.r1(), penalty_on=penalty_on, fused=fused, **options
    )
    algorithm1(double, *batches(), **options)
    value = r1(double, *batches(torch.float64))
    value.backward()
    torch.testing.assert_close(record.penalty, value.detach())
    assert relative_error(gradient_of(network), gradient_of(double)) < 1e-11


@each_path
def test_no_penalty_is_none_on_either(fused):
    network = steep("conv")
    record = dat.discriminator_step(network, *batches(torch.float64), eps=0.5, penalty_on="both", fused=fused)
    assert record.penalty == 0
    assert relative_error(gradient_of(network), algorithm1(steep("conv"), *batches(), eps=0.5).gradient) < 1e-11


def test_default():
    for step in (dat.discriminator_step, dat.reference.discriminator_step):
        assert inspect.signature(step).parameters["penalty_on"].default == "clean"


@pytest.mark.parametrize("name", NETWORKS)
@each_path
def test_ones_own_is_given_the_perturbed_images(name, fused):
    """As constants, and those of the attack even where D has changed what it was given."""
    seen = []

    def own(discriminator, x_real, x_fake):
        seen.append((x_real.clone(), x_fake.clone()))
        assert not (x_real.requires_grad or x_fake.requires_grad)
        return discriminator(x_real * 1).square().mean()

    network = torch.nn.Sequential(torch.nn.Hardtanh(-0.1, 0.1, inplace=True), steep(name))
    double = torch.nn.Sequential(torch.nn.Hardtanh(-0.1, 0.1), steep(name))
    dat.discriminator_step(network, *batches(torch.float64), eps=0.5, penalty=own, penalty_on="both", fused=fused)
    adv = algorithm1(double, *batches(), eps=0.5).adv
    assert len(seen) == 2
    for found, expected in zip(seen, (batches(torch.float64), adv), strict=True):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert any(((a - b).abs() > 1e-3).any() for a, b in zip(*seen, strict=True))


@each_path
def test_conditions_stay_with_their_images(fused):
    labels = torch.tensor([0, 3, 1, 4, 2, 0]), torch.tensor([2, 2, 0, 1])

    class Conditioned(torch.nn.Module):
        """The same, which knows a side by its number of images."""

        def __init__(self):
            super().__init__()
            self.d = made()

        def forward(self, x):
            return self.d(x, labels[{M: 0, N: 1}[len(x)]])

    def made():
        torch.manual_seed(0)
        return Projection().double()

    def own(discriminator, x_real, x_fake, condition_real=None, condition_fake=None):
        return (
            discriminator(x_real, condition_real).square().mean()
            + discriminator(x_fake, condition_fake).square().mean()
        )

    def own_formula(discriminator, x_real, x_fake):
        return discriminator(x_real).square().mean() + discriminator(x_fake).square().mean()

    network, double = made(), Conditioned()
    record = dat.discriminator_step(
        network,
        *batches(torch.float64),
        eps=5.0,
        penalty=penalties.total(penalties.r1(), penalties.r2(), own),
        penalty_on="both",
        fused=fused,
        condition_real=labels[0],
        condition_fake=labels[1],
    )
    adv = algorithm1(double, *batches(), eps=5.0).adv
    clean, perturbed = terms(double, [r1, r2, own_formula], batches(torch.float64), adv)
    (clean + perturbed).backward()
    assert abs(clean - perturbed) > 1e-3 * clean
    torch.testing.assert_close(record.penalty, (clean + perturbed).detach())
    assert relative_error(gradient_of(network), gradient_of(double)) < 1e-11


@pytest.mark.parametrize("case", ["gp", "alp", "r1 + r2"])
@each_path
def test_a_precision_of_its_own(case, fused):
    """Inside a context of the penalty's, without which its numbers would have bfloat16's digits."""

    def float32():
        return torch.autocast("cpu", torch.bfloat16, enabled=False)

    seen, (penalty, formulas) = [], CASES[case]

    def look(discriminator, x_real, x_fake):
        seen.append((x_real, x_fake))
        return 0 * discriminator(x_real).sum()

    network, double = steep("conv", torch.float32), steep("conv")
    torch.manual_seed(SEED)
    with torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", lambda x: torch.rand(x.shape, dtype=torch.float32).to(x.dtype))
        record = dat.discriminator_step(
            network, *batches(), eps=0.5, penalty=Within(penalty, float32) + look, penalty_on="both", fused=fused
        )
        torch.manual_seed(SEED)
        expected = sum(terms(double, formulas, *([t.double() for t in x] for x in seen))).detach()
    torch.testing.assert_close(record.penalty.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "wrap", [lambda p: p, lambda p: penalties.r2() + p, lambda p: Within(p, contextlib.nullcontext)]
)
@each_path
def test_a_lazy_penalty_counts_a_step_once(wrap, fused):
    """Both terms are there in the first of each two steps, neither in the other."""
    network, calls = steep("conv"), []

    def counted(discriminator, x_real, x_fake):
        calls.append(step)
        return discriminator(x_real).square().mean()

    lazy = penalties.lazily(counted, 2)
    for step in range(4):  # noqa: B007
        dat.discriminator_step(
            network, *batches(torch.float64), eps=0.5, penalty=wrap(lazy), penalty_on="both", fused=fused
        )
    assert calls == [0, 0, 2, 2]
    assert lazy.calls == 4


@pytest.mark.parametrize("case", ["gp", "alp + r1 + gp"])
def test_cached_weights(case):
    """All forwards of the step share the graph of their weights, which each backward but the last has to leave."""
    found = []
    for fused in (True, False):
        network = steep("conv")
        for layer in (network[0], network[2]):
            parametrize.register_parametrization(layer, "weight", Twice())
        torch.manual_seed(SEED)
        with parametrize.cached():
            record = dat.discriminator_step(
                network, *batches(torch.float64), eps=0.5, penalty=CASES[case][0], penalty_on="both", fused=fused
            )
        found.append((gradient_of(network), record.penalty))
    assert relative_error(found[0][0], found[1][0]) < 1e-11
    torch.testing.assert_close(found[0][1], found[1][1])


class Twice(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("case", ["gp", "r1 + r2"])
@each_path
def test_a_launchers_backward(case, fused):
    network, double = steep("conv"), steep("conv")

    def backward(loss, **options):
        loss.backward(**options)

    for d, own in ((network, {"backward": backward}), (double, {})):
        torch.manual_seed(SEED)
        dat.discriminator_step(
            d, *batches(torch.float64), eps=0.5, penalty=CASES[case][0], penalty_on="both", fused=fused, **own
        )
    assert relative_error(gradient_of(network), gradient_of(double)) < 1e-11


@pytest.mark.parametrize("value", ["adv", "", None, True, ["both"]])
@pytest.mark.parametrize("step", [dat.discriminator_step, dat.reference.discriminator_step])
def test_another_value_is_refused(step, value):
    network = conv()
    with pytest.raises(ValueError, match="penalty_on must be one of clean, both; got"):
        step(network, *batches(), eps=0.5, penalty=penalties.r1(), penalty_on=value)
    assert all(p.grad is None for p in network.parameters())
