"""A run's statistics, against means computed by hand."""

import math

import pytest
import torch
from torch import nn

from datgan_fast.training.measuring import Statistics

CPU = torch.device("cpu")
GROUPS = [{"loss": 1, "norms": 5}] * 2 + [{"other": 1}]


def measured(**options):
    network = nn.Linear(3, 2, dtype=torch.float32, device=CPU)
    return Statistics(GROUPS, ("norms",), {"critic": network}, CPU, **options), network


def iterate(statistics, step, losses, norms, other, **scale):
    for k in range(2):
        statistics.add(k, loss=torch.tensor(losses[k]), norms=torch.tensor(norms[k]), **scale)
    statistics.add(2, other=torch.tensor(other), **scale)
    statistics.watch(torch.tensor(step))


def drawn(seed, iterations=3):
    torch.manual_seed(seed)
    return [(torch.randn(2).tolist(), torch.rand(2, 5).tolist(), torch.randn(()).item()) for _ in range(iterations)]


def mean(values):
    """Of those that are finite, in double precision."""
    values = torch.tensor(values, dtype=torch.float32).flatten().double()
    return values[values.isfinite()].mean().item()


def test_means_over_iterations_updates_and_images():
    statistics, _ = measured()
    for seed in (1, 2):  # they begin anew
        numbers = drawn(seed)
        numbers[1][1][0][2] = numbers[1][1][1][4] = math.nan  # images without a norm
        numbers[2][1][0][0] = math.inf
        for step, values in enumerate(numbers, 1):
            iterate(statistics, step, *values)
        read = statistics.read()
        for i, name in enumerate(("loss", "norms", "other")):
            assert read[name] == pytest.approx(mean([values[i] for values in numbers]), rel=1e-12), name
        assert list(read) == ["loss", "norms", "other"]
        assert statistics.broken() == (0, [])


def test_what_was_never_measured_is_nan():
    statistics, _ = measured()
    iterate(statistics, 1, [1.0, 2.0], [[math.nan] * 5] * 2, 3.0)
    read = statistics.read()
    assert math.isnan(read["norms"])
    assert (read["loss"], read["other"]) == (1.5, 3.0)
    assert all(map(math.isnan, statistics.read().values()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_that_breaks_is_named(value):
    statistics, network = measured()
    for step, values in enumerate(drawn(3), 1):
        iterate(statistics, step, *values)
    iterate(statistics, 4, [1.0, value], [[value] * 5] * 2, 1.0)
    iterate(statistics, 5, [1.0, 1.0], [[1.0] * 5] * 2, value)
    with torch.no_grad():
        network.bias[1] = value
    iterate(statistics, 6, [1.0, 1.0], [[1.0] * 5] * 2, 1.0)
    assert statistics.broken() == (4, ["loss"])


def test_a_weight_that_breaks_is_named():
    statistics, network = measured()
    iterate(statistics, 1, *drawn(4)[0])
    with torch.no_grad():
        network.weight[1, 2] = math.inf
    iterate(statistics, 2, *drawn(5)[0])
    assert statistics.broken() == (2, ["weight of the critic weight"])


def test_an_overflow_is_expected_while_the_scale_can_fall():
    statistics, _ = measured(scaled=True)
    bad = [math.inf, 1.0], [[1.0] * 5] * 2, math.nan
    iterate(statistics, 1, *bad, scale=torch.tensor(2.0))
    assert statistics.broken() == (0, [])
    assert statistics.read()["loss"] == 1.0
    iterate(statistics, 2, *bad, scale=torch.tensor(1.0))
    assert statistics.broken() == (2, ["loss", "other"])


def test_a_state_goes_on():
    """In the middle of an interval, with something broken already: as if nothing had stopped."""
    whole, first, second = (measured()[0] for _ in range(3))
    numbers = drawn(6)
    numbers[1][0][1] = math.nan
    for step, values in enumerate(numbers, 1):
        iterate(whole, step, *values)
        iterate(first if step < 3 else second, step, *values)
        if step == 2:
            second.load_state_dict(first.state_dict())
    assert second.read() == whole.read()
    assert second.broken() == whole.broken() == (2, ["loss"])


def test_a_state_of_one_sum_for_each_name_is_read():
    statistics, network = measured()
    state = {
        "sums": torch.tensor([[6.0, 10.0, 1.0], [4.0, 20.0, 2.0]], dtype=torch.float64),
        "first_broken": torch.tensor([0, 0, 7] + [0] * len(list(network.parameters()))),
    }
    statistics.load_state_dict(state)
    assert statistics.broken() == (7, ["other"])
    iterate(statistics, 9, [1.0, 3.0], [[2.0] * 5] * 2, 5.0)
    assert statistics.read() == {"loss": 10 / 6, "norms": 30 / 30, "other": 6 / 3}
    assert statistics.broken() == (7, ["other"])
