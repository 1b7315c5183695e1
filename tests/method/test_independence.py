"""The independence probe: which discriminators treat each image by itself."""

import pytest
import torch
from torch import nn

import datgan_fast as dat
from algorithm1 import M, N, batches, each_discriminator
from counting import Convolutions
from datgan_fast.method.independence import LARGEST_MEMORY, treats_images_independently
from networks import DISCRIMINATORS, SHAPE, Stranger, build, conv, images

pytestmark = pytest.mark.usefixtures("one_thread", "merging")


@each_discriminator
def test_probe(name):
    discriminator = build(name)
    before = {key: value.clone() for key, value in discriminator.state_dict().items()}
    random_state = torch.get_rng_state()
    assert treats_images_independently(discriminator, *batches()) == DISCRIMINATORS[name][1]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[key]) for key, value in discriminator.state_dict().items())
    assert all(p.grad is None for p in discriminator.parameters())


class Neighbour(nn.Module):
    """Each image sees the one before it."""

    def forward(self, x):
        return x + 0.01 * x.roll(1, 0)


class Median(nn.Module):
    """A statistic that one exchanged image among equals does not move."""

    def forward(self, x):
        return x - x.median(0).values


class FromTheBatchSize(nn.Module):
    def forward(self, x):
        return x * (1 + len(x) / 100)


class Counter(nn.Module):
    """Changes with every forward, through a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


@pytest.mark.parametrize(
    "layer", [Stranger, Neighbour, Median, FromTheBatchSize, Counter], ids=lambda layer: layer.__name__
)
def test_probe_finds_hidden_dependence(layer):
    assert not treats_images_independently(conv(layer()), *batches())


@pytest.mark.parametrize("layer", [Stranger, Neighbour, Median])
def test_probe_is_not_fooled_by_equal_images(layer):
    """A first generator's images can all be alike."""
    assert not treats_images_independently(conv(layer()), torch.zeros(M, *SHAPE), torch.zeros(N, *SHAPE))


def test_probe_is_asked_once():
    discriminator = build("BatchNorm")
    calls = []
    discriminator.register_forward_hook(lambda *_: calls.append(1))
    assert not treats_images_independently(discriminator, *batches())
    asked = len(calls)
    assert asked > 0
    assert not treats_images_independently(discriminator, *batches())
    assert len(calls) == asked
    discriminator.eval()  # another network, as far as independence goes
    assert treats_images_independently(discriminator, *batches())
    assert len(calls) > asked
    discriminator.train()
    assert not treats_images_independently(discriminator, *batches())


class GroupDeviation(nn.Module):
    """Mixes the images of groups of four where the batch divides into them, and none elsewhere."""

    def forward(self, x):
        group = 4 if len(x) % 4 == 0 else 1
        deviation = x.view(group, -1, *x.shape[1:]).var(0, unbiased=False).mean((1, 2, 3))
        return x + deviation.repeat(group)[:, None, None, None]


def test_probe_answers_for_each_split_of_the_batch():
    discriminator = conv(GroupDeviation())
    assert treats_images_independently(discriminator, images(6, 1), images(7, 2))
    assert not treats_images_independently(discriminator, images(8, 1), images(5, 2))


class Gate(nn.Module):
    """Lets a batch statistic through once its parameter leaves zero."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.gate * (x - x.mean(0))


def test_probe_sees_through_closed_gates():
    discriminator = conv(Gate())
    assert not treats_images_independently(discriminator, *batches())
    assert all(m.gate == 0 for m in discriminator.modules() if isinstance(m, Gate))


def test_probe_forgets_a_batch_that_was_not_finite():
    discriminator = conv()
    x_real, x_fake = batches()
    assert not treats_images_independently(discriminator, x_real * float("nan"), x_fake)
    assert treats_images_independently(discriminator, x_real, x_fake)


def test_the_question_for_independence_leaves_autocast_its_weights():
    """Zero biases are filled while it is asked; autocast must not keep a half precision copy of the filling."""
    network = conv()
    for p in network.parameters():
        if p.dim() == 1:
            torch.nn.init.zeros_(p)
    x_real, x_fake = images(4, seed=1), images(4, seed=2)
    logits = []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits.append(dat.discriminator_step(network, x_real, x_fake, eps=0.1).real_logits)
    assert torch.equal(*logits)


class ScaledByTheBatchSize(nn.Module):
    """Through a gate that is closed, so that no value tells."""

    def __init__(self, tensor):
        super().__init__()
        self.gate, self.tensor = nn.Parameter(torch.zeros(())), tensor

    def forward(self, x):
        size = torch.tensor(float(len(x))) if self.tensor else len(x)
        return x + self.gate * x * size


@pytest.mark.parametrize("tensor", [False, True])
def test_the_size_of_the_batch_behind_a_closed_gate(tensor):
    assert not treats_images_independently(conv(ScaledByTheBatchSize(tensor)), *batches())


class ThroughNumpy(nn.Module):
    """Where no operation of torch's shows what is done: the values must tell."""

    def forward(self, x):
        return x - torch.from_numpy(x.detach().numpy().mean(0))


def test_values_tell_where_operations_do_not():
    assert not treats_images_independently(conv(ThroughNumpy()), *batches())


class Refuses(nn.Module):
    def forward(self, x):
        if len(x) > M:
            raise KeyError("more images than there are labels")
        return x


def test_a_network_that_does_not_take_both_batches():
    assert not treats_images_independently(conv(Refuses()), *batches())


def test_a_network_that_always_changes_is_not_asked_for_ever():
    class Changing(nn.Module):
        def forward(self, x):
            return x

    network, calls = conv(Changing()), []
    network.register_forward_hook(lambda *_: calls.append(1))
    for m in range(2, 90):
        treats_images_independently(network, images(m, 1), images(N, 2))
    assert len(calls) == 3 * LARGEST_MEMORY


def forwards_of(network, steps):
    """How many forwards these steps of (real, generated) batch sizes make."""
    with Convolutions() as counted:
        for m, n in steps:
            dat.discriminator_step(network, images(m, 1), images(n, 2), eps=1.0)
    return counted.calls["forward"] // 2  # one for each of its convolutions


@pytest.mark.parametrize("merging", [True], indirect=True)
def test_torchs_own_modules_are_asked_once_for_all_sizes(merging):
    network = conv()
    sizes = [(m, 25 - m) for m in range(2, 12)]
    assert forwards_of(network, sizes[:1]) == 3 + 2
    assert forwards_of(network, sizes[1:]) == 2 * len(sizes[1:])
    network = conv(nn.BatchNorm2d(8))  # whose images meet, whatever their number
    forwards_of(network, sizes[:1])
    assert forwards_of(network, sizes[1:]) == 4 * len(sizes[1:])
