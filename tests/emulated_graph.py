"""CUDA graphs on the CPU: records every operation with the tensors it touched, and does the same again.

As in a CUDA graph, replaying runs no Python: numbers are those of the recording, tensors are those addresses, results
land in the recorded results, and reading a tensor on the host cannot be recorded. A capture that was broken so leaves
undone what torch leaves undone: its memory pool stays open, the default generator waits for the capture's end, and the
stream is whichever the code left current.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datgan_fast.training import cuda_graph

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}
RANDOM = ("rand", "randn", "randint")


class Reading(TorchDispatchMode):
    """torch.cuda.set_sync_debug_mode("error")"""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation._schema.name in READS:
            raise RuntimeError("called a synchronizing CUDA operation")
        return operation(*args, **(kwargs or {}))


class Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []
        self.before = {}  # storage: its bytes when the recording first saw it, None if it made it
        self.broken = False

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation._schema.name in READS:
            self.broken = True
            raise RuntimeError(f"operation not permitted when stream is capturing: {operation}")
        kwargs = kwargs or {}
        for t in tensors_in((args, kwargs)):  # schemas do not tell: batch_norm's keeps silent about running statistics
            if (memory := t.untyped_storage())._cdata not in self.before:
                self.before[memory._cdata] = memory, memory.clone()
        results = operation(*args, **kwargs)
        for t in tensors_in(results):
            self.before.setdefault(t.untyped_storage()._cdata, None)
        self.calls.append((operation, args, kwargs, tensors_in(results)))
        return results

    def undo(self):
        """A capture does nothing; the recording did."""
        for memory, value in filter(None, self.before.values()):
            memory.copy_(value)


def tensors_in(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass


class Cuda:
    """Stands in for torch.cuda in datgan_fast.training.cuda_graph, and for the functions of torch._C that end a pool."""

    Stream = Stream

    def __init__(self):
        self.default = self.current = Stream()
        self.pools = set()  # that take allocations
        self.held = set()  # that nobody will release
        self.capturing = None  # the graph
        self.generator_captures = False
        self.captures = 0
        self._reading = None

    def as_it_was(self):
        undone = self.pools or self.held or self.capturing or self.generator_captures or self._reading
        return self.current is self.default and not undone

    def current_stream(self, device):
        return self.current

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def device(self, device):
        return nullcontext()

    def synchronize(self, device):
        pass

    def empty_cache(self):
        pass

    def get_sync_debug_mode(self):
        return 2 if self._reading else 0

    def set_sync_debug_mode(self, mode):
        if mode in (2, "error"):
            self._reading = Reading()
            self._reading.__enter__()
        elif self._reading:
            self._reading.__exit__(None, None, None)
            self._reading = None

    def get_rng_state(self, device):
        return torch.get_rng_state()

    def set_rng_state(self, state, device):
        torch.set_rng_state(state)

    def graph_pool_handle(self):
        return 0, id(object())

    def end_pool(self, index, pool):
        if pool not in self.pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.pools.remove(pool)

    def CUDAGraph(self):  # noqa: N802
        return Graph(self)


class Graph:
    """torch.cuda.CUDAGraph, with the order of its C++ code."""

    def __init__(self, cuda):
        self._cuda = cuda

    def capture_begin(self, pool=None):
        cuda = self._cuda
        if cuda.capturing or cuda.current is cuda.default:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream, one at a time")
        self._pool = pool or cuda.graph_pool_handle()
        cuda.generator_captures = True
        cuda.pools.add(self._pool)
        cuda.capturing = self
        cuda.captures += 1
        self._random = torch.get_rng_state()
        self._recording = Recording()
        self._recording.__enter__()

    def capture_end(self):
        cuda = self._cuda
        self._recording.__exit__(None, None, None)
        self._recording.undo()
        torch.set_rng_state(self._random)
        cuda.capturing = None
        if self._recording.broken:  # cudaStreamEndCapture fails, and nothing below it is done
            cuda.held.add(self._pool)
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        cuda.end_pool(0, self._pool)
        cuda.generator_captures = False

    def reset(self):
        pass

    @torch.no_grad()
    def replay(self):
        for operation, args, kwargs, results in self._recording.calls:
            for new, old in zip(tensors_in(operation(*args, **kwargs)), results, strict=True):
                if new.data_ptr() != old.data_ptr():
                    old.copy_(new)


@pytest.fixture
def graphs_on_the_cpu(monkeypatch):
    """cuda_graph.capture works on CPU tensors."""
    cuda = Cuda()
    monkeypatch.setattr(cuda_graph, "cuda", cuda)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end_pool, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda index, pool: cuda.held.remove(pool), raising=False)
    monkeypatch.setattr("datgan_fast.method.waiting.looking_waits", lambda device: True)
    for name in RANDOM:
        monkeypatch.setattr(torch, name, _drawing(cuda, getattr(torch, name)))
    return cuda


def _drawing(cuda, draw):
    def drawn(*args, **kwargs):
        if cuda.generator_captures and not cuda.capturing and kwargs.get("generator") is None:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        return draw(*args, **kwargs)

    return drawn
