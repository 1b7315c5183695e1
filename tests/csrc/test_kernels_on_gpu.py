"""The CUDA and the Triton kernels on a GPU: every case of kernel_cases.py, and what only a device shows."""

import pytest
import torch

import datgan_fast as dat
import oracle
from attack_inputs import each_formulation, each_norm
from datgan_fast.method import dispatch, native
from datgan_fast.method.arguments import Attack, AttackInputs, LogitTerms, StepOutputs, TermOutputs
from datgan_fast.method.buffered_ops import attack_step_into, sample_images
from kernel_cases import *  # noqa: F403
from kernel_cases import Target, assert_close, check_step, logits_of, pair
from layouts import name
from logit_cases import *  # noqa: F403
from logit_cases import check_terms
from oracle import array
from sample_cases import *  # noqa: F403
from sample_cases import bytes_of, check, drawn

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["cuda", "triton"])
def target(request):
    problem = dat.backends()[request.param]
    if problem and ("without CUDA" in problem or "not installed" in problem):  # as was asked for
        pytest.skip(f"{request.param}: {problem}")
    assert problem is None
    return Target(request.param, "cuda")


class Step:
    """attack_step on fixed buffers, as a captured training step runs it."""

    def __init__(self, target, norm="l2", m=5, n=3, shape=(3, 32, 32)):
        self.impl, self.attack = target.impl, Attack(0.3, "vanilla", "eq10", norm, -1.0, 1.0)
        self.x = pair(target, m, n, *shape, seed=3, scale=0.5)
        self.v = pair(target, m, n, *shape, seed=5)
        self.logits = logits_of(target, m, n)
        self.inputs = AttackInputs(self.x, self.v, self.logits, self.logits)
        self.adv = tuple(torch.full_like(t, torch.nan) for t in self.x)
        self.grads = tuple(torch.full_like(t, torch.nan) for t in self.v)

    def run(self):
        self.losses = attack_step_into(self.inputs, self.attack, self.adv, grads=self.grads, impl=self.impl)

    def check(self, target):
        expected = oracle.attack_step(
            *([array(t) for t in both] for both in (self.x, self.v, self.logits)), *self.attack
        )
        for what, outputs, values in zip(
            ("adv", "grad", "loss"), (self.adv, self.grads, self.losses), expected, strict=True
        ):
            for out, value in zip(outputs, values, strict=True):
                assert_close(target, out, value, what)


@each_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("numel", [784, 49152, 196608, 200003, 1_000_000])
def test_large_images(target, numel, dtype, norm):
    """Blocks, clusters, and clusters that read twice."""
    x = pair(target, 3, 2, numel, seed=3, dtype=dtype, scale=0.5)
    v = pair(target, 3, 2, numel, seed=5, dtype=dtype)
    check_step(target, x, v, logits_of(target, 3, 2), norm=norm)


@each_formulation
def test_large_batches(target, formulation):
    """CUDA reduces so many logits in a launch of their own."""
    x, v = pair(target, 3000, 2500, 64, seed=3, scale=0.5), pair(target, 3000, 2500, 64, seed=5)
    check_step(target, x, v, logits_of(target, 3000, 2500), formulation=formulation, norm="l2")


def captured(step):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    return graph


@each_norm
@pytest.mark.parametrize(
    ("images", "shape"), [(8, (3, 32, 32)), (2, (3, 256, 256)), (1500, (3, 8, 8))], ids=["small", "large", "many"]
)
def test_capture_in_a_cuda_graph(target, images, shape, norm):
    step = Step(target, norm, images, images, shape)
    graph = captured(step)
    for t in (*step.x, *step.v, *step.logits):
        t.mul_(-0.75)
    for t in (*step.adv, *step.grads):
        t.fill_(torch.nan)
    graph.replay()
    step.check(target)


def test_a_graph_replays_after_launches_with_less_shared_memory(target):
    step = Step(target, shape=(3, 256, 256))
    graph = captured(step)
    for size in (224, 80, 8):  # with less to keep than the graph, with clusters and without
        Step(target, shape=(3, size, size)).run()
    for t in (*step.adv, *step.grads):
        t.fill_(torch.nan)
    graph.replay()
    step.check(target)


