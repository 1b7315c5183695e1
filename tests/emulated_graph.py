"""A CUDA graph on the CPU: records every operation with the tensors it touched, and does the same again.

As in a CUDA graph, replaying runs no Python: numbers are those of the recording, tensors are those addresses, results
land in the recorded results, and reading a tensor on the host cannot be recorded.
"""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datgan_fast import cuda_graph, optimizers

READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}


class Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []
        self.before = {}  # storage: its bytes when the recording first saw it, None if it made it

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation._schema.name in READS:
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


def tensors_in(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


class Recorder:
    """Stands in for datgan_fast.cuda_graph.Recorder."""

    def __init__(self, device):
        pass

    def warm_up(self, run):
        for _ in range(cuda_graph.WARM_UP):
            run()

    @torch.no_grad()
    def record(self, run):
        random = torch.get_rng_state()
        recording = Recording()
        try:
            with torch.enable_grad(), recording:
                run()
        finally:  # a capture does nothing; the recording did
            for memory, value in filter(None, recording.before.values()):
                memory.copy_(value)
            torch.set_rng_state(random)
        return lambda: self.replay(recording.calls)

    @torch.no_grad()
    def replay(self, calls):
        for operation, args, kwargs, results in calls:
            for new, old in zip(tensors_in(operation(*args, **kwargs)), results, strict=True):
                if new.data_ptr() != old.data_ptr():
                    old.copy_(new)

    def random_state(self):
        return torch.get_rng_state()

    def set_random_state(self, state):
        torch.set_rng_state(state)


@pytest.fixture
def graphs_on_the_cpu(monkeypatch):
    """cuda_graph.capture works on CPU tensors, and RMSprop takes its capturable path there."""
    monkeypatch.setattr(cuda_graph, "Recorder", Recorder)
    monkeypatch.setattr(optimizers, "_capturable", lambda device: True)
    monkeypatch.setattr(sys.modules["torch.optim.rmsprop"], "_get_capturable_supported_devices", lambda *_: ["cpu"])
