"""A mode in which reading a tensor on the host is an error, as it would be a wait on a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoHostReads(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("the host reads a tensor")
        return function(*args, **(kwargs or {}))
