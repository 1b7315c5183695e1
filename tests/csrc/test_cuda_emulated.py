"""The CUDA kernels' own source, run on the CPU: every case of kernel_cases.py, what a launch looks like, sanitizers."""

import math
import os
import subprocess

import pytest
import torch

import datgan_fast as dat
import oracle
from attack_inputs import each_formulation, each_norm
from datgan_fast.method import dispatch
from datgan_fast.method.buffered_ops import logit_terms_into, sample_images
from emulated_cuda import compile_source, emulated_cuda
from kernel_cases import *  # noqa: F403
from kernel_cases import Target, assert_close, check_step, logits_of, normal, pair
from logit_cases import *  # noqa: F403
from logit_cases import check_terms
from oracle import array
from sample_cases import *  # noqa: F403
from sample_cases import bytes_of, check, drawn

F32, F16 = torch.float32, torch.float16


@pytest.fixture
def cuda(monkeypatch):
    """The emulated kernels, which the public functions take for the length of a test."""
    emulated = emulated_cuda()
    emulated.reset()
    monkeypatch.setattr(dispatch, "backend", lambda device, impl, **names: emulated)
    return emulated


@pytest.fixture
def target(cuda):
    return Target("cuda", "cpu")


def step(target, m=3, n=2, *shape, dtypes=(F32, F32), **options):
    x = pair(target, m, n, *shape or (2, 3, 5), seed=3, dtype=dtypes[0], scale=0.5)
    v = pair(target, m, n, *shape or (2, 3, 5), seed=5, dtype=dtypes[1])
    check_step(target, x, v, logits_of(target, m, n), **options)


@each_norm
@pytest.mark.parametrize("numel", [1, 1027, 5000])
def test_a_step_is_one_launch(cuda, target, numel, norm):
    step(target, 2, 1, numel, norm=norm)
    assert cuda.device.launches == 1


def test_a_differentiable_step_is_the_same_launch(cuda, target):
    x, v = pair(target, 3, 2, 50, seed=3), pair(target, 3, 2, 50, seed=5)
    x[0].requires_grad_()
    logits = [t.requires_grad_() for t in logits_of(target, 3, 2)]
    step = dat.attack_step(*x, *v, *logits, 0.3, norm="l2", differentiable=True)
    dat.perturb(x[0], v[0], 0.3, differentiable=True)
    assert cuda.device.launches == 2
    (step.adv_real.sum() + step.loss_fake).backward()  # which asks for the coefficients
    assert cuda.device.launches == 3


# (shared memory, clusters, compiled for) and what it makes of an image of 20 tiles
@pytest.mark.parametrize(
    ("device", "cluster", "kept"),
    [
        (dict(), 8, 2),
        (dict(clusters=0), 1, 15),
        (dict(clusters=0, shared=10 * 1024), 1, 2),
        (dict(code=80), 1, 15),
        (dict(shared=1024), 8, 0),
    ],
    ids=["cluster", "one block", "one block, half kept", "old code", "cluster, nothing kept"],
)
@pytest.mark.parametrize("dtypes", [(F32, F32), (F16, F16), (F32, F16)], ids=str)
def test_large_images(cuda, target, device, cluster, kept, dtypes):
    cuda.reset(**device)
    step(target, 1, 2, 20 * 1024, dtypes=dtypes, norm="l2")
    assert cuda.device.launches == 1
    assert cuda.device.last_cluster == cluster
    if dtypes == (F32, F32):
        tile = 64 * 4 * 16
        assert cuda.device.last_shared == 1024 + kept * tile


@each_norm
@each_formulation
def test_two_launches_for_large_batches(cuda, target, formulation, norm):
    assert cuda.library.workspace_numel(1024, 1024) == 0
    assert cuda.library.workspace_numel(1024, 1025) == 2049
    cuda.reset(two_launches=True)
    weights = normal(target, 3, seed=9), None
    step(target, formulation=formulation, norm=norm, weights=weights)
    assert cuda.device.launches == 2
    for m, n in ((1, 1), (0, 3), (3, 0)):
        step(target, m, n, 7, formulation=formulation, norm=norm)


@each_norm
def test_more_tasks_than_the_grid_holds(cuda, target, norm):
    cuda.reset(grid=8)
    step(target, 5, 6, 1500, norm=norm)
    assert cuda.device.last_grid == 8


def test_the_terms_of_logits_are_one_launch_of_one_block(cuda, target):
    for m, n in ((64, 64), (0, 5), (2000, 3000)):
        cuda.reset()
        check_terms(target, logits_of(target, m, n), formulation="batch_mean")
        assert (cuda.device.launches, cuda.device.last_grid) == (1, 1)


@pytest.mark.parametrize("grid", [2**31 - 1, 3])
def test_a_batch_is_drawn_in_one_launch(cuda, target, grid):
    """Several blocks to an image of 64 threads times 4 elements, or fewer blocks than there are shares."""
    cuda.reset(grid=grid)
    images = bytes_of(target, 5, 3, 17, 19)
    check(target, images, *drawn(target, 5, 4))
    assert (cuda.device.launches, cuda.device.last_grid) == (1, min(grid, 4 * 4))