@each_norm
def test_a_launch_neither_allocates_nor_synchronises(target, norm):
    step = Step(target, norm)
    losses = torch.empty(2, device="cuda")
    backend = dispatch.backend(torch.device("cuda"), target.impl)

    def launch():
        backend.attack_step(step.inputs, step.attack, StepOutputs(step.adv, step.grads, (None, None), losses))

    launch()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        launch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_the_operations_of_a_step_can_be_captured_and_neither_allocate_nor_synchronise(target):
    """logit_terms and sample_images, with other logits, indices and images at the replay."""
    m, n = 64, 48
    logits, weights = logits_of(target, m, n), logits_of(target, m, n)
    sums, coefficients = torch.empty(4, device="cuda"), logits_of(target, m, n)
    images, out = bytes_of(target, 100, 3, 32, 32), torch.empty(m, 3, 32, 32, device="cuda")
    index, mirrored = drawn(target, 100, m)
    backend = dispatch.backend(torch.device("cuda"), target.impl)

    def launch():
        how = LogitTerms(0.5, 1e-20, "vanilla", "eq10")
        backend.logit_terms(logits, how, TermOutputs(weights, sums, coefficients))
        backend.sample_images(images, index, mirrored, out)

    launch()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        launch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    for t in logits:
        t.mul_(-0.75)
    index.add_(1).remainder_(100)
    graph.replay()
    expected = oracle.logit_terms(*map(array, logits), 0.5, 1e-20, "vanilla", "eq10")
    assert_close(target, sums, expected.sums, "sums")
    for k in range(2):
        assert_close(target, weights[k], expected.weights[k], "weights")
        assert_close(target, coefficients[k], expected.coefficients[k], "coefficients")
    replayed = out.clone()
    sample_images(images, index, mirrored, out, impl="reference")
    assert torch.equal(replayed, out)


def test_many_logits_and_large_batches(target):
    check_terms(target, logits_of(target, 30_000, 20_001))
    images = bytes_of(target, 20, 3, 128, 128)
    for layout in ("contiguous", "channels_last"):
        check(target, images, *drawn(target, 20, 64), torch.bfloat16, layout)


def test_an_index_that_is_none_reaches_no_other_memory(target):
    images = bytes_of(target, 5, 3, 4, 4)
    out = torch.full((2, 5, 3, 4, 4), torch.nan, device="cuda")
    for index, written in zip(([-1, 5, 2**60, -(2**62), 2], [0, 4, 4, 0, 2]), out, strict=True):
        sample_images(images, torch.tensor(index, device="cuda"), None, written, impl=target.impl)
    assert torch.equal(out[0], out[1])


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


@each_norm
def test_tensors_on_another_than_the_current_device(target, norm):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    target = target._replace(device="cuda:1")
    step = Step(target, norm)
    with torch.cuda.device(0):
        step.run()
        assert torch.cuda.current_device() == 0
    step.check(target)


@each_norm
@pytest.mark.parametrize("images", [1, 3, 2**20 + 1])
def test_more_than_2_to_the_31_elements(target, images, norm):
    numel = 2**31 // images // 8 * 8 + 64
    needed = 8 * images * numel
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free device memory")
    x = torch.zeros(images, numel, dtype=torch.bfloat16, device="cuda")
    v = torch.zeros_like(x)
    v[:, 0], v[:, -1] = -2, 2
    out = dat.perturb(x, v, 0.5, norm=norm, impl=target.impl)
    size = {"none": 1, "l2": 0.5 / 2**0.5, "linf": 0.5, "clamp": 0.5}[norm]
    assert_close(target, out[:, 0], size, "the first elements")
    assert_close(target, out[:, -1], -size, "the last elements")
    assert out.count_nonzero() == 2 * images


@each_norm
@pytest.mark.parametrize(("images", "shape"), [(200, (3, 32, 32)), (64, (3, 256, 256))], ids=["blocks", "clusters"])
def test_same_bits_on_every_run(target, images, shape, norm):
    step = Step(target, norm, images, images // 2, shape)
    step.run()
    first = [t.clone() for t in (*step.adv, *step.grads, step.losses)]
    for _ in range(10):
        step.run()
        assert all(torch.equal(a, b) for a, b in zip(first, (*step.adv, *step.grads, step.losses), strict=True))


def test_the_extension_says_truly_which_gpus_it_covers():
    built = getattr(native.extension, "CUDA_ARCHITECTURES", None)
    if built is None:
        pytest.skip("the extension was built without CUDA kernels")
    x = torch.ones(2, 3, device="cuda")
    if native.covers(built, torch.cuda.get_device_capability()):
        assert dat.backends()["cuda"] is None
        assert dat.perturb(x, x, 0.25, impl="cuda").eq(0.75).all()
    else:
        assert built in dat.backends()["cuda"]
        with pytest.raises(dat.BackendError, match="rebuild with DATGAN_FAST_CUDA_ARCHS"):
            dat.perturb(x, x, 0.25, impl="cuda")


def test_the_best_usable_backend_is_taken_unasked():
    x, v = torch.zeros(2, 3, device="cuda"), torch.ones(2, 3, device="cuda")
    usable = [name for name in ("cuda", "triton", "reference") if dat.backends()[name] is None]
    assert dispatch.resolve(x.device) == usable[0]
    assert torch.equal(dat.perturb(x, v, 0.1), dat.perturb(x, v, 0.1, impl=usable[0]))
