"""bfloat16 copies of the weights compute what autocast computes, and leave no trace in the float32 ones."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from datgan_fast.training.low_precision import LowPrecision


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x).relu())


class Scaled(nn.Linear):
    """Computes with its weight in float32 before autocast sees it."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight * 0.3, self.bias)


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.LeakyReLU(0.2), nn.Conv2d(6, 4, 1), nn.ConvTranspose2d(4, 3, 2)
    )  # fmt: skip


NETWORKS = {
    "convolutions": (convolutions, (5, 1, 7, 6), 6),
    "tied": (Tied, (5, 6), 2),
    "spectral norm": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 4)), nn.Linear(4, 2)),
        (3, 6),
        3,
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 3)), nn.Tanh()),
        (4, 2, 8),
        1,
    ),
    "a layer of one's own": (lambda: nn.Sequential(Scaled(6, 4), nn.Linear(4, 2)), (3, 6), 2),
    "frozen": (lambda: nn.Sequential(nn.Linear(6, 4).requires_grad_(False), nn.Linear(4, 2)), (3, 6), 4),
}


class Casts(TorchDispatchMode):
    """Counts tensors that are cast."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation._schema.name == "aten::_to_copy"
        return operation(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def float32_defaults():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


def passed(network, x, low=None):
    """Output and gradients of one forward under autocast; with the copies in place if there are any."""

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            y = network(x)
        y.float().square().sum().backward()
        return y

    if low is None:
        y = run()
    else:
        with low.copies():
            y = run()
        low.hand_over()
    return y.detach(), {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", NETWORKS)
def test_one_pass_is_autocasts_to_the_bit(name, layout):
    build, shape, copied = NETWORKS[name]
    torch.manual_seed(7)
    plain = build().to(memory_format=layout) if name == "convolutions" else build()
    network = copy.deepcopy(plain)
    low = LowPrecision(network, torch.bfloat16)
    assert len(low._copies) == copied
    x = torch.randn(shape)
    with torch.no_grad():  # the copies are those of now, not of when they were made
        for p, q in zip(plain.parameters(), network.parameters(), strict=True):
            q.copy_(p.mul_(1.7))
    expected, gradients = passed(plain, x)
    y, found = passed(network, x, low)
    assert torch.equal(y, expected)
    for key, gradient in gradients.items():
        assert (gradient is None) == (found[key] is None), key
        if gradient is not None:
            assert found[key].dtype == torch.float32
            if name == "tied":  # two uses of a weight are added in bfloat16
                torch.testing.assert_close(found[key], gradient, rtol=2e-2, atol=2e-2 * gradient.abs().max().item())
            else:
                assert torch.equal(found[key], gradient), key
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_nothing_is_left_to_cast():
    network = convolutions()
    x = torch.randn(4, 1, 5, 5, dtype=torch.bfloat16)
    low = LowPrecision(network, torch.bfloat16)
    with Casts() as casts, low.copies(), torch.autocast("cpu", torch.bfloat16):
        network(x).sum().backward()
    assert casts.count == 0
    with Casts() as casts, torch.autocast("cpu", torch.bfloat16):
        network(x).sum().backward()
    assert casts.count == 12  # three weights and three biases, there and back


def test_several_backwards_and_the_weights_own_add_up():
    """A float32 penalty inside uses the weights; both kinds of gradients end in .grad, within bfloat16's rounding."""
    torch.manual_seed(8)
    network = convolutions()
    low = LowPrecision(network, torch.bfloat16)
    batches = torch.randn(3, 4, 1, 5, 5)
    double = copy.deepcopy(network).double()
    for x in batches[:2]:
        double(x.double()).square().sum().backward()
    double(batches[2].double()).exp().sum().backward()

    seen = []
    network[0].register_forward_hook(lambda module, given, result: seen.append(result.dtype))
    with low.copies():
        for x in batches[:2]:
            with torch.autocast("cpu", torch.bfloat16):
                y = network(x)
            y.float().square().sum().backward()
        with low.masters():
            z = network(batches[2])
        z.exp().sum().backward()
        assert network[0].weight.dtype == torch.bfloat16
    low.hand_over()
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]
    largest = max(q.grad.norm() for q in double.parameters())
    for p, q in zip(network.parameters(), double.parameters(), strict=True):
        assert (p.grad.double() - q.grad).norm() < 2e-2 * q.grad.norm() + 2e-3 * largest
    first = [p.grad.clone() for p in network.parameters()]
    low.hand_over()  # nothing is handed over twice
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), first, strict=True))


def test_a_refresh_follows_the_weights():
    network = nn.Linear(3, 2)
    low = LowPrecision(network, torch.bfloat16)
    with low.copies():
        with torch.no_grad():
            low._masters[0].fill_(1.00390625 + 2**-20)  # just above half-way between two numbers of bfloat16
        assert not (network.weight == 1.0078125).any()
        low.refresh()
        assert (network.weight == 1.0078125).all()


def test_the_weights_come_back_after_an_error():
    network = convolutions()
    before = dict(network.named_parameters())
    low = LowPrecision(network, torch.bfloat16)
    with low.copies():
        assert all(p is not before[name] for name, p in network.named_parameters() if "1." not in name)
    with pytest.raises(RuntimeError, match="same"), low.copies():
        network(torch.randn(1, 5, 4, 4))
    assert all(p is before[name] for name, p in network.named_parameters())


def test_hooks_on_weights_see_their_gradients():
    network, seen = nn.Linear(3, 2), []
    low = LowPrecision(network, torch.bfloat16)
    network.weight.register_hook(lambda gradient: seen.append(gradient.dtype))
    passed(network, torch.randn(4, 3), low)
    assert seen == [torch.float32]


def test_a_weight_that_was_exchanged_stays():
    network = nn.Linear(3, 2)
    low = LowPrecision(network, torch.bfloat16)
    other = network.weight = nn.Parameter(torch.randn(2, 3))
    with low.copies():
        assert network.weight is other
    assert network.weight is other


def test_without_a_dtype_there_is_nothing():
    network = nn.Linear(3, 2)
    low = LowPrecision(network, None)
    before = network.weight
    with low.copies():
        assert network.weight is before
        low.refresh()
        low.hand_over()
