"""adversarial_batch against Algorithm 1 in float64 autograd, and the discriminator that it leaves as it was."""

import pytest
import torch

import datgan_fast as dat
from algorithm1 import ROUNDING, M, algorithm1, batches, each_discriminator, relative_error
from networks import build, images, steeper, steepness
from oracle import FORMULATIONS, NORMS

pytestmark = pytest.mark.usefixtures("one_thread", "merging")


@each_discriminator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_adversarial_batch(name, dtype):
    discriminator = build(name, dtype)
    torch.manual_seed(7)
    adv = dat.adversarial_batch(discriminator, *batches(dtype), eps=1.0)
    double = build(name, torch.float64)
    torch.manual_seed(7)
    expected = algorithm1(double, *batches(), power_iteration=False).adv
    for actual, value, x in zip(adv, expected, batches(dtype), strict=True):
        assert (actual.shape, actual.dtype, actual.requires_grad) == (x.shape, dtype, False)
        assert relative_error(actual - x, value - x.double()) < 10 * ROUNDING[dtype]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_adversarial_batch_of_several_steps(formulation, norm):
    steep = steepness(norm)
    options = {
        "eps": 0.8 / steep,
        "alpha": 0.3 / steep,
        "steps": 4,
        "formulation": formulation,
        "norm": norm,
        "clip_max": 0.9 / steep,
    }
    x = [t / steep for t in batches(torch.float64)]
    adv = dat.adversarial_batch(steeper(build("conv", torch.float64), steep), *x, **options)
    expected = algorithm1(steeper(build("conv", torch.float64), steep), *x, **options).adv
    for a, b in zip(adv, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    if norm == "clamp":
        free = algorithm1(steeper(build("conv", torch.float64), steep), *x, **options | {"norm": "none"}).adv
        assert not any(map(torch.equal, free, expected))


@pytest.mark.parametrize(("norm", "order", "eps"), [("l2", 2, 0.5), ("linf", float("inf"), 0.05)])
@pytest.mark.parametrize("steps", [1, 5])
def test_random_start_stays_in_the_ball(norm, order, eps, steps):
    discriminator = build("conv")
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(
            dat.adversarial_batch(discriminator, *batches(), eps=eps, norm=norm, steps=steps, random_start=True)
        )
    for adv, x in zip(draws[0], batches(), strict=True):
        sizes = (adv - x).flatten(1).norm(dim=1, p=order)
        assert sizes.max() <= eps * (1 + 1e-5)
        assert sizes.min() > 0
        assert adv.abs().max() <= 1
    assert torch.equal(draws[0][0], draws[1][0])
    assert not torch.equal(draws[0][0], draws[2][0])


def test_the_attack_closes_the_gap():
    """One small step moves each batch's scores towards the other batch's mean."""
    discriminator = build("conv")
    x = batches()
    adv = dat.adversarial_batch(discriminator, *x, eps=1e-3, objective="wasserstein")
    with torch.no_grad():
        r, f = (discriminator(t).flatten() for t in x)
        r_adv, f_adv = (discriminator(t).flatten() for t in adv)
    assert ((r_adv - f.mean()).abs() < (r - f.mean()).abs()).all()
    assert ((f_adv - r.mean()).abs() < (f - r.mean()).abs()).all()


@each_discriminator
@pytest.mark.parametrize("steps", [1, 3])
def test_adversarial_batch_leaves_no_trace(name, steps):
    discriminator = build(name)
    for p in discriminator.parameters():
        p.grad = torch.ones_like(p)
    before = {key: value.clone() for key, value in discriminator.state_dict().items()}
    modes = [m.training for m in discriminator.modules()]
    random_state = torch.get_rng_state()
    dat.adversarial_batch(discriminator, *batches(), eps=1.0, steps=steps)
    assert all(torch.equal(value, before[key]) for key, value in discriminator.state_dict().items())
    assert all((p.grad == 1).all() for p in discriminator.parameters())
    assert [m.training for m in discriminator.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)


@each_discriminator
def test_a_graph_made_before_the_attack_survives_it(name):
    """A user's own loop: scores first, then the attack, then one backward of everything."""
    discriminator = build(name)
    score = discriminator(images(M, 1)).sum()
    dat.adversarial_batch(discriminator, *batches(), eps=1.0)
    score.backward()


def test_buffers_come_back_after_an_exception():
    discriminator = build("BatchNorm")
    before = [b.clone() for b in discriminator.buffers()]

    def fail(module, inputs, output):
        raise KeyError("in the user's code")

    with discriminator.register_forward_hook(fail), pytest.raises(KeyError):
        dat.adversarial_batch(discriminator, *batches(), eps=1.0)
    assert all(map(torch.equal, before, discriminator.buffers()))
