"""Logits, images and gradients for the tests of the attack's operations, and the grid these run over."""

import numpy as np
import pytest
import torch

import oracle
from layouts import FLOATS, laid_out, name

LAYOUTS = ("contiguous", "channels_last", "every second pixel", "transposed", "expanded", "misaligned")
IMPLS = ("cpu", "reference")

each_objective = pytest.mark.parametrize("objective", oracle.OBJECTIVES)
each_formulation = pytest.mark.parametrize("formulation", oracle.FORMULATIONS)
each_norm = pytest.mark.parametrize("norm", oracle.NORMS)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=name)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_impl = pytest.mark.parametrize("impl", IMPLS)


def normal(*shape, seed=0, dtype=torch.float32, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, shape)).to(dtype)


def cap(*dtypes):
    return 700.0 if torch.float64 in dtypes else 80.0


def logits(m, n, dtype=torch.float32):
    return normal(m, seed=1, dtype=dtype, scale=2), normal(n, seed=2, dtype=dtype, scale=2)


def images(m, n, *shape, dtype=torch.float32, layout="contiguous"):
    """(x, v): images inside the clip range and gradients large enough to reach its edges now and then."""
    x = [laid_out(normal(k, *shape, seed=s, dtype=dtype, scale=0.4), layout) for k, s in ((m, 3), (n, 4))]
    v = [laid_out(normal(k, *shape, seed=s, dtype=dtype), layout) for k, s in ((m, 5), (n, 6))]
    return x, v
