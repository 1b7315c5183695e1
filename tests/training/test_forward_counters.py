"""BatchNorm's count of forwards is the same, whoever counts."""

import copy

import pytest
import torch
from torch import nn

from datgan_fast.method.module_state import unchanged_state
from datgan_fast.training.forward_counters import COUNTER, counted_on_the_host


class Twice(nn.Module):
    """Uses its first layer twice, has one that it does not use and one whose average wants the count."""

    def __init__(self):
        super().__init__()
        self.a, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.b = nn.BatchNorm1d(3, momentum=None)
        self.c = nn.BatchNorm1d(3, track_running_stats=False)

    def forward(self, x):
        return self.c(self.b(self.a(self.a(x))))


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_counts_are_torchs():
    torch.manual_seed(1)
    plain = Twice().float()
    network = copy.deepcopy(plain)
    names = list(network.state_dict())
    for iteration in range(3):
        batches = torch.randn(iteration + 1, 4, 3)
        for x in batches:
            plain(x)
        with counted_on_the_host([network]):
            for x in batches:
                network(x)
                with unchanged_state(network):  # as an attack's forwards, which do not count
                    network(x + 1)
    assert list(network.state_dict()) == names
    assert network.a.num_batches_tracked == 12
    for name, value in state(plain).items():
        assert torch.equal(network.state_dict()[name], value), name


def test_evaluation_counts_nothing():
    network = Twice().float().eval()
    with counted_on_the_host([network]):
        network(torch.randn(4, 3))
    assert network.a.num_batches_tracked == 0


def test_the_buffers_are_the_same_ones_after_an_error():
    network = nn.Sequential(nn.BatchNorm1d(3))
    buffer = network[0].num_batches_tracked
    with pytest.raises(ValueError, match="2D"), counted_on_the_host([network]):
        network(torch.randn(4, dtype=torch.float32))
    assert network[0].num_batches_tracked is buffer
    assert COUNTER not in vars(network[0])
