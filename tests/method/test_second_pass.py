"""The second pass of gradient penalties against plain float64 autograd: many kinds of networks, what it costs, what users do."""

import weakref
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.nn.utils.spectral_norm import spectral_norm as old_spectral_norm
from torch.nn.utils.weight_norm import weight_norm as old_weight_norm
from torch.utils.checkpoint import checkpoint

import datgan_fast as dat
from counting import Convolutions, forward_work
from datgan_fast.method import second_pass
from datgan_fast.method.second_pass import differentiable
from datgan_fast.training.networks import build_discriminator
from penalty_formulas import FORMULAS, input_gradient

pytestmark = pytest.mark.usefixtures("one_thread")

PENALTIES = {
    "gp": dat.penalties.gradient_penalty(),
    "lp": dat.penalties.gradient_penalty(one_sided=True),
    "r1": dat.penalties.r1(),
    "r2": dat.penalties.r2(),
}
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5}
each_penalty = pytest.mark.parametrize("penalty", PENALTIES)


class Call(nn.Module):
    """The function of x and modules as a network."""

    def __init__(self, function, *parts):
        super().__init__()
        self.parts, self.function = nn.ModuleList(parts), function

    def forward(self, x):
        return self.function(x, *self.parts)


class Scaled(nn.Module):
    """A learnt factor for each channel."""

    def __init__(self, channels=8):
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, channels))

    def forward(self, x):
        return x * self.factor.view(-1, 1, 1) if x.dim() > 2 else x * self.factor


def net(*middle, wrap=lambda layer: layer, out=512, activation=lambda: nn.LeakyReLU(0.2)):
    """A convolution to 8 channels of 8x8, what is to be tested, and a head with a hidden layer."""
    head = nn.Flatten(), wrap(nn.Linear(out, 6)), activation(), wrap(nn.Linear(6, 1))
    return nn.Sequential(wrap(nn.Conv2d(3, 8, 3, padding=1)), *middle, *head)


def acted(activation):
    return net(activation(), wrap=lambda layer: layer, activation=activation)


def on(shape, *layers):
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, shape), *layers)


def conv1d():
    pads = nn.ReflectionPad1d(1), nn.ReplicationPad1d(1)
    layers = nn.Conv1d(12, 5, 3, stride=2), nn.ReLU(), *pads, nn.ConvTranspose1d(5, 4, 3), nn.LeakyReLU()
    return on((12, 16), *layers, nn.AvgPool1d(2), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 1))


def conv3d():
    pads = nn.ReflectionPad3d(1), nn.ReplicationPad3d(1)
    layers = (
        nn.Conv3d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        *pads,
        nn.ConvTranspose3d(4, 3, 2),
        nn.LeakyReLU(),
    )
    return on((3, 4, 4, 4), *layers, nn.AvgPool3d(2), nn.AdaptiveAvgPool3d((1, 2, 1)), nn.Flatten(), nn.Linear(6, 1))


def adaptive_max_3d():
    return on((3, 4, 4, 4), nn.Conv3d(3, 4, 1), nn.ReLU(), nn.AdaptiveMaxPool3d(2), nn.Flatten(), nn.Linear(32, 1))


def dilated():
    layers = nn.Conv2d(8, 12, 3, dilation=2, groups=4), nn.ReLU(), nn.Conv2d(12, 4, 3, stride=2, bias=False)
    return net(*layers, nn.ReLU(), out=4)


def transposed():
    layers = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, output_padding=1, groups=2), nn.LeakyReLU(0.1)
    return net(*layers, nn.AvgPool2d(3), out=150)


def residual():
    first, second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    return net(
        Call(
            lambda x, a, b: (F.avg_pool2d(x + b(F.relu(a(F.relu(x)))), 2) + F.avg_pool2d(x, 2)) / 2**0.5, first, second
        ),
        out=128,
    )


def slices(x):
    return torch.cat([x[:, ::2, 1:-1], x[:, 1::2].narrow(2, 0, 6).flip(3), x.roll(1, 2)[:, :4, 2:]], 1)


