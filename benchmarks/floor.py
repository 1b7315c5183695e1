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

from measure import DEVICE, seconds

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
    run()
    return min(seconds(run) for _ in range(TRIES))


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
def copy_bandwidth() -> float:
    """Bytes per second that a copy of 256 MiB reads and writes."""
    source = torch.ones(64 * 2**20, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source))
