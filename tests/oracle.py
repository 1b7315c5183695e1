"""Direct adversarial training in numpy float64, from the paper's formulas; imports nothing of ours.

Documented choices: sign(0) = 0; a side whose own or other batch is empty has loss 0 and does not move; fgan's
exp(-t) stops growing at `cap` (80 where the library computes in float32, 700 in float64): slope 0 beyond.
"""

from typing import NamedTuple

import numpy as np
import torch

OBJECTIVES = ("vanilla", "fgan", "wasserstein", "hinge", "least_squares")
FORMULATIONS = ("eq10", "alg1", "batch_mean")
NORMS = ("none", "l2", "linf", "clamp")

# (rtol, atol) of arithmetic in this dtype; a store to a half type may round once on top of it.
TOLERANCE = {torch.float64: (1e-12, 1e-12), torch.float32: (2e-6, 1e-6)}


def array(tensor):
    return tensor.detach().double().cpu().numpy()


def assert_close(actual, expected, what="result", *, double=True, loose=1.0, half_ulps=0.5):
    """`double`: a float64 result has nothing of float32 in it. `loose` multiplies rtol. `half_ulps`: how many units in
    the last place a store to a half type may be off."""
    rtol, atol = TOLERANCE[torch.float64 if double and actual.dtype == torch.float64 else torch.float32]
    values, expected = array(actual), np.broadcast_to(expected, actual.shape)
    allowed = atol + loose * rtol * np.abs(expected)
    if actual.dtype.itemsize == 2:
        limits = torch.finfo(actual.dtype)
        exponent = np.frexp(np.abs(expected) + allowed)[1] - 1
        allowed = allowed + half_ulps * limits.eps * np.maximum(2.0**exponent, limits.smallest_normal)
    wrong = ~(np.abs(values - expected) <= allowed)  # NaN, what an element never written holds, is wrong too
    assert not wrong.any(), (
        f"{what}: {wrong.sum()} of {wrong.size} wrong, first at {np.argwhere(wrong)[0].tolist()}: "
        f"{values[wrong][0]} instead of {expected[wrong][0]}"
    )


def log_sigmoid(t):
    return -np.logaddexp(0, -t)


def sigmoid(t):
    return np.exp(log_sigmoid(t))


def terms(objective, cap):
    """(g1, g2, g1', g2') as functions of a float64 array."""
    return {
        "vanilla": (
            lambda t: log_sigmoid(t),
            lambda t: log_sigmoid(-t),
            lambda t: sigmoid(-t),
            lambda t: -sigmoid(t),
        ),
        "fgan": (
            lambda t: -np.exp(np.minimum(-t, cap)),
            lambda t: 1 - t,
            lambda t: np.where(-t <= cap, np.exp(np.minimum(-t, cap)), 0.0),
            lambda t: -np.ones_like(t),
        ),
        "wasserstein": (lambda t: t, lambda t: -t, np.ones_like, lambda t: -np.ones_like(t)),
        "hinge": (
            lambda t: np.minimum(0, t - 1),
            lambda t: np.minimum(0, -t - 1),
            lambda t: (t < 1) * 1.0,
            lambda t: (t > -1) * -1.0,
        ),
        "least_squares": (
            lambda t: -((t - 1) ** 2),
            lambda t: -(t**2),
            lambda t: -2 * (t - 1),
            lambda t: -2 * t,
        ),
    }[objective]


class Attack(NamedTuple):
    loss: float
    coefficient: np.ndarray  # d loss / d logit_i
    difference: np.ndarray  # score - target, whose sign is taken


def attack_side(side, t, own, other, objective, formulation, cap=80.0):
    """The attack on one side's logits t; own and other are the batches whose means are referred to."""
    if 0 in (t.size, own.size, other.size):
        return Attack(0.0, np.zeros_like(t), np.ones_like(t))
    g1, g2, slope1, slope2 = terms(objective, cap)
    if formulation == "batch_mean":
        difference = own.mean() - other.mean()
        return Attack(abs(difference), np.full_like(t, np.sign(difference) / own.size), np.array([difference]))
    first = (side == "real") == (formulation == "eq10")  # eq10 scores real images by g1, alg1 by g2
    g, slope = (g1, slope1) if first else (g2, slope2)
    target = g(other).mean() if formulation == "eq10" else g(other.mean())
    difference = g(t) - target
    return Attack(np.abs(difference).sum(), np.sign(difference) * slope(t), difference)


def attack_loss(real, fake, objective, formulation, target_real=None, target_fake=None, cap=80.0):
    """(Attack on real, Attack on fake)."""
    own_real = real if target_real is None else target_real
    own_fake = fake if target_fake is None else target_fake
    return (
        attack_side("real", real, own_real, own_fake, objective, formulation, cap),
        attack_side("fake", fake, own_fake, own_real, objective, formulation, cap),
    )


def column(values, images):
    return values.reshape(-1, *[1] * (images.ndim - 1))


def image_norm(x):
    return np.sqrt((x**2).reshape(len(x), int(np.prod(x.shape[1:]))).sum(1))


def direction(grad, norm):
    if norm == "l2":
        return grad / column(np.maximum(image_norm(grad), 1e-12), grad)
    if norm == "clamp":
        return np.clip(grad, -1, 1)
    return np.sign(grad) if norm == "linf" else grad


def clip(x, low, high):
    return np.minimum(np.maximum(x, -np.inf if low is None else low), np.inf if high is None else high)


def perturb(x, grad, eps, norm="none", low=-1.0, high=1.0):
    return clip(x - eps * direction(grad, norm), low, high)


def attack_step(
    x,
    v,
    logits,
    eps,
    objective,
    formulation,
    norm,
    low=-1.0,
    high=1.0,
    targets=(None, None),
    weights=(1, 1),
    cap=80.0,
):
    """Pairs (real, fake) in; (adv, grad, loss), each a pair, out. v_i is weights_i times d D(x_i) / d x_i."""
    attacks = attack_loss(*logits, objective, formulation, *targets, cap=cap)
    grads = []
    for attack, gradient, weight in zip(attacks, v, weights, strict=True):
        weight = np.broadcast_to(weight, attack.coefficient.shape)
        factor = np.where(weight == 0, 0, attack.coefficient / np.where(weight == 0, 1, weight))
        grads.append(column(factor, gradient) * gradient)
    adv = [perturb(images, grad, eps, norm, low, high) for images, grad in zip(x, grads, strict=True)]
    return adv, grads, [attack.loss for attack in attacks]


class LogitTerms(NamedTuple):
    weights: list[np.ndarray]
    sums: np.ndarray  # the loss, mean r - mean f, the attack losses real and fake
    coefficients: list[np.ndarray]


def logit_terms(real, fake, weight, floor, objective, formulation, cap=80.0):
    """Weights are weight * d loss / d logits of the loss -(mean g1(r) + mean g2(f)), none smaller than floor / m."""
    g1, g2, slope1, slope2 = terms(objective, cap)
    weights, loss, wasserstein = [], 0.0, 0.0
    for t, g, slope, sign in ((real, g1, slope1, 1), (fake, g2, slope2, -1)):
        w = -weight * slope(t) / max(t.size, 1)
        least = floor / max(t.size, 1)
        weights.append(np.where(np.abs(w) < least, np.where(w < 0, -least, least), w))
        if t.size:
            loss -= g(t).mean()
            wasserstein += sign * t.mean()
    attacks = attack_loss(real, fake, objective, formulation, cap=cap)
    sums = np.array([loss, wasserstein, *(attack.loss for attack in attacks)])
    return LogitTerms(weights, sums, [attack.coefficient for attack in attacks])
