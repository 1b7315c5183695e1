"""The second pass of gradient penalties against plain float64 autograd: many kinds of networks, what is counted, what users do."""

import copy
import gc
import weakref

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
    layers = nn.Conv1d(12, 5, 3, stride=2), nn.ReLU(), nn.ConvTranspose1d(5, 4, 3), nn.LeakyReLU(), nn.AvgPool1d(2)
    return on((12, 16), *layers, nn.MaxPool1d(2), nn.Flatten(), nn.Linear(8, 1))


def conv3d():
    layers = nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.ConvTranspose3d(4, 3, 2), nn.LeakyReLU()
    return on((3, 4, 4, 4), *layers, nn.AvgPool3d(2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 1))


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


def attended(x):
    q = x.flatten(2).transpose(1, 2)
    return torch.softmax(q @ q.transpose(1, 2) / 4, -1) @ q


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
CURVED = {
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
    "minibatch deviation": lambda: net(Call(lambda x: torch.cat([x, (x.var(0) + 1e-8).sqrt().mean().expand(len(x), 1, 8, 8)], 1)), nn.ReLU(), out=576),
    "attention": lambda: net(nn.ReLU(), Call(attended)),
    "hypernetwork": lambda: net(Call(lambda x, h: torch.einsum("nchw,ncd->ndhw", x, h(x.mean((2, 3))).view(-1, 8, 8)).relu(), nn.Linear(8, 64))),
    "AvgPool2d and square": lambda: net(nn.AvgPool2d(2), Call(lambda x: x.square() + x.abs()), out=128),
    "norm of the features": lambda: net(nn.ReLU(), Call(lambda x: x.flatten(1).norm(dim=1, keepdim=True)), out=1),
}  # fmt: skip
NETWORKS = PIECEWISE_LINEAR | CURVED


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


def compare(network, expected, penalty, x, backward=lambda value: value.backward()):
    dtype = x[0].dtype
    torch.manual_seed(3)
    value = PENALTIES[penalty](network, *x)
    torch.manual_seed(3)
    formula = FORMULAS[penalty](expected, *(t.double() for t in x))
    backward(value)
    backward(formula)
    assert value.dtype == dtype and value.dim() == 0
    assert abs(value.item() - formula.item()) < ROUNDING[dtype] * abs(formula.item())
    assert worst(network, expected) < ROUNDING[dtype]
    assert any(p.grad is not None and p.grad.abs().max() > 1e-3 for p in expected.parameters())


@pytest.mark.parametrize("dtype", ROUNDING, ids=["float64", "float32"])
@each_penalty
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients(name, penalty, dtype):
    compare(*twins(NETWORKS[name], dtype), penalty, (images(5, 1, dtype), images(3, 2, dtype)))


@pytest.mark.parametrize("name", NETWORKS)
def test_which_networks_are_spared_the_zeros(name):
    network, x = made(NETWORKS[name]), images(4, 1).requires_grad_()
    scores = network(x)
    (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    result = differentiable(gradient, x, scores)
    assert (result is not gradient) == (name in PIECEWISE_LINEAR)
    assert torch.equal(result, gradient) and result.requires_grad