def shared_convolution():
    """One weight at two places, and a linear layer that serves twice."""
    same, twice = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 8)
    return net(
        Call(lambda x, c: c(F.relu(c(x))), same),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        twice,
        nn.ReLU(),
        twice,
        out=8,
    )


def written_in_place(x):
    y = torch.zeros_like(x)
    y[:, :3] = x[:, 5:]
    y[:, 4:, ::2] = 2 * x[:, :4, ::2]
    return y


def hooked(x):
    """To the gradient is added, on its way back, one number of each image's."""
    x = x * 1
    if x.requires_grad:
        x.register_hook(lambda g: g + 0.1 * g.abs().sum((1, 2, 3), keepdim=True))
    return x


def hooked_by_itself(x):
    x = x * 1
    if x.requires_grad:
        x.register_hook(lambda g: g * x.detach().sign() if not g.requires_grad else g * x)
    return x


def also_normalised(x, layer):
    return layer(F.conv2d(x, layer.weight / layer.weight.norm()).relu())


def attended(x):
    q = x.flatten(2).transpose(1, 2)
    return torch.softmax(q @ q.transpose(1, 2) / 4, -1) @ q


def with_deviation(x):
    deviation = (x.var(0) + 1e-8).sqrt().mean()
    return torch.cat([x, deviation.expand(len(x), 1, 8, 8)], 1)


def by_hypernetwork(x, layer):
    return torch.einsum("nchw,ncd->ndhw", x, layer(x.mean((2, 3))).view(-1, 8, 8)).relu()


