"""Discriminators that are callables rather than modules, and wrappers that a loop makes anew for every step."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import datgan_fast as dat
from algorithm1 import M, N, gradient_of, relative_error
from datgan_fast import penalties
from datgan_fast.method.callables import parts_of
from designs import Projection
from networks import conv, images

pytestmark = pytest.mark.usefixtures("one_thread", "merging")


def batches():
    return images(M, 1, torch.float64), images(N, 2, torch.float64)


def test_callables_cost_what_their_module_costs(merging):
    """Made anew for every step, as they are in a loop."""
    for make in (
        lambda d: lambda x: d(x),
        lambda d: functools.partial(d),
        lambda d: d.forward,
        lambda d: functools.partial(lambda d, x: d(x), d),
    ):
        network, seen = conv().double(), []
        network[0].register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(len(output)))
        for _ in range(2):
            dat.discriminator_step(make(network), *batches(), eps=0.5)
        seen.clear()
        record = dat.discriminator_step(make(network), *batches(), eps=0.5)
        assert record.path == "shared"
        assert sorted(seen) == ([M + N] * 2 if merging else sorted([M, N] * 2))


@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm2d(8), lambda: spectral_norm(nn.Conv2d(8, 8, 1))])
def test_state_behind_a_callable(norm):
    """Running statistics and power iterations are those of the module itself."""
    states = []
    for wrap in (lambda d: d, lambda d: lambda x: d(x)):
        torch.manual_seed(0)
        network = conv(norm()).double()
        for fused in (True, False):
            dat.discriminator_step(wrap(network), *batches(), eps=0.5, fused=fused)
        dat.adversarial_batch(wrap(network), *batches(), eps=0.5)
        states.append(torch.cat([t.flatten().double() for t in network.state_dict().values()] + [gradient_of(network)]))
    torch.testing.assert_close(*states, rtol=1e-12, atol=1e-14)


class Owner:
    """Not a module, with more than the discriminator."""

    def __init__(self):
        self.critic, self.generator = conv(), conv()

    def judged(self, x):
        return self.scored(x)

    def scored(self, x):
        return self.critic(x)

    def __call__(self, x):
        return self.judged(x)


class Lightning(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic, self.generator = conv(), conv()
        self.scored = lambda x: self.critic(x)

    def judged(self, x):
        return self.critic(x)


GLOBAL = conv()
WEIGHT = torch.randn(192, dtype=torch.float64, requires_grad=True)


def test_what_callables_work_with():
    owner, module = Owner(), Lightning()
    y = torch.tensor([0, 3, 1, 4, 2, 0])
    assert parts_of(owner.judged) == ([owner.critic], [])
    assert parts_of(owner) == ([owner.critic], [])
    assert parts_of(module.judged) == ([module.critic], [])
    assert parts_of(module.scored) == ([module.critic], [])
    assert parts_of(module.critic.forward) == ([module.critic], [])
    assert parts_of(lambda x: GLOBAL(x)) == ([GLOBAL], [])
    both = {"critic": module.critic, "generator": module.generator}
    assert parts_of(lambda x: both["critic"](x)) == ([module.critic], [])
    assert parts_of(lambda x: nn.Sequential(*both.values())(x)) == ([module.critic, module.generator], [])
    assert parts_of(lambda x: getattr(owner, "critic")(x)) == ([owner.critic], [])  # noqa: B009
    assert parts_of(lambda x: F.relu(x).mean(1)) == ([], [])
    assert parts_of(len) == ([], [])
    modules, tensors = parts_of(functools.partial(lambda d, x, y: d(x, y), module.critic, y=y))
    assert modules == [module.critic]
    assert tensors[0] is y
    (weight,) = parts_of(lambda x: x.flatten(1) @ WEIGHT)[1]
    assert weight is WEIGHT


def test_loose_weights():
    def score(x):
        return (x.flatten(1) * 3).tanh() @ WEIGHT

    gradients = []
    for fused in (True, False):
        WEIGHT.grad = None
        record = dat.discriminator_step(score, *batches(), eps=0.1, fused=fused)
        gradients.append(WEIGHT.grad)
    assert relative_error(*gradients) < 1e-12
    hidden = functools.lru_cache(None)(lambda: WEIGHT)
    WEIGHT.grad, three = None, torch.tensor(3.0)
    record = dat.discriminator_step(lambda x: (x.flatten(1) * three).tanh() @ hidden(), *batches(), eps=0.1)
    assert record.path == "reference"
    assert "nothing is known of a function" in record.reason
    assert relative_error(WEIGHT.grad, gradients[0]) < 1e-12


@pytest.mark.parametrize("door", ["step", "attack", "penalty"])
def test_what_is_no_callable(door):
    call = {
        "step": lambda: dat.discriminator_step(3, *batches(), eps=0.1),
        "attack": lambda: dat.adversarial_batch(3, *batches(), eps=0.1),
        "penalty": lambda: penalties.r1()(3, *batches()),
    }[door]
    with pytest.raises(TypeError, match=r"discriminator must be an nn\.Module or another callable; got int"):
        call()


# Wrappers that are made anew


class Wrapped(nn.Module):
    def __init__(self, network, labels):
        super().__init__()
        self.network, self.labels = network, labels

    def forward(self, x):
        return self.network(x, self.labels)


class Plain(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


@pytest.mark.parametrize("kind", ["plain", "labels"])
def test_wrappers_made_anew_cost_nothing_more(kind, merging):
    network = (Projection() if kind == "labels" else conv()).double()
    layer = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    labels, seen = torch.tensor([0, 1, 2, 3, 4]), []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    x = images(5, 1, torch.float64), images(5, 2, torch.float64)
    for penalty in (None, penalties.r1() if kind == "labels" else penalties.adversarial_lipschitz()):
        counts = []
        for _ in range(4):
            seen.clear()
            wrapper = Wrapped(network, labels) if kind == "labels" else Plain(network)
            dat.discriminator_step(wrapper, *x, eps=0.5, penalty=penalty)
            counts.append(sum(seen))
        if penalty is None:
            assert counts[1:] == [20] * 3  # two forwards of both batches
        assert len(set(counts[2:])) == 1
