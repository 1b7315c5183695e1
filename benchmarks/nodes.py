"""How many kernels an iteration launches on a GPU, counted on a CPU, and the time which that predicts for a captured one.

    python benchmarks/nodes.py [--width 64] [--batch-size 64]

Counted are the operator calls that compute something, by a dispatch mode: views and empty tensors are none, a convolution's
backward counts once for each of its gradients, everything else once. The number does not depend on the sizes, so small ones
are counted. A call on many tensors counts once if they are of one dtype and pair by pair of the same layout, as its kernel wants
them, and else once for each. The iteration takes the choice that it takes on a GPU: real and generated images as one batch where
they are independent. A GPU may need more: some kernels of cuDNN and cuBLAS take two launches, and
a convolution may have to change a tensor's layout.

The prediction is nodes x NODE_SECONDS, what one costs in the replay of a graph of short kernels, plus the floor's arithmetic
and traffic (floor.py, in float32) at DEVICE_RATES and MEMORY, a data sheet's figures, times EFFICIENCY. None of it was
measured on a GPU.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import datgan_fast as dat
import floor
from datgan_fast.method import batches, waiting
from datgan_fast.training.baselines import BASELINES

NODE_SECONDS = 2e-6, 3e-6
# H100 SXM, dense, NVIDIA's data sheet: FLOP/s in TF32 and bfloat16, bytes/s of memory.
DEVICE_RATES = {"fp32": 494e12, "bf16": 989e12}
MEMORY = 3.35e12
EFFICIENCY = 0.5  # small convolutions do not reach more of it
SMALL = {"width": 4, "batch_size": 4}
NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_unsafe_view"}
NOTHING |= {"_record_function_enter_new", "_record_function_exit"}


class Count(TorchDispatchMode):
    """Operator calls that compute something, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        name = operation._schema.name.partition("::")[2]
        if not operation.is_view and name not in NOTHING:
            self.calls[name] += launches(name, args, result)
        return result


def launches(name: str, args: tuple, result: object) -> int:
    """Kernels of one call. One on many tensors launches one for each where it is not alike from tensor to tensor."""
    if name == "convolution_backward":
        return sum(t is not None for t in result)
    if not (name.startswith("_foreach_") or name.startswith("_fused_")):
        return 1
    lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
    lists = [tensors for tensors in lists if any(t.dim() for t in tensors) or tensors is lists[0]]  # but step counts
    mixed = any(len({t.dtype for t in tensors}) > 1 for tensors in lists)
    dtypes = {tensors[0].dtype for tensors in lists}
    unlike = any(len({(t.shape, t.stride()) for t in together}) > 1 for together in zip(*lists, strict=True))
    together = not (mixed or unlike or (len(dtypes) > 1 and name != "_foreach_copy_"))
    return 1 if together else len(lists[0])


def nodes(run: Callable[[], object]) -> Counter[str]:
    with Count() as count:
        run()
    return count.calls


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """The choices that the library makes by the device."""
    merging, capturing = batches.merging_is_faster, batches.capturing
    looking = waiting.looking_waits
    batches.merging_is_faster = batches.capturing = waiting.looking_waits = lambda *x: True
    try:
        yield
    finally:
        batches.merging_is_faster, batches.capturing, waiting.looking_waits = merging, capturing, looking


def trained(baseline: str, **options) -> dat.Trainer:
    """A trainer that has iterated once: the first iteration also asks whether images are independent."""
    shape = {"dataset": "digits", "channels": 3, "image_size": 32, "device": "cpu", "cuda_graph": False}
    trainer = dat.Trainer(dat.TrainConfig(**{**shape, **options}, baseline=baseline))
    trainer.train_step()
    return trainer


def iteration_nodes(baseline: str, **options) -> int:
    with as_on_a_gpu():
        return sum(nodes(trained(baseline, **SMALL, **options).train_step).values())


def predicted(count: int, work: floor.Work, precision: str) -> tuple[float, float]:
    """Milliseconds of a replay, at least and at most."""
    device = work.flops / (EFFICIENCY * DEVICE_RATES[precision]) + work.bytes / (EFFICIENCY * MEMORY)
    low, high = (1e3 * (count * seconds + device) for seconds in NODE_SECONDS)
    return low, high


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    options = vars(parser.parse_args(arguments))
    print(
        "| baseline | reference, nodes | fused fp32, nodes | fused bf16, nodes | GFLOP | GB | graph fp32, ms | graph bf16, ms |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for baseline in BASELINES:
        for use_dat in (True, False):
            choices = {"fused": False, "channels_last": False}, {"precision": "fp32"}, {"precision": "bf16"}
            counts = [iteration_nodes(baseline, dat=use_dat, **choice) for choice in choices]
            work = floor.iteration(trained(baseline, dat=use_dat, precision="fp32", **options))
            times = [predicted(n, work, precision) for n, precision in zip(counts[1:], DEVICE_RATES, strict=True)]
            name = baseline + (" + DAT" if use_dat else "")
            sizes = f"{work.flops / 1e9:.0f}", f"{work.bytes / 1e9:.1f}"
            cells = [name, *map(str, counts), *sizes, *(f"{low:.1f}-{high:.1f}" for low, high in times)]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