PIECEWISE_LINEAR = {
    "MLP, ReLU": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 20), nn.ReLU(), nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 1)
    ),
    "linear layers on more dimensions": lambda: nn.Sequential(
        nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(96, 1)
    ),
    "bilinear by einsum": lambda: net(
        Call(lambda x, s: torch.einsum("nchw,cd->ndhw", x, s.weight).relu(), nn.Linear(8, 8))
    ),
    "convolutions only": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 1, 6)),
    "conv1d": conv1d,
    "conv3d": conv3d,
    "AdaptiveMaxPool3d": adaptive_max_3d,
    "dilated, grouped, without bias": dilated,
    "transposed": transposed,
    "ReLU": lambda: acted(nn.ReLU),
    "leaky ReLU in place": lambda: acted(lambda: nn.LeakyReLU(0.2, inplace=True)),
    "ReLU6": lambda: acted(nn.ReLU6),
    "Hardtanh": lambda: acted(nn.Hardtanh),
    "PReLU": lambda: acted(nn.PReLU),
    "RReLU": lambda: acted(nn.RReLU).eval(),
    "Hardshrink": lambda: acted(lambda: nn.Hardshrink(0.1)),
    "Softshrink": lambda: acted(lambda: nn.Softshrink(0.1)),
    "Threshold": lambda: acted(lambda: nn.Threshold(0.1, -0.2)),
    "abs": lambda: net(Call(torch.abs), nn.Conv2d(8, 8, 1), Call(torch.abs)),
    "sign": lambda: net(Call(lambda x: x * x.sign())),
    "clamp": lambda: net(Call(lambda x: x.clamp(-0.3, 0.4)), nn.Conv2d(8, 8, 1), Call(lambda x: x.clamp(min=0))),
    "where": lambda: net(Call(lambda x: torch.where(x > 0, x, -0.3 * x))),
    "maxout": lambda: net(Call(lambda x: torch.maximum(x[:, :4], x[:, 4:])), out=256),
    "max over a dimension": lambda: net(Call(lambda x: x.max(1).values), out=64),
    "sorted": lambda: net(Call(lambda x: x.flatten(1).sort().values)),
    "MaxPool2d": lambda: net(nn.MaxPool2d(3, 2), nn.ReLU(), out=72),
    "AvgPool2d": lambda: net(nn.ReLU(), nn.AvgPool2d(3, 2, 1), out=128),
    "AdaptiveAvgPool2d": lambda: net(nn.ReLU(), nn.AdaptiveAvgPool2d(3), out=72),
    "AdaptiveMaxPool2d": lambda: net(nn.AdaptiveMaxPool2d((2, 3)), out=48),
    "global mean and sum": lambda: net(nn.ReLU(), Call(lambda x: x.mean((2, 3)) + x.sum((2, 3)) / 9), out=8),
    "ZeroPad2d": lambda: net(nn.ReLU(), nn.ZeroPad2d((1, 2, 0, -1)), out=8 * 7 * 11),
    "ReflectionPad2d": lambda: net(nn.ReLU(), nn.ReflectionPad2d(1), nn.Conv2d(8, 2, 3), nn.ReLU(), out=128),
    "ReplicationPad2d": lambda: net(nn.ReLU(), nn.ReplicationPad2d(1), nn.Conv2d(8, 2, 3), nn.ReLU(), out=128),
    "padding modes": lambda: net(
        nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"),
        out=256,
    ),
    "filtered": lambda: net(nn.ReLU(), Call(lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.3)), nn.ReLU()),
    "hooked": lambda: net(nn.ReLU(), Call(hooked), nn.Conv2d(8, 8, 1), nn.ReLU()),
    "slices, concatenation": lambda: net(nn.ReLU(), Call(slices), out=12 * 48),
    "indices": lambda: net(nn.ReLU(), Call(lambda x: x[:, torch.tensor([0, 3, 3, 7])]), out=256),
    "residual": residual,
    "constant scales": lambda: net(nn.ReLU(), Call(lambda x: x * torch.linspace(0, 2, 8).view(8, 1, 1).to(x) / 3)),
    "learnt scales": lambda: net(nn.ReLU(), Scaled(), nn.LeakyReLU(), Call(lambda x, s: s(x), Scaled())),
    "PixelShuffle": lambda: net(nn.PixelShuffle(2), nn.ReLU(), nn.PixelUnshuffle(4), nn.ReLU()),
    "ChannelShuffle, stack": lambda: net(nn.ReLU(), Call(lambda x: torch.stack(x.unbind(1)[::-1], 2))),
    "upsampling, nearest": lambda: net(nn.Upsample(scale_factor=2), nn.ReLU(), nn.AvgPool2d(2)),
    "upsampling, bilinear": lambda: net(nn.ReLU(), nn.Upsample(scale_factor=0.5, mode="bilinear"), out=128),
    "dropout, eval": lambda: net(nn.Dropout(0.3), nn.ReLU()).eval(),
    "BatchNorm, eval": lambda: net(nn.BatchNorm2d(8), nn.ReLU()).eval(),
    "BatchNorm1d, eval": lambda: net(nn.Flatten(), nn.BatchNorm1d(512), nn.ReLU()).eval(),
    "spectral norm": lambda: net(nn.ReLU(), wrap=spectral_norm),
    "spectral norm, eval": lambda: net(nn.ReLU(), wrap=spectral_norm).eval(),
    "old spectral norm": lambda: net(nn.ReLU(), wrap=old_spectral_norm),
    "weight norm": lambda: net(nn.ReLU(), wrap=weight_norm),
    "old weight norm": lambda: net(nn.ReLU(), wrap=old_weight_norm),
    "orthogonal weights": lambda: net(nn.ReLU(), nn.Flatten(), orthogonal(nn.Linear(512, 8)), nn.ReLU(), out=8),
    "shared weights": shared_convolution,
    "checkpointed": lambda: net(
        Call(
            lambda x, c: checkpoint(c, x, use_reentrant=False), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        )
    ),
}
WHOLE_PASS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 1)),
    "square": lambda: net(nn.ReLU(), Call(lambda x: x.square())),
    "product with itself": lambda: net(Call(lambda x: x * F.relu(x + 0.2))),
    "gate": lambda: net(nn.GLU(1), out=256),
    "SiLU": lambda: acted(nn.SiLU),
    "Tanh": lambda: acted(nn.Tanh),
    "Sigmoid": lambda: acted(nn.Sigmoid),
    "Softplus": lambda: acted(nn.Softplus),
    "ELU": lambda: acted(nn.ELU),
    "SELU": lambda: acted(nn.SELU),
    "GELU": lambda: acted(nn.GELU),
    "Mish": lambda: acted(nn.Mish),
    "Hardswish": lambda: acted(nn.Hardswish),
    "LogSigmoid": lambda: acted(nn.LogSigmoid),
    "one SiLU among ReLUs": lambda: net(nn.ReLU(), nn.Conv2d(8, 8, 1), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.ReLU()),
    "tanh at the end": lambda: nn.Sequential(net(nn.ReLU()), nn.Tanh()),
    "GroupNorm": lambda: net(nn.GroupNorm(2, 8), nn.ReLU()),
    "LayerNorm": lambda: net(nn.Flatten(), nn.LayerNorm(512), nn.ReLU()),
    "InstanceNorm": lambda: net(nn.InstanceNorm2d(8, affine=True), nn.ReLU()),
    "BatchNorm": lambda: net(nn.BatchNorm2d(8), nn.ReLU()),
    "pixel norm": lambda: net(nn.ReLU(), Call(lambda x: x / (x.square().mean(1, keepdim=True) + 0.1).sqrt())),
    "minibatch deviation": lambda: net(Call(with_deviation), nn.ReLU(), out=576),
    "spectrum": lambda: net(nn.ReLU(), Call(lambda x: torch.fft.rfft2(x).abs()), nn.ReLU(), out=320),
    "hooked by the images": lambda: net(nn.ReLU(), Call(hooked_by_itself), nn.Conv2d(8, 8, 1), nn.ReLU()),
    "CircularPad2d": lambda: net(nn.ReLU(), nn.CircularPad2d(1), nn.Conv2d(8, 2, 3), nn.ReLU(), out=128),
    "written in place": lambda: net(nn.ReLU(), Call(written_in_place), nn.Conv2d(8, 8, 1), nn.ReLU()),
    "weight also normalised": lambda: net(nn.ReLU(), Call(also_normalised, nn.Conv2d(8, 8, 1)), nn.ReLU()),
    "attention": lambda: net(nn.ReLU(), Call(attended)),
    "hypernetwork": lambda: net(Call(by_hypernetwork, nn.Linear(8, 64))),
    "AvgPool2d and square": lambda: net(nn.AvgPool2d(2), Call(lambda x: x.square() + x.abs()), out=128),
    "norm of the features": lambda: net(nn.ReLU(), Call(lambda x: x.flatten(1).norm(dim=1, keepdim=True)), out=1),
}  # fmt: skip
NETWORKS = PIECEWISE_LINEAR | WHOLE_PASS
# Masks are drawn in the forward, of each dtype others.
RANDOM = {
    "RReLU": lambda: acted(nn.RReLU),
    "dropout": lambda: net(nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(8, 8, 1), nn.ReLU()),
}


