"""What a discriminator remembers from forward to forward, and how one training step keeps it well defined.

Running statistics, power iterations and random masks change with every forward in training mode. A step that runs the
discriminator a different number of times, as the fused one does, would otherwise train a different network.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from .callables import parts_of


@contextmanager
def one_power_iteration(module: nn.Module) -> Iterator[None]:
    """Spectral norms advance once, now, as SNGAN (Miyato 2018, Algorithm 1) does per update, and rest inside the context."""
    modules = list(module.modules())
    with torch.no_grad():
        for owner in modules:
            for hook in owner._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm) and owner.training:
                    hook(owner, None)
            iterates = any(isinstance(p, _SpectralNorm) and p.training for p in owner.children())
            if isinstance(owner, parametrize.ParametrizationList) and iterates:
                owner()  # the attribute itself would be cached, without a gradient, under parametrize.cached()
    with _resting_spectral_norms(modules):
        yield


@contextmanager
def _resting_spectral_norms(modules: Sequence[nn.Module]) -> Iterator[None]:
    resting = [m for m in modules if isinstance(m, _SpectralNorm) and m.training]
    # The old kind is a hook on its layer, whose own training mode is the layer's.
    hooks = [h for m in modules for h in m._forward_pre_hooks.values() if isinstance(h, SpectralNorm)]
    iterations = [h.n_power_iterations for h in hooks]
    for m in resting:
        m.training = False
    for h in hooks:
        h.n_power_iterations = 0
    try:
        yield
    finally:
        for m in resting:
            m.training = True
        for h, n in zip(hooks, iterations, strict=True):
            h.n_power_iterations = n


def remember(module: nn.Module) -> Callable[[], None]:
    """Returns what puts back all that the module remembers from forward to forward.

    It remembers its buffers, and tensors and numbers among its modules' attributes, whether a forward changes them in place or
    puts others in their place.
    """
    saved: list[tuple[dict[str, Any], str, Any, Tensor | None]] = []
    for owner in module.modules():
        for holder in (owner._buffers, vars(owner)):
            for name, value in holder.items():
                if isinstance(value, (Tensor, int, float, type(None))) and name != "training":
                    saved.append((holder, name, value, value.detach().clone() if isinstance(value, Tensor) else None))

    def put_back() -> None:
        for holder, name, value, content in saved:
            if holder.get(name) is not value:
                holder[name] = value
            if not isinstance(value, Tensor) or content is None:
                continue
            # .data: a graph that saved the tensor still finds the value it saved
            if value.shape != content.shape:
                value.data = content
            else:
                own = tuple(
                    slice(0, 1) if stride == 0 else slice(None) for stride in value.stride()
                )  # elements, if expanded
                value.data[own].copy_(content[own])

    return put_back


@contextmanager
def unchanged_state(module: nn.Module) -> Iterator[None]:
    """What the module remembers and torch's random state come out of the context as they went in; spectral norms do not iterate.

    Raises RuntimeError for dropout while a CUDA graph is captured, which cannot rewind random numbers.
    """
    put_back = remember(module)
    cached = dict(parametrize._cache)  # of weights, in parametrize.cached(): one made here may be another in the step
    try:
        with unchanged_random_state(module), _resting_spectral_norms(list(module.modules())):
            yield
    finally:
        put_back()
        parametrize._cache.clear()
        parametrize._cache.update(cached)


def unchanged_random_state(module: nn.Module, *places: torch.device) -> AbstractContextManager[None]:
    """torch's random state comes out as it went in, on the CPU and on the devices of the module and of `places`."""
    tensors = (*module.parameters(), *module.buffers())
    devices = {d.index for d in (*places, *(t.device for t in tensors)) if d.type == "cuda"}
    if not (devices and torch.cuda.is_current_stream_capturing()):
        return torch.random.fork_rng(devices=sorted(d for d in devices if d is not None))
    for m in module.modules():
        if isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p > 0:
            raise RuntimeError(
                "an attack through dropout cannot be captured in a CUDA graph, nor can an approximate penalty: its masks would "
                "have to be drawn twice; run it without a graph or set the dropout to evaluation mode"
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


class Network:
    """A discriminator with its parts listed once, for what looks at all of them in every step.

    Attributes:
        call: the discriminator itself, a module or any callable.
        module: a module that holds all its modules.
        anchor: by which the network is known again, also in a wrapper that is made anew in every step.
        modes: with which it is the same network, as far as its modules go.
    """

    def __init__(self, discriminator: Callable[..., Any]) -> None:
        self.call = discriminator
        self.is_module = isinstance(discriminator, nn.Module)
        self.loose: list[Tensor] = []  # tensors that no module holds
        if isinstance(discriminator, nn.Module):
            self.module: nn.Module = discriminator
        else:
            modules, self.loose = parts_of(discriminator)
            self.module = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
        self.modules = list(self.module.modules())
        own = (p for m in self.modules for p in m._parameters.values() if p is not None)
        self.parameters = list(dict.fromkeys([*own, *(t for t in self.loose if t.is_leaf and t.requires_grad)]))
        self.buffers = [b for m in self.modules for b in m._buffers.values() if b is not None]
        holders = [m for m in self.modules if m._parameters or m._buffers]
        self.anchor: Any = holders[0] if holders else _lasting(discriminator)
        # A wrapper holds nothing of its own and may be another with every step.
        self.modes = tuple((id(m) if m._parameters or m._buffers else type(m), m.training) for m in self.modules)

    @property
    def is_known(self) -> bool:
        """Whether anything is known of what it works with."""
        return self.is_module or bool(self.parameters)

    def backward_hooks(self) -> str | None:
        """What a user hung on its backward, and so wants one backward of the whole loss; None for nothing."""
        for p in self.parameters:
            if p._backward_hooks or p._post_accumulate_grad_hooks:
                return "hooks on parameters want their whole gradient in one backward"
        every = nn.modules.module
        if every._global_backward_hooks or every._global_backward_pre_hooks:
            return "hooks on every module's backward want it to run once"
        if any(m._backward_hooks or m._backward_pre_hooks for m in self.modules):
            return "hooks on a module's backward want it to run once"
        return None

    def tensors(self) -> list[Tensor]:
        """Parameters, buffers, and tensors among the modules' attributes."""
        own = (value for m in self.modules for value in vars(m).values() if isinstance(value, Tensor))
        return [*self.parameters, *self.buffers, *self.loose, *own]

    def kept(self) -> list[Tensor]:
        """Tensors of a forward's graph that it left among the attributes or buffers, where the next forward may use them."""
        if self.hangs_no_hooks:  # torch's own forwards keep none
            return []
        found: list[Tensor] = []
        for m in self.modules:
            for holder in (m.__dict__, m._buffers):
                for value in holder.values():
                    if isinstance(value, Tensor):
                        if value.grad_fn is not None:
                            found.append(value)
                    elif value.__class__ in (list, tuple, deque):
                        found += [t for t in value if isinstance(t, Tensor) and t.grad_fn is not None]
        return found

    @cached_property
    def hangs_no_hooks(self) -> bool:
        """Whether every forward in it is torch's own, which hangs no hooks on its tensors."""
        every = nn.modules.module
        return (
            self.is_module
            and not (every._global_forward_hooks or every._global_forward_pre_hooks)
            and all(
                not isinstance(m, torch.jit.ScriptModule)
                and (m.__class__.forward.__module__ or "").startswith("torch.nn.modules")  # None of what exec has made
                and "forward" not in m.__dict__
                and not m._forward_hooks
                and not m._forward_pre_hooks
                for m in self.modules
            )
        )

    @cached_property
    def compiled(self) -> bool:
        """Whether torch.compile is at work in it."""
        return any(
            "_orig_mod" in m._modules
            or getattr(m, "_compiled_call_impl", None) is not None
            or hasattr(m.forward, "_torchdynamo_orig_callable")
            for m in self.modules
        )

    @property
    def distributed(self) -> bool:
        """Whether DDP or FSDP is at work in it, which exchange gradients between processes while they are accumulated."""
        return bool(self.wrappers)

    @cached_property
    def wrappers(self) -> list[nn.Module]:
        """The modules by which it is."""
        wrappers = (
            ("torch.nn.parallel", "DistributedDataParallel"),
            ("torch.distributed.fsdp", "FullyShardedDataParallel"),
            ("torch.distributed.fsdp", "FSDPModule"),
        )
        # Of modules that nobody has imported nobody has made one.
        kinds = tuple(kind for where, name in wrappers if (kind := getattr(sys.modules.get(where), name, None)))
        return [m for m in self.modules if isinstance(m, kinds)]

    @property
    def replicas(self) -> list[nn.parallel.DistributedDataParallel]:
        return [m for m in self.wrappers if isinstance(m, nn.parallel.DistributedDataParallel)]

    @property
    def group(self) -> Any:
        """The process group over which a wrapper in it averages gradients; None for none, or where it is not known."""
        if self.sharded:
            mesh = next((p.device_mesh for p in self.parameters if hasattr(p, "device_mesh")), None)
            return mesh.get_group() if mesh is not None and mesh.ndim == 1 else None
        return next((m.process_group for m in self.replicas), None)

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 gathers its weights for every forward and backward."""
        kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
        return any(isinstance(m, kind) for m in self.wrappers)

    @cached_property
    def exchanges(self) -> bool:
        """Whether its forwards exchange tensors between processes, so that all must make the same ones."""
        return self.sharded or any(isinstance(m, nn.SyncBatchNorm) and m.training for m in self.modules)

    def is_lazy(self) -> bool:
        return any(map(nn.parameter.is_lazy, (*self.parameters, *self.buffers)))

    def in_evaluation(self, run: Callable[[], object]) -> None:
        """A forward that gives lazy layers, or shows the scores', shapes, and leaves statistics and random state alone."""
        modes = [m.training for m in self.modules]
        self.module.eval()
        try:
            with torch.no_grad():
                run()
        finally:
            for m, training in zip(self.modules, modes, strict=True):
                m.training = training


def _lasting(function: Any) -> Any:
    """Of a function that is made anew in every step: what stays."""
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    function = getattr(function, "__code__", function)
    try:
        hash(function), ref(function)
    except TypeError:
        return type(function)
    return function


def weights_are_cached() -> bool:
    """Whether forwards share the graph of a parametrized weight (inside torch.nn.utils.parametrize.cached)."""
    return parametrize._cache_enabled > 0
