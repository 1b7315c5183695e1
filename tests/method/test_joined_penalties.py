"""Penalties inside a step: gradients and values of Algorithm 1 plus the penalty, both in float64 autograd from their formulas."""

import contextlib

import pytest
import torch
from torch.nn.utils import parametrize

import datgan_fast as dat
from algorithm1 import M, N, algorithm1, batches, gradient_of, relative_error
from datgan_fast import penalties
from datgan_fast.method.joined_penalties import Within
from host_reads import NoHostReads
from networks import DISCRIMINATORS, build, images

pytestmark = pytest.mark.usefixtures("one_thread", "merging")

SEED = 3
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}


# The penalties as the papers have them: (discriminator, x_real, x_fake, dtype in which random numbers are drawn) -> 0-d


def zero_centred(gamma, side):
    def value(discriminator, x_real, x_fake, dtype):
        x = (x_real, x_fake)[side].detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
        return gamma / 2 * gradient.flatten(1).square().sum(1).mean()

    return value


def two_sided(discriminator, x_real, x_fake, dtype):
    pairs = min(len(x_real), len(x_fake))
    alpha = torch.rand(pairs, dtype=torch.float32)[:, None, None, None]
    x = alpha * x_real[:pairs] + (1 - alpha) * x_fake[:pairs]
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return 10 * (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def lipschitz(discriminator, x_real, x_fake, dtype):
    x = torch.cat([x_real, x_fake])
    d = torch.rand(x.shape, dtype=dtype).double() - 0.5
    d = (d / d.flatten(1).norm(dim=1)[:, None, None, None]).requires_grad_()
    change = (discriminator(x).detach() - discriminator((x + 10 * d).clamp(-1, 1))).abs().mean()
    (d,) = torch.autograd.grad(change, d)
    d = d / d.flatten(1).norm(dim=1)[:, None, None, None]
    e = torch.empty(len(x), dtype=torch.float32).uniform_(0.1, 10.0)[:, None, None, None]
    x_adv = (x + e * d).clamp(-1, 1)
    slope = (discriminator(x) - discriminator(x_adv)).abs().flatten() / (x - x_adv).flatten(1).norm(dim=1)
    return 10 * (slope - 1).clamp(min=0).square().mean()


def drawn(discriminator, x_real, x_fake):
    """A user's own, with a random number of its own."""
    return 0.1 * torch.rand(()) * discriminator(x_real).square().mean() + discriminator(x_fake).square().mean()


CASES = {
    "r1": (penalties.r1(3.0), [zero_centred(3.0, 0)]),
    "r2": (penalties.r2(2.0), [zero_centred(2.0, 1)]),
    "r1 + r2": (penalties.r1(3.0) + penalties.r2(2.0), [zero_centred(3.0, 0), zero_centred(2.0, 1)]),
    "alp": (penalties.adversarial_lipschitz(), [lipschitz]),
    "alp + r1": (penalties.adversarial_lipschitz() + penalties.r1(0.1), [lipschitz, zero_centred(0.1, 0)]),
    "r1 + alp": (penalties.r1(0.1) + penalties.adversarial_lipschitz(), [zero_centred(0.1, 0), lipschitz]),
    "alp twice": (penalties.total(*[penalties.adversarial_lipschitz()] * 2), [lipschitz, lipschitz]),
    "gp": (penalties.gradient_penalty(), [two_sided]),
    # whoever draws first has drawn first
    "gp + alp": (penalties.gradient_penalty() + penalties.adversarial_lipschitz(), [two_sided, lipschitz]),
    "alp + gp": (penalties.adversarial_lipschitz() + penalties.gradient_penalty(), [lipschitz, two_sided]),
    "alp + gp + alp": (
        penalties.total(*[penalties.adversarial_lipschitz(), penalties.gradient_penalty()] * 2),
        [lipschitz, two_sided, lipschitz, two_sided],
    ),
    "one's own": (drawn, [lambda d, r, f, dtype: drawn(d, r, f)]),
    "one's own + alp + r2": (
        penalties.total(drawn, penalties.adversarial_lipschitz(), penalties.r2()),
        [lambda d, r, f, dtype: drawn(d, r, f), lipschitz, zero_centred(10.0, 1)],
    ),
}


def steep(name, dtype):
    network = build(name, dtype)
    with torch.no_grad():
        list(network.parameters())[-2].mul_(20)  # punished in part
    return network


def compare(name, case, dtype=torch.float64, steps=1, scale=1.0, prepare=lambda network: network, **options):
    """The step's gradient against Algorithm 1's and the penalties'; returns the network and the record."""
    penalty, formulas = CASES[case]
    network, double = prepare(steep(name, dtype)), prepare(steep(name, torch.float64))
    for step in range(steps):
        torch.manual_seed(SEED + step)
        record = dat.discriminator_step(network, *batches(dtype), eps=0.5, penalty=penalty, grad_scale=scale, **options)
        torch.manual_seed(SEED + step)
        values = [f(double, *batches(torch.float64), dtype) for f in formulas]  # before spectral norms come to rest
        algorithm1(double, *batches(), eps=0.5, power_iteration=False, **options)
        sum(values).backward()
    assert relative_error(gradient_of(network) / scale, gradient_of(double)) < ROUNDING[dtype]
    torch.testing.assert_close(record.penalty.double(), sum(values).detach(), rtol=ROUNDING[dtype], atol=0)
    total = options.get("lambda_clean", 1.0) * record.loss_clean + options.get("lambda_adv", 1.0) * record.loss_adv
    torch.testing.assert_close(record.loss, total + record.penalty)
    return network, record


@pytest.mark.parametrize("name", ["conv", "residual, GroupNorm", "MLP, LayerNorm", "InstanceNorm", "BatchNorm, eval"])
@pytest.mark.parametrize("case", CASES)
def test_independent_images(name, case):
    _, record = compare(name, case, objective="wasserstein")
    assert record.path == "shared"


@pytest.mark.parametrize("name", ["BatchNorm", "minibatch stddev"])
@pytest.mark.parametrize("case", ["r1", "r1 + r2", "alp", "gp + alp"])
def test_images_that_depend_on_each_other(name, case):
    compare(name, case)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "options",
    [
        {"objective": "hinge", "formulation": "alg1"},
        {"objective": "vanilla", "formulation": "batch_mean"},
        {"objective": "least_squares"},
        {"objective": "fgan", "formulation": "alg1", "norm": "l2"},
        {"lambda_clean": 0.0},
        {"lambda_adv": 0.0, "lambda_clean": 0.3},
        {"norm": "l2", "steps": 2},
    ],
    ids=str,
)
def test_objectives_and_options(case, options):
    compare("conv", case, **options)


