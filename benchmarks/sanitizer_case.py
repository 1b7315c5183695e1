"""Every path of the kernels for compute-sanitizer, which benchmarks/gpu_check.sh runs, on images no larger than it takes.

tests/benchmarks/test_sanitizer_case.py shows without a GPU that no path of the CUDA kernels is left out.
"""

from __future__ import annotations

import torch

import datgan_fast as dat
from datgan_fast.method.arguments import Attack, AttackInputs
from datgan_fast.method.buffered_ops import attack_step_into, logit_terms_into, sample_images
from datgan_fast.method.reference import FORMULATIONS, NORMS

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = [(F32, F32), (F16, F16), (BF16, BF16), (F32, BF16), (F16, F32), (F64, F64)]  # of x and v

# Elements of an image: for the registers of one block, of a cluster of blocks (of the general kernel's, of the others'), for a
# cluster's shared memory, and more than that can keep. Without clusters one block has to do with its own.
SIZES = (192, 4_608, 12_288, 61_440, 460_800)


def images(count, numel, dtype, layout, device):
    """whole: every image aligned; edges: none, and of odd length; strided: not in the order of the outputs' memory."""
    if layout == "edges":
        numel += 1
    values = torch.randn(count * numel + 1, device=device).to(dtype)
    dense = values[1:] if layout == "edges" else values[:-1].clone()
    if layout == "strided":
        return dense.view(count, 8, numel // 8).transpose(1, 2)
    return dense.view(count, numel)


def attack(
    impl, device, dtypes, layout, numel, norm, *, counts=(2, 1), optional=False, logit_dtype=F32, formulation="eq10"
):
    """One attack step; `optional`: with everything that may be given and asked for."""
    x = [images(count, numel, dtypes[0], "edges" if layout == "edges" else "whole", device) for count in counts]
    v = [images(count, numel, dtypes[1], layout, device) for count in counts]
    if layout == "strided":
        x = [t.view(len(t), numel // 8, 8) for t in x]
    logits = tuple(torch.randn(count, device=device).to(logit_dtype) for count in counts)
    each = [torch.rand(count, device=device) if optional else None for count in counts]
    attack_step_into(
        AttackInputs(tuple(x), tuple(v), logits, logits, tuple(each)),
        Attack(0.1, "vanilla", formulation, norm, -1.0, 1.0),
        tuple(map(torch.empty_like, x)),
        grads=[torch.empty_like(t) for t in v] if optional else [],
        norms=[torch.empty_like(t) for t in logits] if optional else [],
        impl=impl,
    )


def terms(impl, device, counts, dtype, formulation, attack):
    """All that a step wants of its logits, two slices of one buffer."""
    logits, weights = (torch.randn(sum(counts), device=device).to(dtype).split(counts) for _ in range(2))
    exact = F64 if dtype == F64 else F32
    coefficients = [torch.empty(count, dtype=exact, device=device) if attack else None for count in counts]
    options = dict(weight=0.5, floor=1e-20, formulation=formulation, coefficients=tuple(coefficients), impl=impl)
    logit_terms_into(logits, weights, torch.empty(4, dtype=exact, device=device), **options)


def sample(impl, device, dtype, memory_format, flips):
    """A batch from images of odd size, with indices that are none of an image."""
    images = torch.randint(256, (5, 3, 37, 35), device=device).to(torch.uint8)
    index = torch.tensor([4, 0, -1, 5, 2**40, 1], device=device)
    mirrored = torch.arange(6, device=device) % 2 == 0 if flips else None
    out = torch.empty(6, 3, 37, 35, dtype=dtype, device=device).to(memory_format=memory_format)
    sample_images(images, index, mirrored, out, impl=impl)


def run(impl, device):
    for dtype in (F64, F32, F16, BF16):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            for flips in (False, True):
                sample(impl, device, dtype, memory_format, flips)
    for dtypes in DTYPES:
        for layout in ("whole", "edges", "strided"):
            for numel in SIZES:
                attack(impl, device, dtypes, layout, numel, "l2", optional=numel != SIZES[0])
            attack(impl, device, dtypes, layout, SIZES[0], "linf")
    for formulation in FORMULATIONS:
        for logit_dtype in (F32, F64):  # reduced by each block; by a first launch; by a launch of their own
            for counts in ((5, 3), (1500, 600), (3, 0), (0, 3), (0, 0)):
                options = dict(counts=counts, logit_dtype=logit_dtype, formulation=formulation)
                attack(impl, device, (F32, F32), "whole", 4, "none", **options)
                logits = [torch.randn(count, device=device).to(logit_dtype) for count in counts]
                dat.attack_loss(*logits, formulation=formulation, impl=impl)
                for attack_too in (False, True):
                    terms(impl, device, counts, logit_dtype, formulation, attack_too)
    for norm in NORMS:
        for layout in ("whole", "edges", "strided"):
            x, grad = (images(3, SIZES[2], F32, layout, device) for _ in range(2))
            dat.perturb(x, grad, 0.1, norm=norm, impl=impl)


def main():
    ran = []
    for impl in ("cuda", "triton"):
        problem = dat.backends()[impl]
        if problem:
            print(f"{impl} left out: {problem}")
            continue
        run(impl, torch.device("cuda"))
        torch.cuda.synchronize()
        ran.append(impl)
    if not ran:
        raise SystemExit("neither the CUDA nor the Triton kernels can be used here")
    print("ran:", ", ".join(ran))


if __name__ == "__main__":
    main()
