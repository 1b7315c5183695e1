"""What the benchmarks measure with: the least an iteration needs, the memory and calls it takes, times of neighbours."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import activity
import compilation
import datgan_fast as dat
import floor
import measure
import nodes
from datgan_fast.training.baselines import BASELINES

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


class Event:
    """torch.cuda.Event of a device that needs 179 microseconds for a call, whatever the host does meanwhile."""

    calls = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Event.calls

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 0.179 * (end.at - self.at)


@pytest.fixture
def slow_host(monkeypatch):
    """A GPU whose host takes a millisecond to wait for it."""
    monkeypatch.setattr(measure, "DEVICE", "cuda")
    monkeypatch.setattr(measure, "synchronise", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(measure, "seconds", lambda run, repeats=1: [run() for _ in range(repeats)] and 1e-3 + 179e-6)


def test_device_time_leaves_the_host_out(slow_host):
    def call():
        Event.calls += 1

    before = Event.calls
    assert measure.device_time(call, 3) == [pytest.approx(179e-6)] * 3
    assert Event.calls - before >= 3 * 10  # many calls in each sample


def test_copy_bandwidth_is_of_the_traffic_asked_for(monkeypatch):
    """Every byte counted is copied, by copies of the size asked for, over more memory than caches hold."""
    copies = []
    copy_ = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda to, source: copies.append((to, source)) or copy_(to, source))
    monkeypatch.setattr(floor, "CACHE", 4 * 2**20)

    def one_call(run, rounds):
        run()
        return [2.0]

    monkeypatch.setattr(floor, "device_time", one_call)
    monkeypatch.setattr(floor, "recorded", lambda run: run)
    found = floor.copy_bandwidth.__wrapped__(2**20)
    assert found == sum(to.nbytes + source.nbytes for to, source in copies) / 2
    assert {to.nbytes + source.nbytes for to, source in copies} == {2**20}
    assert len({to.data_ptr() for to, _ in copies}) == 4


@pytest.mark.parametrize(("part", "sets"), [(floor.CACHE, 64), (4.01, 5), (4, 4), (3.99, 4), (1e-3, 1)])
def test_rotations_outgrow_the_caches(part, sets):
    assert floor.rotations(int(floor.CACHE / part)) == sets


# torch.compile

compiled = partial(
    torch.compile, backend="aot_eager", dynamic=False
)  # of the compiler's parts, the one that can fall back


def variants(function, sizes=range(2, 14)):
    for size in sizes:
        function(torch.ones(size))


@pytest.mark.compiles
def test_a_function_is_compiled_anew_in_every_cell():
    function = compiled(lambda x: x.sin() + 1)
    for size in range(2, 14):  # the compiler gives up after eight
        with compilation.nothing_falls_back():
            variants(function, [size])


@pytest.mark.compiles
def test_too_many_variants_in_a_cell_are_told():
    function = compiled(lambda x: x.sin() + 1)
    with pytest.raises(RuntimeError, match=r"ran 1 of 9 functions uncompiled"), compilation.nothing_falls_back():
        variants(function)


@pytest.mark.compiles
def test_a_function_compiled_in_parts_is_told():
    def run(x):
        y = x.sin()
        torch._dynamo.graph_break()
        return y + 1

    with pytest.raises(RuntimeError, match=r"broke 1 in parts.*graph_break"), compilation.nothing_falls_back():
        variants(compiled(run), [3])


@pytest.mark.compiles
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_compiled_reference_is_compiled(monkeypatch, baseline):
    monkeypatch.setattr(torch, "compile", compiled)
    options = {"baseline": baseline, "width": 4, "batch_size": 4, "n_dis": 1, "device": "cpu"}
    with compilation.nothing_falls_back():
        trainer = dat.Trainer(dat.TrainConfig(**options, fused=False, channels_last=False, compile=True))
        for _ in range(2):
            trainer.train_step()
    assert compilation.counters["frames"]["ok"] >= 3  # the generator, the discriminator of either batch


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


# Nodes of a CUDA graph


def test_nodes_are_the_operations_that_compute():
    x, layer = torch.randn(2, 3, 8, 8, requires_grad=True), nn.Conv2d(3, 5, 3)

    def run():
        y = layer(x).flatten(1).t()[1:]  # one convolution and three views
        torch.empty_like(y)
        y.detach().exp()

    assert nodes.nodes(run) == {"convolution": 1, "exp": 1}

    y = layer(x)
    assert nodes.nodes(lambda: y.backward(torch.ones(2, 5, 6, 6)))["convolution_backward"] == 3  # x, weight, bias
    y = layer(x.detach())
    assert nodes.nodes(lambda: y.backward(torch.ones(2, 5, 6, 6)))["convolution_backward"] == 2


@pytest.mark.trains
@pytest.mark.parametrize("baseline", ["dcgan", "wgan", "wgan-gp"])
def test_nodes_of_an_iteration_are_a_gpus(baseline):
    """As many whatever the sizes are, and as many as on a CPU, where batches as small as these go as one too."""
    small, other = (nodes.iteration_nodes(baseline, n_dis=n) for n in (1, 2))
    with nodes.as_on_a_gpu():
        larger = sum(nodes.nodes(nodes.trained(baseline, n_dis=1, width=8, batch_size=6).train_step).values())
    assert small == larger < other
    here = nodes.trained(baseline, n_dis=1, **nodes.SMALL)
    assert small == sum(nodes.nodes(here.train_step).values())


def test_prediction_adds_nodes_and_arithmetic(monkeypatch):
    monkeypatch.setattr(nodes, "DEVICE_RATES", {"fp32": 100.0})
    monkeypatch.setattr(nodes, "MEMORY", 10.0)
    monkeypatch.setattr(nodes, "EFFICIENCY", 0.5)
    assert nodes.predicted(1000, floor.Work(flops=100, bytes=5), "fp32") == (3002.0, 3003.0)
