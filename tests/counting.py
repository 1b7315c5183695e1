"""Counts what a piece of code computes, by kind and in multiplications, as it is dispatched: no clock is needed."""

from collections import Counter
from math import prod

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}


class Convolutions(TorchDispatchMode):
    """Inside this context convolutions are counted, and products of tensors that are nothing but zeros.

    Attributes:
        work: multiplications by kind: "forward", and of backwards "input" and "weight".
        calls: how many operations of each kind; one call of convolution_backward may be both kinds.
        on_zeros: convolutions and matrix products of which a factor was zero everywhere, by name.
    """

    def __init__(self):
        super().__init__()
        self.work, self.calls, self.on_zeros = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is aten.convolution.default:
            x, w, _, _, _, _, transposed = args[:7]
            self._count("forward", x if transposed else result, w)
            self._look(function, x, w)
        elif function is aten.convolution_backward.default:
            gradient, x, w, transposed = *args[:3], args[7]
            for kind, wanted in zip(("input", "weight"), args[10], strict=False):
                if wanted:
                    self._count(kind, x if transposed else gradient, w)
            # the input's gradient is a product of the gradient and the weight, the weight's one of the gradient and the input
            self._look(function, gradient, *([w] if args[10][0] else []), *([x] if args[10][1] else []))
        elif function in PRODUCTS:
            self._look(function, *args[-2:])
        return result

    def total(self):
        return sum(self.work.values())

    def _count(self, kind, small, w):
        """`small`: the side on which each element is a product with all the weights of a channel."""
        self.work[kind] += small.numel() * prod(w.shape[1:])
        self.calls[kind] += 1

    def _look(self, function, *factors):
        if not all(f.any() for f in factors):
            self.on_zeros[function.overloadpacket.__name__] += 1


def forward_work(network, *x):
    """Multiplications of the convolutions in one forward of each x: the unit in which steps are counted."""
    with torch.no_grad(), Convolutions() as counted:
        for images in x:
            network(images)
    return counted.total()
