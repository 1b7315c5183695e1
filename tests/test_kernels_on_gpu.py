"""The CUDA and the Triton kernels on a GPU: every case of kernel_cases.py, and what only a device shows."""

import pytest
import torch
from kernel_cases import *  # noqa: F403
from kernel_cases import Target, array, assert_close, logits_of, oracle, pair

import datgan_fast as dat
from datgan_fast import dispatch
from datgan_fast.ops import attack_step_into

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(params=["cuda", "triton"])
def target(request):
    problem = dat.backends()[request.param]
    if problem:
        pytest.skip(f"{request.param}: {problem}")
    return Target(request.param, "cuda")


class Step:
    """attack_step on fixed buffers, as a captured training step runs it."""

    def __init__(self, target, norm="l2", m=5, n=3, device=None):
        target = target._replace(device=device or target.device)
        self.impl, self.norm = target.impl, norm
        self.x = pair(target, m, n, 3, 32, 32, seed=3, scale=0.5)
        self.v = pair(target, m, n, 3, 32, 32, seed=5)
        self.logits = logits_of(target, m, n)
        self.adv = tuple(torch.full_like(t, torch.nan) for t in self.x)
        self.grads = tuple(torch.full_like(t, torch.nan) for t in self.v)

    def run(self):
        self.losses = attack_step_into(
            self.x,
            self.v,
            self.logits,
            0.3,
            objective="vanilla",
            formulation="eq10",
            norm=self.norm,
            clip_min=-1.0,
            clip_max=1.0,
            adv=self.adv,
            grads=self.grads,
            impl=self.impl,
        )

    def check(self, target):
        expected = oracle.attack_step(
            *([array(t) for t in both] for both in (self.x, self.v, self.logits)),
            0.3,
            "vanilla",
            "eq10",
            self.norm,
        )
        for name, outputs, values in zip(
            ("adv", "grad", "loss"), (self.adv, self.grads, self.losses), expected, strict=True
        ):
            for out, value in zip(outputs, values, strict=True):
                assert_close(target, out, value, name)


def test_capture_in_a_cuda_graph(target):
    step = Step(target)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    for t in (*step.x, *step.v, *step.logits):
        t.mul_(-0.75)
    for t in (*step.adv, *step.grads):
        t.fill_(torch.nan)
    graph.replay()
    step.check(target)


@pytest.mark.parametrize("norm", oracle.NORMS)
def test_a_launch_neither_allocates_nor_synchronises(target, norm):
    step = Step(target, norm)
    losses = torch.empty(2, device="cuda")
    backend = dispatch.backend(torch.device("cuda"), target.impl)

    def launch():
        backend.attack_step(
            x=step.x,
            v=step.v,
            logits=step.logits,
            references=step.logits,
            weights=(None, None),
            eps=0.3,
            objective="vanilla",
            formulation="eq10",
            norm=norm,
            clip_min=-1.0,
            clip_max=1.0,
            adv=step.adv,
            grads=step.grads,
            norms=(None, None),
            losses=losses,
        )

    launch()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        launch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_work_is_queued_on_the_current_stream(target):
    """The input is filled at the end of a side stream's long queue; a launch on another would read NaN."""
    step = Step(target)
    step.run()  # compiled before the race starts
    kept = [t.clone() for t in step.x]
    for t in step.x:
        t.fill_(torch.nan)
    busy = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(50):
            busy = busy @ busy / 4096
        for t, values in zip(step.x, kept, strict=True):
            t.copy_(values)
        step.run()
    stream.synchronize()
    step.check(target)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_on_another_than_the_current_device(target):
    step = Step(target, device="cuda:1")
    with torch.cuda.device(0):
        step.run()
        assert torch.cuda.current_device() == 0
    step.check(target)


@pytest.mark.parametrize("norm", oracle.NORMS)
def test_more_than_2_to_the_31_elements(target, norm):
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free device memory")
    n = 2**31 + 4096 + 8
    x = torch.zeros(1, n, dtype=torch.bfloat16, device="cuda")
    v = torch.zeros_like(x)
    v[0, -8:] = 1
    out = dat.perturb(x, v, 0.5, norm=norm, impl=target.impl)
    step = 0.5 / 8**0.5 if norm == "l2" else 0.5
    assert_close(target, out[0, -16:], [0] * 8 + [-step] * 8, "the last elements")
    assert out[0, : n - 8].count_nonzero() == 0


@pytest.mark.parametrize("norm", oracle.NORMS)
def test_same_bits_on_every_run(target, norm):
    step = Step(target, norm, m=200, n=100)
    step.run()
    first = [t.clone() for t in (*step.adv, *step.grads, step.losses)]
    for _ in range(10):
        step.run()
        assert all(torch.equal(a, b) for a, b in zip(first, (*step.adv, *step.grads, step.losses), strict=True))


def test_the_best_usable_backend_is_taken_unasked():
    x, v = torch.zeros(2, 3, device="cuda"), torch.ones(2, 3, device="cuda")
    usable = [name for name in ("cuda", "triton", "reference") if dat.backends()[name] is None]
    assert dispatch.resolve(x.device) == usable[0]
    assert torch.equal(dat.perturb(x, v, 0.1), dat.perturb(x, v, 0.1, impl=usable[0]))
