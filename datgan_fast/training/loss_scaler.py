"""Dynamic loss scaling for float16 that never asks the device, so that a CUDA graph can hold a whole step.

torch.amp.GradScaler reads on the host whether a gradient overflowed. Here the device decides: the optimiser always steps,
and where a gradient was not finite the old values are put back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class LossScaler(nn.Module):
    """The factor by which a loss is multiplied before backward, and the steps taken with such gradients.

    scale  the factor: float32 [] on `device`, never moves; 1 if not enabled

    As with GradScaler, a gradient that is not finite multiplies the scale by `backoff_factor`, and `growth_interval` steps
    in a row without one multiply it by `growth_factor`. As a module it saves and loads its state in place; a scaler that is
    not enabled has none.
    """

    scale: Tensor
    growth_tracker: Tensor

    def __init__(
        self,
        device: torch.device | str,
        enabled: bool,
        init_scale: float = 1024.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        super().__init__()
        self.enabled = enabled
        self.growth_factor, self.backoff_factor, self.growth_interval = growth_factor, backoff_factor, growth_interval
        scale = torch.full((), init_scale if enabled else 1.0, dtype=torch.float32, device=device)
        self.register_buffer("scale", scale, persistent=enabled)
        growth_tracker = torch.zeros((), dtype=torch.int32, device=device)  # finite steps since the scale changed
        self.register_buffer("growth_tracker", growth_tracker, persistent=enabled)

    def tensors(self) -> list[Tensor]:
        """The state: scale and growth_tracker, int32 []; empty if not enabled."""
        return list(self.buffers()) if self.enabled else []

    @torch.no_grad()
    def step(self, optimizer: Optimizer) -> None:
        """Unscales the parameters' gradients in place, steps if all of them are finite, and updates the scale.

        The optimiser's state must lie on the scaler's device: make it with fused=True or capturable=True on CUDA. State that a
        step creates is zero if that step is undone.
        """
        if not self.enabled:
            optimizer.step()
            return
        overflow = self._unscale(optimizer)
        if getattr(optimizer, "_step_supports_amp_scaling", False):  # fused optimisers look at the flag themselves
            optimizer.grad_scale, optimizer.found_inf = None, overflow  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
        else:
            _step_unless(overflow.bool(), optimizer)
        torch._amp_update_scale_(
            self.scale, self.growth_tracker, overflow, self.growth_factor, self.backoff_factor, self.growth_interval
        )

    def _unscale(self, optimizer: Optimizer) -> Tensor:
        """Divides the gradients by the scale; float32 [], 1 if one of them is not finite and else 0."""
        overflow = torch.zeros((), dtype=torch.float32, device=self.scale.device)
        inverse = self.scale.double().reciprocal().float()
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in _parameters(optimizer):
            if parameter.grad is not None:
                by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_dtype.values():
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, overflow, inverse)
        return overflow


def _step_unless(undo: Tensor, optimizer: Optimizer) -> None:
    """A step that leaves everything as it was where undo, bool [], is true."""
    before = _changed_by_step(optimizer)
    copies = {key: torch.empty_like(value) for key, value in before.items()}
    if copies:
        torch._foreach_copy_(list(copies.values()), list(before.values()))
    optimizer.step()
    for key, value in _changed_by_step(optimizer).items():
        if key in copies:
            torch.where(undo, copies[key], value, out=value)  # selects, so that no NaN of the step survives
        else:
            value.masked_fill_(undo, 0)


def _changed_by_step(optimizer: Optimizer) -> dict[tuple[int, str], Tensor]:
    """The parameters that have gradients and the tensors of their state."""
    values: dict[tuple[int, str], Tensor] = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        if parameter.grad is not None:
            values[number, ""] = parameter
            state = optimizer.state.get(parameter, {})
            values.update({(number, name): value for name, value in state.items() if isinstance(value, Tensor)})
    return values


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
