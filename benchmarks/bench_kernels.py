"""The kernels against plain torch and torch.compile: time, and for those that move images bandwidth as a fraction of a copy's.

    python -m pytest benchmarks/bench_kernels.py --benchmark-only --benchmark-json FILE

Bandwidth counts the traffic nobody can avoid: x and the gradient read, the perturbed images written (of sample_images: bytes
read, images written). It is compared with a
copy whose traffic is 512 MiB (fraction_of_copy) and with one of as much traffic (fraction_of_own_copy), the better
measure of a small cell.
The kernels write into memory that is there, as a copy and as the fused step do; plain torch makes its own. Inputs
rotate through more memory than caches hold. On a GPU a CUDA graph of all rotations is timed, so that the
figures are the device's; the cells "call" time single calls from Python instead. DATGAN_FAST_BENCH_FULL=1 runs
every cell.
"""

import math
from functools import cache, lru_cache, partial

import pytest
import torch

import datgan_fast as dat
from compilation import nothing_falls_back
from datgan_fast.method import reference
from datgan_fast.method.arguments import Attack, AttackInputs
from datgan_fast.method.buffered_ops import attack_step_into, logit_terms_into, sample_images
from datgan_fast.method.formulas import OBJECTIVES
from datgan_fast.method.reference_operations import logits_with_targets
from floor import copy_bandwidth, recorded, rotations
from measure import DEVICE, FULL, device_time, seconds, spread

SIZES = {"64x3x32x32": (64, 3, 32, 32), "512x3x64x64": (512, 3, 64, 64)}
if DEVICE == "cuda" or FULL:
    SIZES |= {
        "64x3x128x128": (64, 3, 128, 128),
        "341x3x256x256": (341, 3, 256, 256),
    }  # the last: 256 MiB in float32
DTYPES = {"float32": torch.float32}
if DEVICE == "cuda" or FULL:
    DTYPES |= {"bfloat16": torch.bfloat16, "float16": torch.float16}
PROVIDERS = ("cuda", "triton", "eager") if DEVICE == "cuda" else ("cpu", "eager")
if DEVICE == "cuda" or FULL:
    PROVIDERS += ("compile",)  # the C++ compiler takes a quarter of a minute for each
MODES = ("graph", "call") if DEVICE == "cuda" else ("call",)


def plain_step(x, v, logits, norm):
    """attack_step in plain torch; torch.compile drops the gradients, which nobody gets."""
    step = reference.attack_step(*sides(x), *sides(v), *logits, 0.1, norm=norm)
    return step.adv_real, step.adv_fake, step.loss_real, step.loss_fake


def plain_terms(real, fake):
    """logit_terms in plain torch: weights in closed form, the sums, and the attack's losses and coefficients."""
    row = OBJECTIVES["vanilla"]
    weights = row.slope1(real) * (-1 / len(real)), row.slope2(fake) * (-1 / len(fake))
    sums = -(row.g1(real).mean() + row.g2(fake).mean()), real.mean() - fake.mean()
    return weights, sums, reference.attack_terms(logits_with_targets(real, fake), "vanilla", "eq10")


def plain_sample(images, index, mirrored, dtype):
    batch = images.index_select(0, index)
    batch = torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(-1), batch)
    return batch.float().div_(127.5).sub_(1).to(dtype)


def own_terms(logits, impl):
    exact = [torch.empty_like(t) for t in (*logits, *logits)]
    sums = torch.empty(4, dtype=torch.float32, device=DEVICE)
    logit_terms_into(logits, exact[:2], sums, weight=1.0, floor=1e-20, coefficients=exact[2:], impl=impl)


@cache
def compiled(function):
    return torch.compile(function, fullgraph=True, dynamic=False)


def operation(op, provider, norm):
    """A function of one set of inputs."""
    if provider in ("eager", "compile"):
        prepare = compiled if provider == "compile" else lambda function: function
        loss, perturb, step = map(prepare, (reference.attack_loss, reference.perturb, plain_step))
        terms, sample = map(prepare, (plain_terms, plain_sample))
        return {
            "attack_loss": with_gradient(loss),
            "perturb": lambda x, v, logits, out: perturb(x, v, 0.1, norm=norm),
            "attack_step": lambda x, v, logits, out: step(x, v, logits, norm),
            "logit_terms": lambda x, v, logits, out: terms(*logits),
            "sample_images": lambda images, index, mirrored, out: sample(images, index, mirrored, out.dtype),
        }[op]
    return {
        "attack_loss": with_gradient(partial(dat.attack_loss, impl=provider)),
        "perturb": lambda x, v, logits, out: torch.ops.datgan_fast.perturb(x, v, 0.1, norm, -1.0, 1.0, provider, out),
        "attack_step": lambda x, v, logits, out: attack_step_into(
            AttackInputs(sides(x), sides(v), logits, logits),
            Attack(0.1, "vanilla", "eq10", norm, -1.0, 1.0),
            sides(out),
            impl=provider,
        ),
        "logit_terms": lambda x, v, logits, out: own_terms(logits, provider),
        "sample_images": lambda images, index, mirrored, out: sample_images(
            images, index, mirrored, out, impl=provider
        ),
    }[op]


