"""The formulas of direct adversarial training in Triton, the twins of csrc/formulas.h.

A change to the method's mathematics is made here and in datgan_fast/method/formulas.py; the other
kernels only move data. `objective`, `formulation`, `norm` and `side` are compile-time strings with the public names;
`t` is a float32 or float64 tensor of logits. Every formula is stable for logits of any finite size.
"""

import triton
import triton.language as tl

# The names that the formulas below are for; datgan_fast compares them with its own.
OBJECTIVES = ("vanilla", "fgan", "wasserstein", "hinge", "least_squares")
FORMULATIONS = ("eq10", "alg1", "batch_mean")
NORMS = ("none", "l2", "linf", "clamp")


@triton.jit
def sign(t):
    return (t > 0).to(t.dtype) - (t < 0).to(t.dtype)


@triton.jit
def log1p(t):
    """log(1 + t) for t >= 0. tl.log(1 + t) alone loses a small t; the interpreter lacks libdevice's log1p."""
    u = 1 + t
    return tl.where(u == 1, t, tl.log(u) * (t / tl.where(u == 1, 1.0, u - 1)))


@triton.jit
def softplus(t):
    return tl.maximum(t, 0.0) + log1p(tl.exp(-tl.abs(t)))


@triton.jit
def sigmoid(t):
    e = tl.exp(-tl.abs(t))
    return tl.where(t >= 0, 1.0, e) / (1 + e)


# Branches: a row of the objectives' table each, chosen when the kernel is compiled.
@triton.jit
def g(t, objective: tl.constexpr, side: tl.constexpr):
    """The objective's term, elementwise: g1 for real, g2 for generated images."""
    # fgan's exp(-t) stops growing at the cap: sums over thousands of images then stay finite.
    cap: tl.constexpr = 700.0 if t.dtype == tl.float64 else 80.0
    if objective == "vanilla":
        value = -softplus(-t) if side == "real" else -softplus(t)
    elif objective == "fgan":
        value = -tl.exp(tl.minimum(-t, cap)) if side == "real" else 1 - t
    elif objective == "wasserstein":
        value = t if side == "real" else -t
    elif objective == "hinge":
        value = tl.minimum(t - 1, 0.0) if side == "real" else tl.minimum(-t - 1, 0.0)
    else:
        tl.static_assert(objective == "least_squares")
        value = -(t - 1) * (t - 1) if side == "real" else -t * t
    return value


# Branches: a row of the objectives' table each, chosen when the kernel is compiled.
@triton.jit
def g_prime(t, objective: tl.constexpr, side: tl.constexpr):
    """d g / d t"""
    cap: tl.constexpr = 700.0 if t.dtype == tl.float64 else 80.0
    if objective == "vanilla":
        value = sigmoid(-t) if side == "real" else -sigmoid(t)
    elif objective == "fgan":
        value = tl.where(-t <= cap, tl.exp(tl.minimum(-t, cap)), 0.0) if side == "real" else tl.zeros_like(t) - 1
    elif objective == "wasserstein":
        value = tl.zeros_like(t) + 1 if side == "real" else tl.zeros_like(t) - 1
    elif objective == "hinge":
        value = (t < 1).to(t.dtype) if side == "real" else -(t > -1).to(t.dtype)
    else:
        tl.static_assert(objective == "least_squares")
        value = -2 * (t - 1) if side == "real" else -2 * t
    return value


@triton.jit
def objective_weight(t, factor, floor, objective: tl.constexpr, side: tl.constexpr):
    """With what a logit goes backward: `factor` times g', at least `floor` in magnitude."""
    weight = factor * g_prime(t, objective, side)
    return tl.where(tl.abs(weight) < floor, tl.where(weight < 0, -floor, floor), weight)


# The attack loss of one side compares each image's score with a target made of the other batch:
#   eq10        |g(t_i) - mean_j g(o_j)|               g of the image's own side    (Eq. 9, 10)
#   alg1        |h(t_i) - h(mean_j o_j)|               h is g of the opposite side  (Algorithm 1, lines 6-7)
#   batch_mean  |mean_i t_i - mean_j o_j|, one scalar  raw logits                   (the released code)


@triton.jit
def target_term(other, objective: tl.constexpr, formulation: tl.constexpr, side: tl.constexpr):
    """What is averaged over the other batch's logits to make the target."""
    return g(other, objective, side) if formulation == "eq10" else other


@triton.jit
def target_of_mean(mean, objective: tl.constexpr, formulation: tl.constexpr, side: tl.constexpr):
    opposite: tl.constexpr = "fake" if side == "real" else "real"
    return g(mean, objective, opposite) if formulation == "alg1" else mean


@triton.jit
def attack_term(
    logit, target, own_mean, own_count, objective: tl.constexpr, formulation: tl.constexpr, side: tl.constexpr
):
    """(loss, d loss / d logit) of each image; the loss of batch_mean is the whole batch's.

    own_mean and own_count are those of the image's own batch, of all processes; only batch_mean needs them.
    """
    opposite: tl.constexpr = "fake" if side == "real" else "real"
    if formulation == "batch_mean":
        difference = own_mean - target + tl.zeros_like(logit)
        slope = tl.zeros_like(logit) + 1 / own_count.to(logit.dtype)
    elif formulation == "eq10":
        difference = g(logit, objective, side) - target
        slope = g_prime(logit, objective, side)
    else:
        tl.static_assert(formulation == "alg1")
        difference = g(logit, objective, opposite) - target
        slope = g_prime(logit, objective, opposite)
    return tl.abs(difference), sign(difference) * slope


@triton.jit
def unweighted(coefficient, weight):
    """The coefficient for an input gradient that already carries a weight: v_i = weight * d D / d x_i."""
    return tl.where(weight == 0, 0.0, coefficient / tl.where(weight == 0, 1.0, weight))


@triton.jit
def unweighted_norm(v_norm, weight):
    """||d D / d x_i|| from ||v_i||; of a weight of 0 it is not known."""
    return tl.where(weight == 0, float("nan"), v_norm / tl.where(weight == 0, 1.0, tl.abs(weight)))


# x_adv = clip(x - step * direction). The attack gradient is coefficient * v and its norm |coefficient| * v_norm, so
# that the image is read once.


@triton.jit
def direction(v, coefficient, norm: tl.constexpr):
    if norm == "linf":
        along = sign(v)
    elif norm == "clamp":
        along = clip(coefficient * v, -1.0, 1.0)
    else:
        along = v
    return along


@triton.jit
def step_size(eps, coefficient, v_norm, norm: tl.constexpr):
    if norm == "linf":
        step = eps * sign(coefficient)
    elif norm == "clamp":
        step = eps
    else:
        step = eps * coefficient
        if norm == "l2":
            length = tl.abs(coefficient) * v_norm
            step = step / tl.where(length < 1e-12, 1e-12, length)  # a NaN stays one
        largest: tl.constexpr = 1e300 if coefficient.dtype == tl.float64 else 3e38  # 0 * step must not become NaN
        step = tl.where(step > largest, largest, tl.where(step < -largest, -largest, step))
    return step


@triton.jit
def clip(value, low, high):
    """NaN passes through, as in torch.clamp."""
    return tl.where(value < low, low, tl.where(value > high, high, value))
