"""Adam and RMSprop as one kernel or a few for all parameters, with nothing on the host that changes from step to step.

The learning rate is a tensor and the state is made at once rather than by the first step, so that a step can be recorded
in a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def build(kind: str, parameters: list[nn.Parameter], lr: Tensor, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """kind "adam" or "rmsprop" (whose alpha is betas[1]); lr: 0-d float32 on the parameters' device."""
    optimizer: torch.optim.Optimizer
    capturable = _capturable(lr.device)
    if kind == "adam":
        optimizer = torch.optim.Adam(parameters, lr=lr, betas=betas, fused=True, capturable=capturable)
    else:
        optimizer = torch.optim.RMSprop(parameters, lr=lr, alpha=betas[1], foreach=capturable, capturable=capturable)
    _make_state(optimizer)
    return optimizer


def _capturable(device: torch.device) -> bool:
    return device.type == "cuda"  # torch refuses the flag on a CPU


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """A step with gradients 0 moves no weight and leaves moments of 0; only its count must be taken back."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for state in optimizer.state.values():
        state["step"].zero_()


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """optimizer.load_state_dict into the tensors that are there. Raises KeyError or ValueError if they do not fit."""
    kept = {p: dict(values) for p, values in optimizer.state.items()}
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate.copy_(group["lr"])
    for p, values in kept.items():
        for name, tensor in values.items():
            optimizer.state[p][name] = tensor.copy_(optimizer.state[p][name])