def images(count, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (1.8 * torch.rand(count, 3, 8, 8, generator=generator) - 0.9).to(dtype)


def made(factory):
    """In float64, with input gradients whose norms lie around 2."""
    norms = input_gradient(seeded(factory), images(8, 0) / 2).flatten(1).norm(dim=1)
    factor = 2 / norms.mean().item()
    return Call(lambda x, inner: inner(x) * factor, seeded(factory))


def seeded(factory):
    torch.manual_seed(1)
    return factory().double()


def twins(factory, dtype=torch.float64):
    """The same weights twice, those of the second in float64."""
    return made(factory).to(dtype), made(factory).to(dtype).double()


def worst(network, expected):
    """The largest relative error of a parameter's gradient, none of which may be missing or be there without need.

    One that is small beside the others, such as that of a bias before a normalisation, is their rounding.
    """
    errors = [0.0]
    largest = max(p.grad.abs().max().item() for p in expected.parameters() if p.grad is not None)
    for p, q in zip(network.parameters(), expected.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert p.grad.shape == p.shape and p.grad.dtype == p.dtype
            errors.append(((p.grad.double() - q.grad).abs().max() / q.grad.abs().max().clamp(min=largest / 20)).item())
    return max(errors)


def compare(used, expected, penalty, x, of=None):
    dtype = x[0].dtype
    torch.manual_seed(3)
    value = PENALTIES[penalty](used, *x)
    torch.manual_seed(3)
    formula = FORMULAS[penalty](expected, *(t.double() for t in x))
    value.backward()
    formula.backward()
    assert value.dtype == dtype and value.dim() == 0
    assert abs(value.item() - formula.item()) < ROUNDING[dtype] * abs(formula.item())
    assert worst(of or used, expected) < ROUNDING[dtype]
    assert any(p.grad is not None and p.grad.abs().max() > 1e-3 for p in expected.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str)
@each_penalty
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients(name, penalty, dtype):
    """Of unequal batches."""
    compare(*twins(NETWORKS[name], dtype), penalty, (images(5, 1, dtype), images(3, 2, dtype)))


@pytest.mark.parametrize("name", NETWORKS)
def test_which_networks_are_spared_the_zeros(name):
    network, x = made(NETWORKS[name]), images(4, 1).requires_grad_()
    scores = network(x)
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    result = differentiable(gradient, x, scores)
    assert (result is not gradient) == (name in PIECEWISE_LINEAR)
    assert torch.equal(result, gradient) and result.requires_grad


# What is counted


def dcgan():
    torch.manual_seed(0)
    network = build_discriminator("dcgan", image_size=32, channels=3, width=8, batch_norm=False)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(10)  # steep enough for the one-sided penalty
    return network


def counted(penalty, network, *x):
    with Convolutions() as seen:
        penalty(network, *x).backward()
    return seen


def large(count, seed):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize(("m", "n"), [(4, 4), (5, 3), (2, 6)])
def test_a_gradient_penalty_costs_four_forwards(one_sided, m, n):
    """Forward, backward to the images, and back through that: to the gradient's own argument and to the weights."""
    network, x = dcgan(), (large(m, 1), large(n, 2))
    unit = forward_work(network, large(min(m, n), 3))
    penalty = dat.penalties.gradient_penalty(one_sided=one_sided)
    seen = counted(penalty, network, *x)
    assert 3.99 < seen.total() / unit <= 4  # the last layer's output has nothing behind it
    assert seen.work["forward"] / unit == pytest.approx(2, rel=0.01)
    assert seen.work["input"] == seen.work["weight"] == unit
    assert not seen.on_zeros
    assert counted(penalty.as_written, network, *x).on_zeros == {"convolution_backward": 3}


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_zero_centred_penalties_cost_four_forwards_of_their_side(name):
    network, x = dcgan(), (large(5, 1), large(3, 2))
    seen = counted(PENALTIES[name], network, *x)
    assert seen.total() / forward_work(network, x[name == "r2"]) == pytest.approx(4, rel=0.01)
    assert not seen.on_zeros


@each_penalty
@pytest.mark.parametrize("name", sorted(set(PIECEWISE_LINEAR) - {"orthogonal weights"}))
def test_nothing_is_multiplied_by_zeros(name, penalty):
    network = made(PIECEWISE_LINEAR[name])
    assert not counted(PENALTIES[penalty], network, images(5, 1), images(3, 2)).on_zeros


@pytest.mark.parametrize("kind", [*second_pass.ZERO, *second_pass.NOTHING])
def test_torch_gives_zeros_where_edges_are_left_out(kind):
    """This very torch: its own node is called, and gives zeros there, or nothing."""
    edge = second_pass.ZERO.get(kind, second_pass.NOTHING.get(kind))
    found = [node for node in all_nodes() if node.name() == kind]
    assert found
    for node in found:
        u = [torch.randn(m.shape, dtype=m.dtype) if k == 0 else None for k, m in enumerate(node._input_metadata)]
        given = node(*u)
        value = given[edge] if isinstance(given, tuple) else given
        assert (value is None) == (kind in second_pass.NOTHING)
        assert value is None or not value.any()


@cache
def all_nodes():
    """Of the gradients' graphs of all networks that are piecewise linear."""
    every = []
    for factory in (*PIECEWISE_LINEAR.values(), *RANDOM.values()):
        waiting, seen = [input_gradient(seeded(factory), images(3, 1)).grad_fn], {None}
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += [m for m, _ in node.next_functions]
        every += seen - {None}
    return every


# What users do


def test_random_masks_are_drawn_once():
    for factory in RANDOM.values():
        for penalty in PENALTIES:
            compare(*twins(factory), penalty, (images(5, 1), images(3, 2)))


@each_penalty
@pytest.mark.parametrize("name", ["leaky ReLU in place", "residual", "SiLU", "checkpointed"])
def test_channels_last(name, penalty):
    network, expected = twins(NETWORKS[name], torch.float32)
    x = (images(5, 1, torch.float32).contiguous(memory_format=torch.channels_last), images(3, 2, torch.float32))
    compare(network.to(memory_format=torch.channels_last), expected, penalty, x)


@each_penalty
@pytest.mark.parametrize("frozen", [slice(0, 1), slice(0, 2), slice(1, 4), slice(3, None)])
@pytest.mark.parametrize("name", ["MLP, ReLU", "residual", "spectral norm", "SiLU"])
def test_frozen_parameters(name, frozen, penalty):
    network, expected = twins(NETWORKS[name])
    for n in (network, expected):
        for p in list(n.parameters())[frozen]:
            p.requires_grad_(False)
    compare(network, expected, penalty, (images(5, 1), images(3, 2)))


def test_nothing_to_learn():
    """All weights frozen, or none behind the gradient: a value without gradients."""
    network = made(PIECEWISE_LINEAR["ReLU"]).requires_grad_(False)
    for factory in (lambda: network, lambda: Call(lambda x: x.flatten(1).relu().sum(1))):
        dat.penalties.gradient_penalty()(factory(), images(3, 1), images(3, 2))
    bias_only = Call(lambda x, s: x.flatten(1).abs().sum(1) + s.bias, nn.Linear(1, 1).double())
    value = dat.penalties.r1()(bias_only, images(3, 1), images(3, 2))
    assert value == 5 * 192


@each_penalty
@pytest.mark.parametrize("name", ["leaky ReLU in place", "weight norm", "SiLU"])
def test_accumulation_and_hooks(name, penalty):
    """Hooks on parameters are called once for each backward, with the whole gradient; what they answer counts."""
    network, expected = twins(NETWORKS[name])
    calls = {id(network): [], id(expected): []}
    for n in (network, expected):
        for k, p in enumerate(n.parameters()):
            p.register_hook(lambda g, n=n, k=k: calls[id(n)].append(k) or g * (k + 1))
            p.register_post_accumulate_grad_hook(lambda p, n=n, k=k: calls[id(n)].append(-k))
    for seed in (1, 2, 3):
        compare(network, expected, penalty, (images(4 + seed, seed), images(3, seed + 5)))
    assert sorted(calls[id(network)]) == sorted(calls[id(expected)])


@each_penalty
@pytest.mark.parametrize("name", ["residual", "old spectral norm", "GroupNorm"])
def test_in_a_sum_of_losses(name, penalty):
    """One backward for the loss and the penalty, whose graphs may share the weights' own."""

    def backward(network, penalty):
        torch.manual_seed(3)
        with parametrize.cached():
            loss = network(images(4, 1)).square().mean()
            value = penalty(network, images(5, 1), images(3, 2))
            (loss + 0.5 * value - network(images(3, 3)).mean()).backward()

    network, expected = twins(NETWORKS[name])
    backward(network, PENALTIES[penalty])
    backward(expected, FORMULAS[penalty])
    assert worst(network, expected) < 1e-12


def test_a_second_backward():
    network = made(PIECEWISE_LINEAR["residual"])
    value = dat.penalties.r1()(network, images(3, 1), images(3, 2))
    value.backward(retain_graph=True)
    once = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    value.backward()
    for p, g in zip(network.parameters(), once, strict=True):
        assert g is None or torch.equal(p.grad, 2 * g)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        value.backward()


class Kept:
    """What autograd holds for a backward."""

    def __init__(self):
        self.tensors = weakref.WeakSet()
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda holder: holder.tensor)

    def pack(self, tensor):
        class Holder: ...

        holder = Holder()
        holder.tensor = tensor.detach()
        self.tensors.add(holder)
        return holder


@pytest.mark.parametrize("name", ["ReLU", "residual", "SiLU"])
def test_what_the_graph_kept_is_freed_by_the_backward(name):
    """Also where the penalty's value lives on, as in a record of a step."""
    network, kept = made(NETWORKS[name]), Kept()
    with kept.hooks:
        value = dat.penalties.gradient_penalty()(network, images(3, 1), images(3, 2))
    assert len(kept.tensors) > 5
    value.backward()
    assert value.grad_fn is not None
    assert not len(kept.tensors)


@each_penalty
@pytest.mark.parametrize(
    "name",
    [
        "MLP, ReLU",
        "leaky ReLU in place",
        "MaxPool2d",
        "spectral norm",
        "learnt scales",
        "weight also normalised",
        "SiLU",
        "Softplus",
    ],
)
def test_higher_orders(name, penalty):
    """The user differentiates the penalty's gradient again, and once more: nothing of ours stands in the way."""

    def orders(network, penalty):
        torch.manual_seed(3)
        parameters = [p for p in network.parameters() if p.dim() > 1]
        value, found = penalty(network, images(5, 1), images(3, 2)), []
        for _ in range(3):
            gradients = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
            found.append(gradients)
            value = sum((k + 1) * (g**3).sum() for k, g in enumerate(gradients) if g is not None)
        return found

    network, expected = twins(NETWORKS[name])
    for actual, wanted in zip(orders(network, PENALTIES[penalty]), orders(expected, FORMULAS[penalty]), strict=True):
        largest = max(g.abs().max() for g in wanted if g is not None)
        for g, w in zip(actual, wanted, strict=True):
            assert (g is None) == (w is None)
            assert g is None or (g - w).abs().max() < 1e-11 * largest


def test_nothing_stays_behind():
    """A backward through the same scores after the penalty is torch's own."""
    network, x = made(PIECEWISE_LINEAR["ReLU"]), images(4, 1).requires_grad_()
    scores = network(x)
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    differentiable(gradient, x, scores).square().sum().backward(retain_graph=True)
    for p in network.parameters():
        p.grad = None
    gradient.square().sum().backward(retain_graph=True)
    own = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    assert len(own) > 3
    (again,) = torch.autograd.grad(scores.square().sum(), x, create_graph=True)
    torch.testing.assert_close(again, 2 * scores.detach().view(-1, 1, 1, 1) * gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["MLP, ReLU", "leaky ReLU in place", "learnt scales"])
def test_weights_that_are_results(name):
    """MAML and its like: the network's weights have a history, and are what the gradients are asked for."""

    def gradients(network, penalty):
        torch.manual_seed(3)
        leaves = {n: p.detach().requires_grad_() for n, p in network.named_parameters()}
        weights = {n: p * 1.1 + 0.01 for n, p in leaves.items()}

        def call(x):
            return torch.func.functional_call(network, weights, (x,))

        value = penalty(call, images(5, 1), images(3, 2))
        every = [*weights.values(), *leaves.values()]
        return torch.autograd.grad(value, every, allow_unused=True)

    network = made(PIECEWISE_LINEAR[name])
    for penalty in PENALTIES:
        actual, expected = (gradients(network, penalties[penalty]) for penalties in (PENALTIES, FORMULAS))
        for g, w in zip(actual, expected, strict=True):
            if g is None:  # of a result to which only zeros lead
                assert w is None or not w.any()
            else:
                torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)


