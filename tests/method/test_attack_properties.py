"""What holds of every attack: a batch has no order, eps = 0 moves nothing, and the attack loss falls as its slope says."""

import math

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import datgan_fast as dat
import oracle
from repeatable import repeatable


def smooth(seed):
    """A small discriminator without kinks, in float64, of images [3, 4]."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return network.double()


def batch(count, seed):
    return (torch.rand(count, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1) * 0.9


CASES = st.fixed_dictionaries(
    {
        "objective": st.sampled_from(oracle.OBJECTIVES),
        "formulation": st.sampled_from(oracle.FORMULATIONS),
        "norm": st.sampled_from(oracle.NORMS),
    }
)
SEEDS, COUNTS = st.integers(0, 10_000), st.integers(1, 5)


@repeatable(150)
@given(CASES, SEEDS, COUNTS, COUNTS, st.integers(1, 3), st.floats(0, 2), st.randoms(use_true_random=False))
def test_a_batch_has_no_order(case, seed, m, n, steps, eps, random):
    network, x, y = smooth(seed), batch(m, seed + 1), batch(n, seed + 2)
    p, q = random.sample(range(m), m), random.sample(range(n), n)
    plain = dat.adversarial_batch(network, x, y, eps=eps, steps=steps, **case)
    other = dat.adversarial_batch(network, x[p], y[q], eps=eps, steps=steps, **case)
    away = max(gap(network, x, y, case), 0)
    assume(away > 1e-6)  # next to a kink rounding decides where an image goes
    for images, order, permuted in zip(plain, (p, q), other, strict=True):
        torch.testing.assert_close(permuted, images[order], rtol=1e-7, atol=1e-7)


def gap(network, x, y, case):
    """How far the score nearest to its target is from it, which is where the attack's direction turns round."""
    logits = [oracle.array(network(t).flatten()) for t in (x, y)]
    return min(
        abs(side.difference).min() for side in oracle.attack_loss(*logits, case["objective"], case["formulation"])
    )


@repeatable(150)
@given(CASES, SEEDS, COUNTS, COUNTS, st.integers(1, 3), st.sampled_from((torch.float32, torch.float64)))
def test_no_eps_no_change(case, seed, m, n, steps, dtype):
    network, x, y = smooth(seed).to(dtype), batch(m, seed + 1).to(dtype), batch(n, seed + 2).to(dtype)
    for images, adv in zip((x, y), dat.adversarial_batch(network, x, y, eps=0.0, steps=steps, **case), strict=True):
        assert torch.equal(adv, images)
    assert torch.equal(dat.perturb(x, 1e3 * x, 0.0, norm=case["norm"]), x)


# The attack loss, with the targets it had, is a sum over images of |g(D(x)) - target|. Along delta = -eps n(grad) it changes by
# grad . delta + O(eps^2): by -eps times the sum over images of |grad|^2 (norm none), |grad| (l2), |grad|_1 (linf), and for clamp
# of grad . clamp(grad, -1, 1).
SLOPE = {
    "none": lambda g: (g * g).sum(),
    "l2": lambda g: np.sqrt((g * g).sum((1, 2))).sum(),
    "linf": lambda g: np.abs(g).sum(),
    "clamp": lambda g: (g * np.clip(g, -1, 1)).sum(),
}


def losses(network, images, clean, case):
    """The attack losses of these images, where the targets are the clean images'."""
    own, targets = ([oracle.array(network(t).flatten()) for t in both] for both in (images, clean))
    if case["formulation"] == "batch_mean":  # whose two sides move against each other's mean
        sides = [oracle.attack_loss(own[0], targets[1], **without_norm(case))[0]]
        sides += [oracle.attack_loss(targets[0], own[1], **without_norm(case))[1]]
        return np.array([side.loss for side in sides])
    found = []
    for k, side in enumerate(("real", "fake")):
        attack = oracle.attack_side(side, own[k], targets[k], targets[1 - k], **without_norm(case))
        found.append(attack.loss)
    return np.array(found)


def without_norm(case):
    return {"objective": case["objective"], "formulation": case["formulation"]}


def slopes(network, x, y, case):
    """How fast the attack losses fall, by autograd through the discriminator."""
    logits = [oracle.array(network(t).flatten()) for t in (x, y)]
    attacks = oracle.attack_loss(*logits, **without_norm(case))
    found = []
    for images, attack in zip((x, y), attacks, strict=True):
        leaf = images.clone().requires_grad_()
        (v,) = torch.autograd.grad(network(leaf).sum(), leaf)
        found.append(SLOPE[case["norm"]](attack.coefficient[:, None, None] * oracle.array(v)))
    return np.array(found)


@repeatable(200)
@given(CASES, SEEDS, COUNTS, COUNTS)
def test_the_attack_loss_falls_as_its_slope_says(case, seed, m, n):
    network, x, y = smooth(seed), batch(m, seed + 1), batch(n, seed + 2)
    assume(gap(network, x, y, case) > 1e-3 and kink(network, x, y, case) > 1e-3)
    slope, before = slopes(network, x, y, case), losses(network, (x, y), (x, y), case)
    errors = []
    for eps in (1e-4, 1e-5):
        adv = dat.adversarial_batch(network, x, y, eps=eps, **case)
        after = losses(network, adv, (x, y), case)
        assert (after <= before).all()  # a small eps never raises it
        errors.append(np.abs(after - (before - eps * slope)))
    assert (errors[0] <= 0.03 * 1e-4 * slope + 1e-12).all()
    assert (errors[1] <= 0.05 * errors[0] + 1e-12).all()  # of second order: a hundredth, not a tenth


def kink(network, x, y, case):
    """How far scores are from where hinge turns."""
    if case["objective"] != "hinge":
        return math.inf
    logits = torch.cat([network(t).flatten() for t in (x, y)])
    return (logits.abs() - 1).abs().min().item()
