"""BatchNorm over the images of all processes, on CPUs as on GPUs.

torch's SyncBatchNorm refuses a CPU's tensors. Here each process sends its mean, its sum of squared deviations and its count,
which add up without cancellation (Chan, Golub, LeVeque 1979), and gradients of every order go back the same way.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from ..method.formulas import as_float


def synchronised(module: nn.Module, group: Any = None) -> nn.Module:
    """The module itself, whose BatchNorms from now on take their statistics of all processes' images.

    Parameters, buffers, hooks and the keys of the state dict stay. A BatchNorm with a forward of its own is left alone.

    Args:
        module: the same in every process; its BatchNorms may be 1-, 2- or 3-d, or torch's SyncBatchNorm.
        group: a torch.distributed process group; default: all processes, as there are when a forward runs.

    Raises:
        ValueError: a lazy BatchNorm has seen no images yet.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, _BatchNorm) or type(layer).forward not in _TORCHS:
            continue
        if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
            raise ValueError(
                f"a BatchNorm can be synchronised once it knows its channels; {name or 'the module'} is lazy, and wants a "
                "forward first"
            )
        layer.__class__ = SyncBatchNorm
        layer.process_group = group
    return module


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch's on a GPU; the same on a CPU, where it can be differentiated twice as well.

    In training mode every process must make the same forwards and backwards. A process may have no images.
    """

    process_group: Any

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not self._exchanges():
            return super().forward(input)
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        x = as_float(input)
        mean, variance, count = _statistics(x, self.process_group)
        if x.numel() <= x.shape[1] and count == 1:
            raise ValueError(
                "BatchNorm in training mode needs more than one value per channel in all processes together; got one"
            )
        self._remember(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = (variance + self.eps).rsqrt().to(x.dtype)
        if self.weight is not None:
            scale = scale * self.weight
        x = (x - _by_channel(mean.to(x.dtype), x)) * _by_channel(scale, x)
        return (x if self.bias is None else x + _by_channel(self.bias, x)).to(input.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        memo[id(self.process_group)] = self.process_group  # which cannot be copied
        twin = memo[id(self)] = self.__class__.__new__(self.__class__)
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def _exchanges(self) -> bool:
        there = self.training and dist.is_available() and dist.is_initialized()
        return there and dist.get_world_size(self.process_group) > 1

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """`variance`: without bias."""
        if not self.track_running_stats or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.mul_(1 - momentum).add_(now.to(running.dtype), alpha=momentum)


_TORCHS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))


def _statistics(x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel, float64 [C], and how many values they are of, in all processes."""
    count, others = x.numel() // x.shape[1], [d for d in range(x.dim()) if d != 1]
    # Of no images zeros, whose gradient takes part all the same. torch.var_mean takes over ten times as long on a CPU.
    mean = x.sum(others) / max(count, 1)
    deviations = (x - _by_channel(mean, x)).square().sum(others)
    number = torch.full((1,), count, dtype=torch.float64, device=x.device)
    own = torch.cat([mean.double(), deviations.double(), number])
    every = _Gathered.apply(own, group)
    means, deviations, counts = every.split([x.shape[1], x.shape[1], 1], 1)
    total = counts.detach().sum()
    mean = (counts * means).sum(0) / total
    variance = (deviations + counts * (means - mean).square()).sum(0) / total
    return mean, variance, total


class _Gathered(torch.autograd.Function):
    """(own [k], group) -> [processes, k]: everybody's, in the order of their ranks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Any) -> Tensor:
        ctx.group = group
        told = own.new_empty(dist.get_world_size(group), len(own))
        dist.all_gather(list(told.unbind()), own.contiguous(), group=group)
        return told

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return _OwnSum.apply(cotangent, ctx.group), None


class _OwnSum(torch.autograd.Function):
    """(rows [processes, k], group) -> [k]: the sum of what everybody has in this process's row; `_Gathered`'s adjoint."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Any) -> Tensor:
        ctx.group = group
        sums = rows.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(sums, group=group)
        return sums[dist.get_rank(group)].clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        return _Gathered.apply(cotangent, ctx.group), None
