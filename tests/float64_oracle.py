"""The attack in float64 numpy, written from the paper's formulas and from nothing in the package."""

from __future__ import annotations

import numpy as np
import torch

OBJECTIVES = ("vanilla", "fgan", "wasserstein", "hinge", "least_squares")
FORMULATIONS = ("eq10", "alg1", "batch_mean")
NORMS = ("none", "l2", "linf")

# rtol and atol of a result stored in this dtype: a few units in the last place
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-6, 2e-6),
    torch.float16: (1e-3, 1e-4),
    torch.bfloat16: (8e-3, 1e-3),
}


def as_float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def g1(objective, t):
    return {
        "vanilla": lambda: -np.logaddexp(0, -t),
        "fgan": lambda: -np.exp(-t),
        "wasserstein": lambda: t,
        "hinge": lambda: np.minimum(0, t - 1),
        "least_squares": lambda: -((t - 1) ** 2),
    }[objective]()


def g2(objective, t):
    return {
        "vanilla": lambda: -np.logaddexp(0, t),
        "fgan": lambda: 1 - t,
        "wasserstein": lambda: -t,
        "hinge": lambda: np.minimum(0, -t - 1),
        "least_squares": lambda: -(t**2),
    }[objective]()


def slope1(objective, t):
    return {
        "vanilla": lambda: 1 / (1 + np.exp(t)),
        "fgan": lambda: np.exp(-t),
        "wasserstein": lambda: np.ones_like(t),
        "hinge": lambda: (t < 1).astype(float),
        "least_squares": lambda: -2 * (t - 1),
    }[objective]()


def slope2(objective, t):
    return {
        "vanilla": lambda: -1 / (1 + np.exp(-t)),
        "fgan": lambda: -np.ones_like(t),
        "wasserstein": lambda: -np.ones_like(t),
        "hinge": lambda: -(t > -1).astype(float),
        "least_squares": lambda: -2 * t,
    }[objective]()


def attack(real, fake, objective, formulation, reference_real=None, reference_fake=None):
    """(losses, coefficients) of the real and of the generated side."""
    logits = as_float64(real), as_float64(fake)
    references = [
        own if given is None else as_float64(given)
        for own, given in zip(logits, (reference_real, reference_fake), strict=True)
    ]
    losses, coefficients = [], []
    for t, own, other, g, slope, opposite, opposite_slope in (
        (logits[0], references[0], references[1], g1, slope1, g2, slope2),
        (logits[1], references[1], references[0], g2, slope2, g1, slope1),
    ):
        if not (len(t) and len(own) and len(other)):
            losses.append(0.0)
            coefficients.append(np.zeros_like(t))
            continue
        if formulation == "eq10":
            difference = g(objective, t) - g(objective, other).mean()
            coefficients.append(np.sign(difference) * slope(objective, t))
        elif formulation == "alg1":
            difference = opposite(objective, t) - opposite(objective, other.mean())
            coefficients.append(np.sign(difference) * opposite_slope(objective, t))
        else:
            difference = own.mean() - other.mean()
            coefficients.append(np.full_like(t, np.sign(difference) / len(own)))
        losses.append(np.abs(difference).sum())
    return losses, coefficients


def perturbed(x, v, coefficient, eps, norm, clip_min, clip_max, weight=None):
    """(adv, grad, norms of v) of one side."""
    x, v = as_float64(x), as_float64(v)
    norms = np.sqrt((v.reshape(len(v), -1) ** 2).sum(1)) if len(v) else np.zeros(0)
    coefficient = np.broadcast_to(coefficient, len(x)).astype(float)
    if weight is not None:
        w = as_float64(weight)
        coefficient = np.where(w == 0, 0.0, coefficient / np.where(w == 0, 1.0, w))
    column = (-1, *[1] * (x.ndim - 1))
    grad = coefficient.reshape(column) * v
    direction = grad
    if norm == "linf":
        direction = np.sign(grad)
    elif norm == "l2":
        direction = grad / np.maximum(np.abs(coefficient) * norms, 1e-12).reshape(column)
    low, high = -np.inf if clip_min is None else clip_min, np.inf if clip_max is None else clip_max
    return np.clip(x - eps * direction, low, high), grad, norms


def assert_close(result: torch.Tensor, expected, what: str, loose: float = 1.0) -> None:
    rtol, atol = TOLERANCE[result.dtype]
    np.testing.assert_allclose(as_float64(result), expected, rtol=rtol * loose, atol=atol * loose, err_msg=what)
