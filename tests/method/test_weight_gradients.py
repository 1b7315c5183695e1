"""The weight gradient of a convolution, written as a forward convolution where that is faster."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import datgan_fast as dat
from algorithm1 import algorithm1, gradient_of
from datgan_fast.method import weight_gradients
from datgan_fast.method.weight_gradients import _as_convolution, convolution_backward, weight_gradient

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
# images' shape, outputs, kernel, stride, padding, dilation; sizes where the last places are reached, and where they are not
SHAPES = {
    "line": ((3, 4, 17), 5, (4,), 3, 2, 1),
    "square": ((3, 4, 8, 8), 6, (4, 4), 2, 1, 1),
    "odd": ((2, 3, 9, 12), 5, (3, 2), (2, 3), (1, 0), (2, 1)),
    "left over": ((5, 2, 11, 11), 3, (3, 3), 4, 1, 1),
    "point": ((4, 3, 5, 5), 2, (5, 5), 1, 0, 1),
    "volume": ((2, 3, 6, 7, 5), 4, (3, 2, 3), 2, 1, 1),
}


def case(name, dtype=torch.float64):
    """gradient, images, weight and how they were convolved; the weight's gradient by autograd in float64"""
    shape, out, kernel, *how = SHAPES[name]
    images, weight = torch.randn(shape, dtype=torch.float64), torch.randn(out, shape[1], *kernel, dtype=torch.float64)
    images, weight = images.to(dtype).double(), weight.to(dtype).double().requires_grad_()
    result = CONVOLVE[len(kernel)](images, weight, None, *how)
    gradient = torch.randn_like(result).to(dtype).double()
    (expected,) = torch.autograd.grad(result, weight, gradient)
    lists = [[h] * len(kernel) if isinstance(h, int) else list(h) for h in how]
    return [t.detach().to(dtype) for t in (gradient, images, weight)], lists, expected


@pytest.mark.parametrize("name", SHAPES)
def test_as_a_convolution_it_is_the_same(name):
    tensors, how, expected = case(name)
    torch.testing.assert_close(_as_convolution(*tensors, *how), expected, rtol=1e-12, atol=1e-12)


@pytest.fixture
def every_layer_is_large(monkeypatch):
    monkeypatch.setattr(weight_gradients, "LARGE", 0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_in_bfloat16_it_lies_as_the_weight_does(layout, every_layer_is_large):
    (gradient, images, weight), how, expected = case("square", torch.bfloat16)
    if layout == "channels_last":
        weight = weight.contiguous(memory_format=torch.channels_last)
    found = weight_gradient(gradient, images, weight, (*how, False, [0, 0], 1))
    assert found.stride() == weight.stride() and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=0.05)


class WeightGradients(TorchDispatchMode):
    """Counts those that torch's own operation makes."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is convolution_backward and bool(args[10][1])
        return function(*args, **(kwargs or {}))


class Unusual(nn.Module):
    """Beside an ordinary layer with a bias, a transposed and a grouped one."""

    def __init__(self):
        super().__init__()
        self.first, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 4, 2, 2)
        self.groups, self.last = nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 1, 6)

    def forward(self, x):
        return self.last(F.leaky_relu(self.groups(self.up(F.leaky_relu(self.first(x), 0.2))), 0.2)).flatten()


@pytest.mark.parametrize(("dtype", "torchs"), [(torch.bfloat16, 4), (torch.float32, 8)], ids=["bf16", "fp32"])
def test_a_step_takes_it_in_bfloat16(dtype, torchs, every_layer_is_large):
    """Of both passes' four layers torch's own operation makes the transposed and the grouped one's."""
    torch.manual_seed(0)
    network, x = Unusual(), [torch.rand(5, 3, 8, 8) * 2 - 1 for _ in range(2)]
    exact = algorithm1(network.double(), *(t.double() for t in x), eps=0.1)
    network.float().zero_grad()
    dat.discriminator_step(network, *x, eps=0.1)
    network.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16), WeightGradients() as torchs_own:
        step = dat.discriminator_step(network, *x, eps=0.1)
    assert torchs_own.count == torchs and step.path == "shared"
    found = gradient_of(network).double()
    assert (found - exact.gradient).norm() < (2**-5 if dtype == torch.bfloat16 else 1e-5) * exact.gradient.norm()


def test_a_second_pass_takes_it_in_bfloat16(every_layer_is_large):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4), nn.Flatten(0))
    penalty, x = dat.penalties.r1(1.0), torch.rand(5, 3, 8, 8) * 2 - 1
    penalty.as_written(network.double(), x.double(), x.double()).backward()
    exact = gradient_of(network)
    network.float().zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        value = penalty(network, x, x)
    with WeightGradients() as torchs_own:
        value.backward()
    assert torchs_own.count == 0
    assert (gradient_of(network).double() - exact).norm() < 2**-5 * exact.norm()
