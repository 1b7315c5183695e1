"""What the benchmarks measure with: the least an iteration needs, the memory and calls it takes, times of neighbours."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import activity
import datgan_fast as dat
import floor
import measure

pytestmark = pytest.mark.usefixtures("one_thread")


def test_operations_of_a_convolution():
    x, layer = torch.randn(2, 3, 8, 8), nn.Conv2d(3, 5, 3, padding=1, bias=False)
    with torch.no_grad():
        forward = floor.operations(lambda: layer(x))
    assert forward.flops == 2 * 2 * 5 * 8 * 8 * 3 * 3 * 3
    assert forward.bytes == 4 * (2 * 3 * 64 + 5 * 3 * 9 + 2 * 5 * 64)


def test_operations_agree_with_torch_on_forward_and_backward():
    network = nn.Sequential(nn.Conv2d(3, 5, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 1))

    def run():
        network(torch.ones(2, 3, 8, 8)).sum().backward()

    with FlopCounterMode(display=False) as counted:
        run()
    assert floor.operations(run).flops == counted.get_total_flops() > 0


def test_update_bytes():
    parameter = nn.Parameter(torch.ones(10))
    for optimizer, tensors in ((torch.optim.Adam, 7), (torch.optim.RMSprop, 5), (torch.optim.SGD, 3)):
        made = optimizer([parameter])
        parameter.grad = torch.ones(10)
        made.step()
        assert floor.update_bytes(made) == tensors * 40


def iterated(n_dis):
    trainer = dat.Trainer(dat.TrainConfig(baseline="wgan", n_dis=n_dis, batch_size=4, z_dim=8, width=4, device="cpu"))
    trainer.train_step()
    return trainer


def test_floor_counts_every_discriminator_step():
    one, two, three = (floor.iteration(iterated(n_dis)) for n_dis in (1, 2, 3))
    assert three.flops - two.flops == two.flops - one.flops > 0
    assert three.bytes - two.bytes == two.bytes - one.bytes > 0


def test_floor_counts_every_update(monkeypatch):
    monkeypatch.setattr(floor, "operations", lambda run: floor.Work(0, 0))
    trainer = iterated(3)
    d, g = (4 * sum(p.numel() for p in n.parameters()) for n in (trainer.discriminator, trainer.generator))
    assert floor.iteration(trainer).bytes == 3 * 5 * d + 5 * g + 3 * g  # RMSprop's five tensors, the average's three


def test_seconds_adds_arithmetic_and_traffic(monkeypatch):
    monkeypatch.setattr(floor, "flop_rate", {"fp32": 100.0, "bf16": 200.0}.get)
    monkeypatch.setattr(floor, "copy_bandwidth", lambda: 10.0)
    assert floor.Work(flops=100, bytes=5).seconds("fp32") == 1.5
    assert floor.Work(flops=100, bytes=5).seconds("bf16") == 1.0


@pytest.mark.skipif(measure.DEVICE != "cpu", reason="the CPU's account")
def test_peak_memory_is_of_what_lies_there_at_once():
    kept = []

    def run():
        a = torch.ones(1000)
        b = a.exp()  # 8000 bytes
        del a
        c = b.exp()
        del b
        kept.append(c)

    assert activity.peak_memory(run) == 8000
    assert activity.peak_memory(run) == 8000  # what the first call kept is not the second's


@pytest.mark.skipif(measure.DEVICE != "cpu", reason="the CPU's account")
def test_operator_calls_are_those_that_call_no_other():
    x = torch.ones(10)
    assert activity.activity(lambda: x.exp().neg()) == {"operator_calls": 2}
    assert activity.activity(lambda: torch.ones(10)) == {"operator_calls": 2}  # empty and fill_, not ones itself


@pytest.mark.gpu
def test_peak_memory_on_a_gpu():
    def run():
        a = torch.ones(1024, device="cuda")
        b = a.exp()  # 8192 bytes
        del a
        b.exp()

    assert activity.peak_memory(run) == 8192


@pytest.mark.gpu
def test_launches_kernels_and_waits_of_a_gpu():
    x = torch.ones(10, device="cuda")
    x.exp().neg().sum().item()  # loads their kernels
    found = activity.activity(lambda: x.exp().neg())
    assert found == {"launches": 2, "graph_launches": 0, "kernels": 2, "synchronisations": 0}
    assert activity.activity(lambda: x.exp().cpu())["synchronisations"] == 1


def test_figures_are_of_neighbours_in_time():
    samples = {"reference": [1.0, 2.0, 10.0], "fast": [0.5, 1.0, 5.0]}  # the machine slows down, both by as much
    made = measure.figures(samples, "reference")
    assert made["reference"] == {"ms": 2000.0, "ms_noise": pytest.approx((6.0 - 1.5) / 2)}
    assert made["fast"] == {"ms": 1000.0, "ms_noise": pytest.approx(2.25), "speedup": 2.0, "speedup_noise": 0.0}