@pytest.mark.parametrize("case", CASES)
def test_float32(case):
    compare("conv", case, torch.float32, objective="wasserstein")


@pytest.mark.parametrize("case", ["r1 + r2", "alp + r1"])
@pytest.mark.parametrize("scale", [torch.tensor(1024.0), 0.5])
def test_a_loss_scale(case, scale):
    compare("conv", case, scale=scale)


@pytest.mark.parametrize("case", ["r1 + r2", "alp + r1"])
def test_gradients_add_up_over_steps(case):
    compare("conv", case, steps=3)


@pytest.mark.parametrize("case", ["r1 + r2", "alp + r1"])
def test_frozen_and_shared_parameters(case):
    def prepare(network):
        network[0].weight.requires_grad_(False)
        network.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
        network[2].bias = network[2].weight_twice = torch.nn.Parameter(network[2].bias.detach().clone())
        return network

    network, _ = compare("conv", case, prepare=prepare)
    assert network[0].weight.grad is None
    assert network.unused.grad is None


@pytest.mark.parametrize("case", ["r1 + r2", "alp"])
def test_only_biases_learn(case):
    """R1 has nothing to teach them: a piecewise linear network's gradient does not depend on them."""

    def prepare(network):
        for name, p in network.named_parameters():
            p.requires_grad_("bias" in name)
        return network

    penalty, formulas = CASES[case]
    network, double = prepare(steep("conv", torch.float64)), prepare(steep("conv", torch.float64))
    torch.manual_seed(SEED)
    dat.discriminator_step(network, *batches(torch.float64), eps=0.5, penalty=penalty)
    torch.manual_seed(SEED)
    values = [f(double, *batches(torch.float64), torch.float64) for f in formulas if case == "alp"]
    algorithm1(double, *batches(), eps=0.5)
    if values:
        sum(values).backward()
    for p, q in zip(network.parameters(), double.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("case", ["r1 + r2", "alp"])
def test_channels_last(case):
    penalty, _ = CASES[case]
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network = steep("conv", torch.float32).to(memory_format=layout)
        torch.manual_seed(SEED)
        x = (t.contiguous(memory_format=layout) for t in batches())
        dat.discriminator_step(network, *x, eps=0.5, penalty=penalties.r1() if case == "r1" else penalty)
        gradients.append(gradient_of(network))
        assert network[0].weight.grad.is_contiguous(memory_format=layout)
    if case != "alp":  # whose noise lies in memory as the images do
        assert relative_error(*gradients) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_the_same_random_numbers_as_the_reference(case):
    found = []
    for fused in (True, False):
        network = steep("spectral norm", torch.float64)
        torch.manual_seed(SEED)
        options = {"eps": 0.1, "norm": "linf", "random_start": True, "fused": fused}
        record = dat.discriminator_step(network, *batches(torch.float64), penalty=CASES[case][0], **options)
        found.append((gradient_of(network), record.penalty, torch.rand(3)))
    assert relative_error(found[0][0], found[1][0]) < 1e-12
    torch.testing.assert_close(found[0][1:], found[1][1:])


class Exponential(torch.nn.Module):
    def forward(self, weight):
        return weight.exp() - 1


@pytest.mark.parametrize("case", ["r1 + r2", "alp + gp + alp", "one's own + alp + r2"])
def test_cached_weights(case):
    """All forwards of the step share the graph of their weights, which each backward but the last has to leave."""
    found = []
    for fused in (True, False):
        network = steep("conv", torch.float64)
        for layer in (network[0], network[2]):
            parametrize.register_parametrization(layer, "weight", Exponential())
        torch.manual_seed(SEED)
        with parametrize.cached():
            record = dat.discriminator_step(
                network, *batches(torch.float64), eps=0.5, penalty=CASES[case][0], fused=fused
            )
        found.append((gradient_of(network), record.penalty))
    assert relative_error(found[0][0], found[1][0]) < 1e-12
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize("case", ["r1", "alp"])
def test_a_network_that_draws(case):
    """Dropout's masks are drawn in another order; the penalty is a pass of its own and nothing else is wrong with it."""
    torch.manual_seed(SEED)
    record = dat.discriminator_step(
        steep("dropout", torch.float64), *batches(torch.float64), eps=0.5, penalty=CASES[case][0]
    )
    assert record.penalty > 0


class Opposed(penalties.AdversarialLipschitz):
    """Its gradient with respect to real images' scores is that of `wasserstein` for four of them, with the other sign."""

    def value(self, logits, logits_adv, distance):
        return logits[:4].sum() / 4 + 0 * logits_adv.sum()


def test_where_a_weight_and_the_penalty_cancel():
    """Real images go back with nothing at all, and are attacked."""
    found = []
    x = images(4, 1, torch.float64), images(3, 2, torch.float64)
    for fused in (True, False):
        network = steep("conv", torch.float64)
        torch.manual_seed(SEED)
        options = {"objective": "wasserstein", "eps": 0.5, "penalty": Opposed(1.0, 1, 10.0, (0.1, 10.0), -1.0, 1.0)}
        found.append((dat.discriminator_step(network, *x, fused=fused, **options), gradient_of(network)))
    assert relative_error(found[0][1], found[1][1]) < 1e-12
    torch.testing.assert_close(found[0][0].input_grad_norm, found[1][0].input_grad_norm)


class Switch(torch.nn.Module):
    mixes = False

    def forward(self, x):
        return x - 0.5 * x.mean(0) if self.mixes else x


@pytest.mark.parametrize("lambda_clean", [1.0, 0.0])
def test_a_network_that_comes_to_mix_its_images(lambda_clean):
    """It was asked when it did not; now the images that are punished are others without those that are not."""
    networks = [torch.nn.Sequential(Switch(), steep("conv", torch.float64)) for _ in range(2)]
    for mixes in (False, True):
        for network, fused in zip(networks, (True, False), strict=True):
            network[0].mixes = mixes
            network[1][5].weight.data.mul_(1.1 if mixes else 0.3)  # some of the images are punished
            torch.manual_seed(SEED)
            record = dat.discriminator_step(
                network,
                *batches(torch.float64),
                eps=0.5,
                penalty=CASES["alp"][0],
                lambda_clean=lambda_clean,
                fused=fused,
            )
            assert record.penalty > 0
    assert relative_error(*map(gradient_of, networks)) < 1e-12


# Precision


@pytest.mark.parametrize("case", ["r1 + r2", "alp", "alp + r1"])
def test_bfloat16(case):
    """As exact as the reference is, in bfloat16 both."""
    expected = None
    errors = {}
    for fused in (None, True, False):
        network = steep("conv", torch.float64 if fused is None else torch.float32)
        torch.manual_seed(SEED)
        dtype = torch.float64 if fused is None else torch.float32
        with torch.autocast("cpu", torch.bfloat16, enabled=fused is not None), fixed_noise():
            dat.discriminator_step(
                network, *batches(dtype), eps=0.5, penalty=CASES[case][0], fused=fused is True, objective="wasserstein"
            )
        if fused is None:
            expected = gradient_of(network)
        else:
            errors[fused] = relative_error(gradient_of(network), expected)
    assert errors[True] < 2 * errors[False] < 0.4


@contextlib.contextmanager
def fixed_noise():
    """The same numbers in every dtype."""
    draw = torch.Tensor.uniform_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "uniform_", lambda t, *bounds: t.copy_(draw(t.float(), *bounds)))
        yield


