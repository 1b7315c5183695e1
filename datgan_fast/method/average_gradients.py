"""The gradients of a discriminator that is replicated in several processes, averaged by one message."""

from __future__ import annotations

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
    """
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return
    alike: dict[tuple[torch.dtype, torch.device], list[tuple[str, Tensor]]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            alike.setdefault((p.dtype, p.device), []).append((name, p))
    for named in alike.values():
        _average([_dense(name, p) for name, p in named], [p for _, p in named], group)


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
    there = torch.tensor([p.grad is not None for p in parameters], dtype=parameters[0].dtype, device="cpu")
    flat = torch.cat([*(g.reshape(-1).to(parameters[0].dtype) for g in gradients), there.to(parameters[0].device)])
    flat /= dist.get_world_size(group)  # before they are added up, which float16 might not hold
    dist.all_reduce(flat, group=group)
    sizes = [g.numel() for g in gradients]
    *parts, there = flat.split([*sizes, len(parameters)])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
    if any(p.grad is None for p in parameters):
        for p, g, somewhere in zip(parameters, gradients, there.tolist(), strict=True):
            if p.grad is None and somewhere:
                p.grad = g