def with_gradient(loss):
    """The attack loss is taken for its gradient, so a cell has both."""

    def run(x, v, logits, out):
        leaves = [t.detach().requires_grad_() for t in logits]
        return torch.autograd.grad(sum(loss(*leaves)), leaves)

    return run


def sides(x):
    """The real and the generated half of a batch."""
    return x[: len(x) // 2], x[len(x) // 2 :]


@lru_cache(maxsize=1)
def rotation(size, dtype):
    """[(x, v, logits, output)], as many as it takes to outgrow the caches."""
    shape, dtype = SIZES[size], DTYPES[dtype]
    sets = []
    for _ in range(rotations(3 * dtype.itemsize * math.prod(shape))):
        x, v = (torch.randn(shape, device=DEVICE).to(dtype) for _ in range(2))
        sets.append((x, v, sides(torch.randn(shape[0], device=DEVICE)), torch.zeros_like(x)))
    return sets


@lru_cache(maxsize=1)
def draws(size, dtype):
    """[(bytes to draw from, index, mirrored, output)], as rotation's."""
    shape, dtype = SIZES[size], DTYPES[dtype]
    sets = []
    for _ in range(rotations((1 + dtype.itemsize) * math.prod(shape))):
        images = torch.randint(256, shape, dtype=torch.uint8, device=DEVICE)
        index = torch.randint(len(images), shape[:1], device=DEVICE)
        sets.append((images, index, index % 2 == 0, torch.zeros(shape, dtype=dtype, device=DEVICE)))
    return sets


OF_LOGITS = ("attack_loss", "logit_terms")


def cells():
    for op in ("attack_loss", "logit_terms", "sample_images", "perturb", "attack_step"):
        for size in SIZES:
            for dtype in DTYPES if op not in OF_LOGITS else ["float32"]:
                for norm in reference.NORMS if op in ("perturb", "attack_step") else ["none"]:
                    for provider in PROVIDERS:
                        for mode in MODES:
                            if mode == "graph" or DEVICE == "cpu" or size == "64x3x32x32":
                                yield pytest.param(
                                    *(op, size, dtype, norm, provider, mode),
                                    id="-".join((op, size, dtype, norm, provider, mode)),
                                )


@pytest.mark.parametrize(("op", "size", "dtype", "norm", "provider", "mode"), list(cells()))
def test_kernel(benchmark, op, size, dtype, norm, provider, mode):
    if provider in dat.backends() and dat.backends()[provider]:
        pytest.skip(f"{provider}: {dat.backends()[provider]}")
    benchmark.group = "-".join((op, size, dtype, norm, mode))
    function = operation(op, provider, norm)
    sets = draws(size, dtype) if op == "sample_images" else rotation(size, dtype)
    traffic = sets[0][0].nbytes + sets[0][-1].nbytes + (0 if op == "sample_images" else sets[0][1].nbytes)

    def run():
        for arguments in sets:
            function(*arguments)

    samples = []
    with nothing_falls_back():
        run()
        timed = recorded(run) if mode == "graph" else run

        def sample():  # of calls from Python the host's time is what is asked for
            samples.append(device_time(timed, 1)[0] if mode == "graph" else seconds(timed))

        benchmark.pedantic(sample, rounds=10)
    if benchmark.stats is None:  # --benchmark-disable
        return
    best = min(samples) / len(sets)  # the best, as of the copy
    benchmark.extra_info |= {"microseconds": 1e6 * best, "noise": spread(samples)}
    if op not in OF_LOGITS:
        benchmark.extra_info |= {
            "bytes": traffic,
            "gigabytes_per_second": traffic / best / 1e9,
            "fraction_of_copy": traffic / best / copy_bandwidth(),
            "fraction_of_own_copy": traffic / best / copy_bandwidth(traffic),
            "copy_gigabytes_per_second": copy_bandwidth() / 1e9,
        }