def forwards(network, penalty, **context):
    """How many images go forward in a step after the first."""
    seen = []
    for _ in range(2):
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16, **context):
            handle = network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
            dat.discriminator_step(network, *batches(), eps=0.5, penalty=penalty)
            handle.remove()
    return sum(seen)


@pytest.mark.parametrize("half", [False, True])
def test_a_penalty_joins_in_the_steps_own_precision(half):
    def float32():
        return torch.autocast("cpu", torch.bfloat16, enabled=False)

    network = build("conv")
    penalty = Within(penalties.r1() + penalties.r2(), float32)
    assert forwards(network, penalty, enabled=half) == (3 if half else 2) * (M + N)
    joined, apart = (build("conv") for _ in range(2))
    dat.discriminator_step(joined, *batches(), eps=0.5, penalty=penalty)
    dat.discriminator_step(apart, *batches(), eps=0.5, penalty=penalty, fused=False)
    assert relative_error(gradient_of(joined), gradient_of(apart)) < 1e-5


def test_a_lipschitz_penalty_in_another_precision_computes_scores_once():
    def float32():
        return torch.autocast("cpu", torch.bfloat16, enabled=False)

    penalty = penalties.adversarial_lipschitz()
    joined = forwards(steep("conv", torch.float32), penalty, enabled=True)
    assert forwards(steep("conv", torch.float32), Within(penalty, float32), enabled=True) == joined + M + N
    found = []
    for fused in (True, False):
        network = steep("conv", torch.float32)
        torch.manual_seed(SEED)
        with torch.autocast("cpu", torch.bfloat16, enabled=fused):  # the clean pass's, which adds nothing
            options = {"eps": 0.5, "penalty": Within(penalty, float32), "fused": fused}
            record = dat.discriminator_step(network, *batches(), lambda_clean=0.0, lambda_adv=0.0, **options)
        found.append((gradient_of(network), record.penalty))
    assert relative_error(found[0][0], found[1][0]) < 1e-5
    torch.testing.assert_close(found[0][1], found[1][1])


