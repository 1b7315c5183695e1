"""Penalties along one random direction: closed forms and float64 autograd with the same noise, and R1 as their expectation."""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

import datgan_fast as dat
from algorithm1 import ROUNDING, M, N, algorithm1, batches, each_path, gradient_of, relative_error, rest_spectral_norms
from datgan_fast.method.penalties import r1, r1_approximate, r2, r2_approximate
from networks import DISCRIMINATORS, build, images

pytestmark = pytest.mark.usefixtures("one_thread")
EACH = {"r1": (r1_approximate, 0), "r2": (r2_approximate, 1)}
each_side = pytest.mark.parametrize(("make", "side"), EACH.values(), ids=EACH)


def normal(shape):
    """What the documentation says is drawn."""
    return torch.randn(shape, dtype=torch.float32).double()


def formula(discriminator, x, gamma, sigma):
    """gamma / (2 sigma^2) * mean (D(x + sigma n) - D(x))^2; random masks are the same in both scores."""
    moved = x + sigma * normal(x.shape)
    state = torch.get_rng_state()
    own = discriminator(x.clone())
    torch.set_rng_state(state)
    return gamma / (2 * sigma**2) * (discriminator(moved) - own).square().mean()


class Linear(nn.Module):
    """D(x) = w.x + 0.3 in float64."""

    def __init__(self, *weights):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights, dtype=torch.float64))

    def forward(self, x):
        return x @ self.w + 0.3


class Quadratic(nn.Module):
    """D(x) = c |x|^2 / 2 in float64."""

    def __init__(self, c):
        super().__init__()
        self.c = nn.Parameter(torch.tensor(c, dtype=torch.float64))

    def forward(self, x):
        return self.c * x.square().sum(1) / 2


