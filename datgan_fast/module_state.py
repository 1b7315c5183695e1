"""What a discriminator remembers from forward to forward, and how one training step keeps it well defined.

Running statistics, power iterations and random masks change with every forward in training mode. A step that runs the
discriminator a different number of times, as the fused one does, would otherwise train a different network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm


@contextmanager
def one_power_iteration(module: nn.Module) -> Iterator[None]:
    """Spectral norms advance once, now, as SNGAN (Miyato 2018, Algorithm 1) does per update, and rest inside the context."""
    with torch.no_grad():
        for owner in module.modules():
            for hook in owner._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm) and owner.training:
                    hook(owner, None)
            if parametrize.is_parametrized(owner):
                for name, chain in owner.parametrizations.items():  # type: ignore[union-attr, operator]
                    if any(isinstance(p, _SpectralNorm) and p.training for p in chain):
                        getattr(owner, name)
    with _resting_spectral_norms(module):
        yield


@contextmanager
def _resting_spectral_norms(module: nn.Module) -> Iterator[None]:
    resting = []
    for m in module.modules():
        is_spectral = isinstance(m, _SpectralNorm) or any(
            isinstance(hook, SpectralNorm) for hook in m._forward_pre_hooks.values()
        )
        if is_spectral and m.training:
            m.training = False
            resting.append(m)
    try:
        yield
    finally:
        for m in resting:
            m.training = True


@contextmanager
def unchanged_state(module: nn.Module) -> Iterator[None]:
    """Buffers and torch's random state come out of the context as they went in; spectral norms do not iterate.

    Raises RuntimeError for dropout while a CUDA graph is captured, which cannot rewind random numbers.
    """
    saved = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        with _unchanged_random_state(module), _resting_spectral_norms(module):
            yield
    finally:
        for buffer, value in saved:
            buffer.data.copy_(value)  # .data: a graph that saved the buffer still finds the value it saved


def _unchanged_random_state(module: nn.Module) -> AbstractContextManager[None]:
    devices = {t.device.index for t in [*module.parameters(), *module.buffers()] if t.device.type == "cuda"}
    if not (devices and torch.cuda.is_current_stream_capturing()):
        return torch.random.fork_rng(devices=sorted(d for d in devices if d is not None))
    for m in module.modules():
        if isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0:
            raise RuntimeError(
                "an attack through dropout cannot be captured in a CUDA graph: its masks would have to be drawn twice; "
                "run it without a graph or set the dropout to evaluation mode"
            )
    return nullcontext()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Autograd computes no gradients of the module's parameters and keeps nothing for them."""
    learning = [p for p in module.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_()