def test_an_index_that_is_none_reaches_no_other_memory(cuda, target):
    """A GPU is not waited for to refuse it: the nearest image is taken."""
    images, wrong = bytes_of(target, 5, 3, 4, 4), torch.tensor([-1, 5, 2**60, -(2**62), 2])
    nearest, out = torch.tensor([0, 4, 4, 0, 2]), torch.full((2, 5, 3, 4, 4), math.nan)
    for index, written in zip((wrong, nearest), out, strict=True):
        sample_images(images, index, None, written)
    assert torch.equal(out[0], out[1])


def test_nothing_to_write_is_no_launch(cuda):
    for shape in ((3, 0), (0, 3)):
        dat.perturb(torch.empty(shape), torch.empty(shape), 1.0, norm="l2")
    for count, width in ((0, 4), (3, 0)):
        images, index = torch.empty(2, 3, 4, width, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
        sample_images(images, index, None, torch.empty(count, 3, 4, width))
    assert cuda.device.launches == 0


def test_perturb_takes_a_dense_batch_as_one_long_image(cuda, target):
    x, v = normal(target, 300, 3, seed=1), normal(target, 300, 3, seed=2)
    out = dat.perturb(x, v, 0.1, norm="linf")
    assert cuda.device.last_grid == 1  # 225 slots of 4
    assert_close(target, out, oracle.perturb(array(x), array(v), 0.1, "linf"), "adv")


@pytest.mark.parametrize("operation", ["attack_loss", "logit_terms", "perturb", "attack_step", "sample_images"])
def test_a_failed_launch_names_the_operation(cuda, operation):
    cuda.reset(fail=1)
    x, t = torch.zeros(2, 3), torch.zeros(2)
    calls = {
        "attack_loss": lambda: dat.attack_loss(t, t),
        "logit_terms": lambda: logit_terms_into((t, t), (t, t), torch.zeros(4), weight=1.0),
        "perturb": lambda: dat.perturb(x, x, 1.0),
        "attack_step": lambda: dat.attack_step(x, x, x, x, t, t, 1.0),
        "sample_images": lambda: sample_images(
            torch.zeros(2, 1, 1, 3, dtype=torch.uint8), torch.tensor([1, 0]), None, torch.zeros(2, 1, 1, 3)
        ),
    }
    with pytest.raises(RuntimeError, match=f"^{operation}: CUDA reports: "):
        calls[operation]()


def test_a_failed_launch_is_not_blamed_on_the_next(cuda, target):
    cuda.reset(fail=1)
    with pytest.raises(RuntimeError, match="CUDA reports"):
        step(target)
    step(target)


def test_a_device_is_asked_once_for_each_kernel(cuda, target):
    step(target)
    asked = cuda.device.asked
    assert asked > 0
    step(target, 5, 4, 1501, norm="l2")
    assert cuda.device.asked == asked, "the same kernel"
    step(target, dtypes=(F16, F16))
    assert cuda.device.asked == 2 * asked, "another kernel"
    index = cuda.device.index
    cuda.reset()
    step(target)
    assert cuda.device.asked == asked, "another device"
    cuda.reset(index=index)
    step(target)
    assert cuda.device.asked == 0, "the first device again"


def test_what_could_not_be_asked_is_asked_again(cuda, target):
    cuda.reset(shared=-1)
    with pytest.raises(RuntimeError, match="CUDA reports"):
        step(target)
    cuda.reset(index=cuda.device.index)
    step(target)


def test_no_launch_lowers_a_kernels_limit_of_shared_memory(cuda, target):
    """A graph that was captured with more would not start any more."""
    cuda.reset(clusters=0)
    shared = []
    for tiles in (16, 14, 2):
        step(target, 1, 1, tiles * 1024, norm="l2")
        shared.append(cuda.device.last_shared)
    assert shared[0] > shared[1] > 48 * 1024 > shared[2]
    assert cuda.device.lowered == 0


def run_sanitized(tmp_path, sanitizer, *flags):
    program = compile_source("sanitized.cpp", tmp_path / "sanitized", f"-fsanitize={sanitizer}", "-g", "-O0", *flags)
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    # A library preloaded into this process would come before the sanitizer's own.
    environment.pop("LD_PRELOAD", None)
    return subprocess.run([str(program)], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.compiles
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_no_sanitizer_complains(tmp_path, sanitizer):
    done = run_sanitized(tmp_path, sanitizer, "-fno-sanitize-recover=all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "all cases agree\n"


@pytest.mark.compiles
def test_a_missing_barrier_is_reported_as_a_race(tmp_path):
    done = run_sanitized(tmp_path, "thread", "-DDAT_EMULATION_DROP_BARRIER")
    assert done.returncode != 0
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert "block_sum" in done.stderr
