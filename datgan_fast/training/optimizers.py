"""Adam and RMSprop as one kernel for all parameters, with nothing on the host that changes from step to step.

The learning rate is a tensor and the state is made at once rather than by the first step, so that a step can be recorded
in a CUDA graph.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Adam(torch.optim.Adam):
    """torch's, which takes gradients of any layout."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad = laid_out_as(p, p.grad)
        return super().step(closure)


class RMSprop(torch.optim.RMSprop):
    """torch's, with its state, computed by torch's fused kernel of Adam.

    Adam without a first moment and after so many steps that its corrections of the beginning are 1 is RMSprop:
    v = alpha v + (1 - alpha) g^2, p = p - lr g / (sqrt(v) + eps).
    """

    _step_supports_amp_scaling = True  # as of torch's fused optimisers: the kernel looks at found_inf itself

    def __init__(self, parameters: list[nn.Parameter], lr: Tensor, alpha: float) -> None:
        super().__init__(parameters, lr=lr, alpha=alpha, foreach=False)
        self._endless = torch.full((), math.inf, dtype=torch.float32, device=lr.device)
        for p in parameters:
            self.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "square_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
            }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients = [laid_out_as(p, p.grad) for p in weights]
            steps = [self.state[p]["step"] for p in weights]
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                weights,
                gradients,
                gradients,  # the first moment without its past
                [self.state[p]["square_avg"] for p in weights],
                [],
                [self._endless] * len(weights),
                lr=group["lr"],
                beta1=0.0,
                beta2=group["alpha"],
                weight_decay=0.0,
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=None,
                found_inf=found_inf,
            )
            if found_inf is not None:
                torch._foreach_sub_(steps, [found_inf] * len(steps))


def build(kind: str, parameters: list[nn.Parameter], lr: Tensor, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """kind "adam" or "rmsprop" (whose alpha is betas[1]); lr: 0-d float32 on the parameters' device."""
    if kind == "rmsprop":
        return RMSprop(parameters, lr, betas[1])
    capturable = lr.device.type == "cuda"  # torch refuses the flag on a CPU
    optimizer = Adam(parameters, lr=lr, betas=betas, fused=True, capturable=capturable)
    _make_state(optimizer)
    return optimizer


def laid_out_as(weight: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with its weight's strides, which kernels for many tensors want to be the same.

    Autograd gives it those, but where a dimension has one element, as in a convolution of 1 x 1 pixels or one channel.
    """
    return gradient if gradient.stride() == weight.stride() else gradient.as_strided(weight.shape, weight.stride())


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