def test_one_weight_of_several():
    network, expected = twins(PIECEWISE_LINEAR["residual"])
    for k, (p, q) in enumerate(zip(network.parameters(), expected.parameters(), strict=True)):
        (g,) = torch.autograd.grad(dat.penalties.r1()(network, images(3, 1), images(3, 2)), p, allow_unused=True)
        (w,) = torch.autograd.grad(FORMULAS["r1"](expected, images(3, 1), images(3, 2)), q, allow_unused=True)
        assert (g is None) == (w is None), k
        assert g is None or torch.allclose(g, w, rtol=1e-12, atol=1e-12)


def test_images_that_are_results():
    """In a loop of one's own x_hat may have a history: torch brings zeros there."""
    network = made(PIECEWISE_LINEAR["ReLU"])
    source = images(4, 1).requires_grad_()
    for differentiated in (lambda g, x, s: g, differentiable):
        x = source * 0.7
        scores = network(x)
        (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        value = differentiated(gradient, x, scores).square().sum()
        for g in torch.autograd.grad(value, [x, source], retain_graph=True):
            assert not g.any()


def test_gradients_of_weights_in_the_same_call():
    network, expected = twins(PIECEWISE_LINEAR["leaky ReLU in place"])
    for n, differentiated in ((network, differentiable), (expected, lambda g, x, s: g)):
        x, weights = images(4, 1).requires_grad_(), list(n.parameters())
        scores = n(x)
        gradient, *others = torch.autograd.grad(scores.square().sum(), [x, *weights], create_graph=True)
        value = differentiated(gradient, x, scores).square().sum() + sum((g**2).sum() for g in others)
        value.backward()
    assert worst(network, expected) < 1e-12


def test_a_result_that_is_changed_in_place():
    network, expected = twins(PIECEWISE_LINEAR["ReLU"])
    for n, differentiated in ((network, differentiable), (expected, lambda g, x, s: g)):
        x = images(4, 1).requires_grad_()
        scores = n(x)
        (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        differentiated(gradient, x, scores).mul_(2).square().sum().backward()
    assert worst(network, expected) < 1e-12


def test_a_changed_weight_is_noticed():
    network = made(PIECEWISE_LINEAR["ReLU"])
    value = dat.penalties.r1()(network, images(3, 1), images(3, 2))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_without_a_graph_it_is_the_gradient():
    x = images(3, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(made(PIECEWISE_LINEAR["ReLU"])(x).sum(), x)
    assert differentiable(gradient, x) is gradient


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


@each_penalty
def test_functions_of_ones_own_take_the_whole_pass(penalty):
    compare(*twins(lambda: net(nn.ReLU(), Call(Doubling.apply))), penalty, (images(5, 1), images(3, 2)))
    x, network = images(3, 1).requires_grad_(), made(lambda: net(nn.ReLU(), Call(Doubling.apply)))
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    assert differentiable(gradient, x) is gradient


@each_penalty
@pytest.mark.parametrize("name", ["MLP, ReLU", "leaky ReLU in place", "transposed", "spectral norm", "SiLU"])
def test_autocast(name, penalty):
    """As near to float64 as the plain formula under the same autocast."""
    errors = []
    for function in (PENALTIES[penalty], FORMULAS[penalty]):
        network, expected = twins(NETWORKS[name], torch.float32)
        x = images(6, 1, torch.float32), images(6, 2, torch.float32)
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            value = function(network, *x)
        value.backward()
        torch.manual_seed(3)
        FORMULAS[penalty](expected, *(t.double() for t in x)).backward()
        errors.append(worst(network, expected))
    assert errors[0] <= 1.5 * errors[1] + 1e-3


@pytest.mark.compiles
@pytest.mark.parametrize("how", ["torch.compile", "module.compile", "inside"])
@pytest.mark.parametrize("name", ["leaky ReLU in place", "SiLU"])
def test_compiled_networks(how, name):
    torch.compiler.reset()
    network, expected = twins(NETWORKS[name])
    if how == "module.compile":
        network.compile()
    used = torch.compile(network) if how == "torch.compile" else network
    if how == "inside":
        function = [torch.compile(network)]  # which the module does not show
        used = Call(lambda x: function[0](x))
    for penalty in PENALTIES:
        compare(used, expected, penalty, (images(5, 1), images(3, 2)), of=network)


@pytest.mark.parametrize("name", ["leaky ReLU in place", "PReLU"])
def test_a_gradient_that_was_multiplied_by_those_of_weights(name):
    network, expected = twins(PIECEWISE_LINEAR[name])
    for n, differentiated in ((network, differentiable), (expected, lambda g, x, s: g)):
        x, weights = images(4, 1).requires_grad_(), list(n.parameters())
        scores = n(x)
        gradient, *others = torch.autograd.grad(scores.sum(), [x, *weights], create_graph=True)
        product = gradient * sum((g * (k + 1)).sum() for k, g in enumerate(others))
        differentiated(product, x, scores).square().sum().backward()
    assert worst(network, expected) < 1e-12
