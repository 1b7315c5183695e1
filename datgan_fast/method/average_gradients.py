"""The gradients of a discriminator that is replicated in several processes, averaged by one message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


@torch.no_grad()
def average_gradients(module: nn.Module, group: Any = None) -> None:
    """Replaces every parameter's .grad by its mean over the processes of a group: one flat all-reduce for each dtype.

    After `discriminator_step(..., group=group)`, whose gradients are each process's part of the whole batch's times the number
    of processes, they are the whole batch's, whatever the shares of the processes. DDP and FSDP2 do this by themselves.

    Args:
        module: the same in every process, with the same parameters that require gradients. One whose .grad is None counts as
            zero; it stays None where it is None in all processes.
        group: a torch.distributed process group; default: all processes, and nothing to do without torch.distributed.

    Raises:
        TypeError: a gradient is sparse, or sharded as FSDP's are.

    Example:
        >>> D = nn.Linear(2, 1)
        >>> D(torch.ones(1, 2)).sum().backward()
        >>> dat.average_gradients(D)  # of one process: nothing to do
        >>> D.weight.grad
        tensor([[1., 1.]])
    """
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return
    average_gradients_of([(name, p) for name, p in module.named_parameters() if p.requires_grad], group)


@torch.no_grad()
def average_gradients_of(named: Sequence[tuple[str, Tensor]], group: Any) -> None:
    """`average_gradients` of these parameters, with names for messages."""
    alike: dict[tuple[torch.dtype, torch.device], list[tuple[str, Tensor]]] = {}
    for name, p in named:
        alike.setdefault((p.dtype, p.device), []).append((name, p))
    for some in alike.values():
        _average([_dense(name, p) for name, p in some], [p for _, p in some], group)


def _dense(name: str, p: Tensor) -> Tensor:
    g = torch.zeros_like(p) if p.grad is None else p.grad
    if g.layout is not torch.strided:
        raise TypeError(f"average_gradients averages dense gradients; that of {name} is {g.layout}")
    if hasattr(g, "full_tensor"):
        raise TypeError(
            f"average_gradients averages whole gradients; that of {name} is sharded, and FSDP averages it itself"
        )
    return g


def _average(gradients: list[Tensor], parameters: list[Tensor], group: Any) -> None:
    there = parameters[0].new_ones(len(parameters))  # made on the device: a copy from the host would wait for it
    for k, p in enumerate(parameters):
        if p.grad is None:
            there[k].zero_()
    flat = torch.cat([*(g.reshape(-1).to(parameters[0].dtype) for g in gradients), there])
    flat /= dist.get_world_size(group)  # before they are added up, which float16 might not hold
    dist.all_reduce(flat, group=group)
    sizes = [g.numel() for g in gradients]
    *parts, there = flat.split([*sizes, len(parameters)])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
    if any(p.grad is None for p in parameters):
        for p, g, somewhere in zip(parameters, gradients, there.tolist(), strict=True):
            if p.grad is None and somewhere:
                p.grad = g