def points(count, seed, features=3):
    return torch.rand(count, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5


# Closed forms


@each_side
@pytest.mark.parametrize("sigma", [1e-3, 0.5])
def test_a_linear_discriminator(make, side, sigma):
    """D changes by sigma w.n, so that sigma cancels: gamma/2 mean (w.n)^2, exactly, and gamma mean (w.n) n for w."""
    discriminator, x = Linear(3.0, -4.0, 1.0), (points(5, 1), points(3, 2))
    torch.manual_seed(7)
    value = make(6.0, sigma)(discriminator, *x)
    value.backward()
    torch.manual_seed(7)
    n = normal((len(x[side]), 3))
    along = n @ discriminator.w.detach()
    torch.testing.assert_close(value.detach(), 3 * along.square().mean(), rtol=1e-11, atol=0)
    torch.testing.assert_close(discriminator.w.grad, 6 * (along[:, None] * n).mean(0), rtol=1e-11, atol=1e-12)


@each_side
def test_a_quadratic_discriminator(make, side):
    """D changes by c (sigma x.n + sigma^2 |n|^2 / 2), which is linear in c."""
    discriminator, x, sigma = Quadratic(1.7), (points(4, 1), points(6, 2)), 0.2
    torch.manual_seed(7)
    value = make(3.0, sigma)(discriminator, *x)
    value.backward()
    torch.manual_seed(7)
    n = normal(x[side].shape)
    slope = (x[side] * n).sum(1) + sigma / 2 * n.square().sum(1)
    expected = 1.5 * 1.7**2 * slope.square().mean()
    torch.testing.assert_close(value.detach(), expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(discriminator.c.grad, 2 * expected / 1.7, rtol=1e-11, atol=0)


MANY = 40_000


@each_side
def test_the_expectation_is_the_exact_penalty(make, side):
    """gamma/2 |w|^2 for the linear one. (w.n)^2 has the deviation sqrt(2) |w|^2, so that 5 deviations of the mean are 3.6 %."""
    torch.manual_seed(1)
    x = [points(2, 1), points(2, 2)]
    x[side] = points(MANY, 3)
    value = make(6.0, 0.1)(Linear(3.0, -4.0, 1.0), *x)
    torch.testing.assert_close(value.item(), 3 * 26.0, rtol=5 * (2 / MANY) ** 0.5, atol=0)


def test_the_bias_is_of_sigmas_square():
    """Of c |x|^2 / 2: E (x.n + sigma |n|^2 / 2)^2 = |x|^2 + sigma^2 / 4 (d^2 + 2 d)."""
    x = points(1, 1).expand(MANY, 3)
    square = x[0].square().sum().item()
    for sigma in (0.2, 0.4):
        torch.manual_seed(1)
        value = r1_approximate(2.0, sigma)(Quadratic(1.0), x, x).item()
        assert abs(value - square - sigma**2 / 4 * 15) < 0.02 * value


# Against autograd


@pytest.mark.parametrize("name", DISCRIMINATORS)
@each_side
def test_every_network(name, make, side):
    """Masks and spectral norms are the same in both scores: a difference between them would be divided by sigma."""
    network, double = build(name, torch.float64), build(name, torch.float64)
    x = images(5, 1, torch.float64), images(3, 2, torch.float64)
    torch.manual_seed(3)
    value = make(10.0, 1e-3)(network, *x)
    value.backward()
    after = torch.rand(1)
    rest_spectral_norms(double, True)
    torch.manual_seed(3)
    expected = formula(double, x[side], 10.0, 1e-3)
    expected.backward()
    assert torch.equal(after, torch.rand(1))
    torch.testing.assert_close(value.detach(), expected.detach(), rtol=1e-8, atol=0)
    assert relative_error(gradient_of(network), gradient_of(double)) < 1e-8
    assert value > 0


@each_side
def test_it_is_near_the_exact_penalty(make, side):
    """The mean over draws, of value and gradients, for a network that is not linear."""
    torch.manual_seed(3)
    network, x = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double(), points(4, 1)
    value = make(10.0, 1e-3)(network, *[x.repeat(MANY // 4, 1)] * 2)
    value.backward()
    approximate = gradient_of(network)[:-1]  # of all but the last bias
    network.zero_grad()
    exact = (r1, r2)[side](10.0)(network, x, x)
    exact.backward()
    assert abs(value - exact) < 0.04 * exact
    assert relative_error(approximate, gradient_of(network)) < 0.04


class Once(torch.autograd.Function):
    """As flash attention: its backward cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Undifferentiable(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(192, 8).double(), nn.Linear(8, 1).double()

    def forward(self, x):
        return self.last(Once.apply(self.first(x.flatten(1))))


@each_path
def test_nothing_is_differentiated_twice(fused):
    torch.manual_seed(0)
    network = Undifferentiable()
    penalty = r1_approximate(10.0) + r2_approximate(10.0)
    dat.discriminator_step(network, *batches(torch.float64), eps=1.0, penalty=penalty, fused=fused)
    assert all(p.grad.any() for p in network.parameters())
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dat.discriminator_step(network, *batches(torch.float64), eps=1.0, penalty=r1(), fused=fused)


@each_side
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_precision(make, side, dtype):
    network = build("conv", dtype)
    value = make(1.0, 0.5)(network, images(3, 1, dtype), images(3, 2, dtype))
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    value.backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_the_draw_is_the_same_in_every_layout():
    network, x = build("conv", torch.float64), batches(torch.float64)
    values = []
    for form in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(3)
        values.append(r1_approximate()(network, *(t.to(memory_format=form) for t in x)).item())
    assert abs(values[0] - values[1]) < 1e-9 * values[0]


def test_images_learn_nothing():
    x = [t.requires_grad_() for t in batches()]
    r1_approximate()(build("conv"), *x).backward()
    assert x[0].grad is None


# Inside a step


@pytest.mark.parametrize("name", ["conv", "BatchNorm", "spectral norm", "dropout"])
@pytest.mark.parametrize("more", [None, "r2", "user"])
@each_path
def test_inside_a_step(name, more, fused, merging):
    """They run by themselves, after what joins; the step stays shared where it was."""

    def of_weights(discriminator, x_real, x_fake):
        return sum(p.square().sum() for p in discriminator.parameters())

    network, double = build(name, torch.float64), build(name, torch.float64)
    x, penalty = batches(torch.float64), r1_approximate(4.0, 0.1)
    penalty = {None: penalty, "r2": r2(0.5) + penalty, "user": penalty + of_weights}[more]
    torch.manual_seed(3)
    record = dat.discriminator_step(network, *x, eps=0.5, penalty=penalty, fused=fused)
    torch.manual_seed(3)
    algorithm1(double, *x, eps=0.5)
    value = torch.zeros((), dtype=torch.float64)
    if more == "r2":
        fake = x[1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(double(fake).sum(), fake, create_graph=True)
        value = value + 0.25 * gradient.flatten(1).square().sum(1).mean()
    value = value + formula(double, x[0], 4.0, 0.1)
    if more == "user":
        value = value + of_weights(double, *x)
    value.backward()
    torch.testing.assert_close(record.penalty, value.detach(), rtol=1e-10, atol=0)
    assert relative_error(gradient_of(network), gradient_of(double)) < ROUNDING[torch.float64]
    if fused and name in ("conv", "spectral norm"):
        assert record.path == "shared"


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_under_ddp(one_process):
    network, wrapped = build("conv"), nn.parallel.DistributedDataParallel(build("conv"))
    for net in (network, wrapped):
        torch.manual_seed(3)
        dat.discriminator_step(net, *batches(), eps=1.0, penalty=r1_approximate() + r2_approximate())
    torch.testing.assert_close(gradient_of(wrapped), gradient_of(network))


def test_under_hooks_on_parameters():
    """Which want one backward of the whole loss, as a reducer's do."""
    seen, gradients = [], []
    for hooked in (False, True):
        network = build("conv", torch.float64)
        if hooked:
            network[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
        torch.manual_seed(3)
        record = dat.discriminator_step(network, *batches(torch.float64), eps=0.5, penalty=r1_approximate())
        gradients.append(gradient_of(network))
    assert record.path == "reference"
    assert len(seen) == 1 and torch.equal(seen[0], network[0].weight.grad)
    assert relative_error(*gradients) < ROUNDING[torch.float64]


# What is refused


@pytest.mark.parametrize("make", [r1_approximate, r2_approximate])
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"sigma": 0.0}, ValueError, "sigma must be a finite number above 0; got 0.0"),
        ({"sigma": -0.1}, ValueError, "sigma must be a finite number above 0; got -0.1"),
        ({"sigma": float("inf")}, ValueError, "sigma must be"),
        ({"sigma": float("nan")}, ValueError, "sigma must be"),
        ({"sigma": "small"}, TypeError, "sigma must be a number"),
        ({"gamma": -1.0}, ValueError, "gamma must be a finite number, 0 or more; got -1.0"),
        ({"gamma": float("nan")}, ValueError, "gamma must be"),
    ],
)
def test_what_cannot_be_right_is_refused(make, options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


def test_they_are_values():
    assert r1_approximate(2.0, 0.1) == r1_approximate(2.0, 0.1) != r2_approximate(2.0, 0.1)
    assert r1_approximate(0.0)(build("conv"), *batches()) == 0
    with pytest.raises(ValueError, match="one logit per image"):
        r1_approximate()(nn.Sequential(nn.Linear(2, 3), nn.Flatten(0)), torch.rand(M, 2), torch.rand(N, 2))