# What a step on a GPU may do


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_read_where_it_would_wait(case, monkeypatch):
    network = steep("conv", torch.float32)
    monkeypatch.setattr("datgan_fast.method.waiting.looking_waits", lambda device: True)
    for k in range(2):
        with NoHostReads() if k else contextlib.nullcontext():
            dat.discriminator_step(network, *batches(), eps=0.5, penalty=CASES[case][0])


def test_hooks_inside_keep_penalties_apart():
    """A hook on a tensor inside sees the gradients that plain autograd has there."""

    class Tapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, x):
            x = x * 1
            if x.requires_grad:
                x.register_hook(lambda g: self.seen.append(g.detach().abs().sum().item()))
            return x

    tapped = Tapped()
    network = torch.nn.Sequential(tapped, steep("conv", torch.float64))
    x = batches(torch.float64)
    dat.discriminator_step(network, *x, eps=0.5, penalty=penalties.r1())
    plain = steep("conv", torch.float64)
    torch.manual_seed(0)
    leaf = x[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(plain(leaf).sum(), leaf)
    assert any(abs(s - gradient.abs().sum().item()) < 1e-9 for s in tapped.seen)


def test_every_discriminator_of_the_collection():
    for name in DISCRIMINATORS:
        if name != "dropout":
            found = []
            for fused in (True, False):
                network = steep(name, torch.float64)
                torch.manual_seed(SEED)
                penalty = CASES["alp + r1"][0] + CASES["r1 + r2"][0]
                dat.discriminator_step(network, *batches(torch.float64), eps=0.5, penalty=penalty, fused=fused)
                found.append(gradient_of(network))
            assert relative_error(*found) < 1e-11, name
