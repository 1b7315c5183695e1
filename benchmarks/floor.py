"""The floor of an iteration: its arithmetic at the rate this device reaches, plus its unavoidable traffic at a copy's bandwidth.

Arithmetic: the FLOPs of convolutions and matrix products, forward and backward, of one fused iteration.
Traffic: each of these operations' inputs read once and outputs written once (everything between two of them, such as
normalisation, activation, attack, is taken to cost none); parameters, their gradients and the optimisers' state read once
per update, parameters and state written once; the generator's average and parameters read once and the average written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from measure import DEVICE, device_time

MIB = 2**20
CACHE = 256 * MIB  # larger than any last-level cache we know of
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRIES = 10


@dataclass
class Work:
    flops: int
    bytes: int

    def seconds(self, precision: str) -> float:
        """The floor."""
        return self.flops / flop_rate(precision) + self.bytes / copy_bandwidth()

    def described(self, precision: str) -> dict[str, float]:
        return {
            "gigaflop": self.flops / 1e9,
            "gigaflop_per_second": flop_rate(precision) / 1e9,
            "gigabytes": self.bytes / 1e9,
            "copy_gigabytes_per_second": copy_bandwidth() / 1e9,
            "ms": 1e3 * self.seconds(precision),
        }


class _Count(TorchDispatchMode):
    """FLOPs and traffic of the operations that torch.utils.flop_counter has a formula for.

    FlopCounterMode itself also tracks modules, by hooks that cannot be used under torch.autograd.grad.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work = Work(0, 0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.work.flops += formula(*args, **kwargs, out_val=result)
            self.work.bytes += sum(t.nbytes for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor))
        return result


def operations(run: Callable[[], object]) -> Work:
    """The FLOPs and the traffic of the convolutions and matrix products of one call."""
    with _Count() as count:
        run()
    return count.work


def update_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Traffic of one update; the optimiser has made one before, so that its state is there."""
    total = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = [t for t in optimizer.state[p].values() if isinstance(t, Tensor) and t.shape == p.shape]
            total += 3 * p.nbytes + 2 * sum(t.nbytes for t in state)
    return total


def iteration(trainer) -> Work:
    """The work of one iteration of a datgan_fast.Trainer that has iterated before, outside a CUDA graph."""
    work = operations(trainer.train_step)
    average = 3 * sum(p.nbytes for p in trainer.generator.parameters())
    updates = trainer.config.n_dis * update_bytes(trainer.iteration.optimizer_d)
    updates += update_bytes(trainer.iteration.optimizer_g)
    return Work(work.flops, work.bytes + updates + average)


def _best(run: Callable[[], object]) -> float:
    return min(device_time(run, TRIES))


@cache
def flop_rate(precision: str) -> float:
    """FLOPs per second: the best of large convolutions, in both memory formats, and a large matrix product."""
    dtype = DTYPES[precision]
    batch, side = (256, 8192) if DEVICE == "cuda" else (16, 2048)
    matrix = torch.randn(side, side, device=DEVICE, dtype=dtype)
    x = torch.randn(batch, 256, 32, 32, device=DEVICE, dtype=dtype)
    weight = torch.randn(256, 256, 3, 3, device=DEVICE, dtype=dtype)
    runs = [lambda: matrix @ matrix]
    for layout in (torch.contiguous_format, torch.channels_last):
        operands = x.to(memory_format=layout), weight.to(memory_format=layout)
        runs.append(lambda operands=operands: F.conv2d(*operands, padding=1))
    with torch.no_grad():
        return max(operations(run).flops / _best(run) for run in runs)


@cache
def copy_bandwidth(traffic: int = 512 * MIB) -> float:
    """Bytes per second of copies that read and write so many bytes each.

    They rotate through more memory than caches hold. On a GPU a CUDA graph of them is timed: launched one by one, small
    copies would show what a launch costs.
    """
    numel = max(1, traffic // 8)
    pairs = [(torch.ones(numel, device=DEVICE), torch.empty(numel, device=DEVICE)) for _ in range(rotations(8 * numel))]

    def run() -> None:
        for source, target in pairs:
            target.copy_(source)

    return 8 * numel * len(pairs) / _best(recorded(run) if DEVICE == "cuda" else run)


def rotations(traffic: int) -> int:
    """How many sets of tensors, of so many bytes each, outgrow the caches; 64 of tiny ones must do."""
    return max(1, min(64, -(-CACHE // traffic)))


def recorded(run: Callable[[], object]) -> Callable[[], None]:
    """The replay of a CUDA graph of `run`, which has no input."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
