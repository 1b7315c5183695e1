"""The Lipschitz penalties against their formulas in float64: closed forms, and the same draws by hand."""

import math

import pytest
import torch
from torch import nn

from datgan_fast.method.penalties import adversarial_lipschitz, gradient_penalty, r1, r2, total
from datgan_fast.method.penalty import as_written
from networks import DISCRIMINATORS, build, images

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = {
    "gp": gradient_penalty(),
    "lp": gradient_penalty(one_sided=True),
    "alp": adversarial_lipschitz(),
    "r1": r1(),
    "r2": r2(),
}
each_penalty = pytest.mark.parametrize("penalty", ALL.values(), ids=ALL)


def linear(*weights, bias=0.3):
    """D(x) = w.x + b in float64, whose input gradient is w everywhere."""
    layer = nn.Linear(len(weights), 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
        layer.bias.fill_(bias)
    return layer


class Quadratic(nn.Module):
    """D(x) = c |x|^2 / 2, whose input gradient is c x: its norm tells where D was asked."""

    def __init__(self, c=1.0):
        super().__init__()
        self.c = nn.Parameter(torch.tensor(c, dtype=torch.float64))

    def forward(self, x):
        return self.c * x.flatten(1).square().sum(1) / 2


def points(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def random_points(count, seed, features=5):
    generator = torch.Generator().manual_seed(seed)
    return 1.6 * torch.rand(count, features, generator=generator, dtype=torch.float64) - 0.8


# closed forms


@pytest.mark.parametrize(("weights", "norm"), [((3.0, 4.0), 5.0), ((0.3, 0.4), 0.5)])
def test_linear_discriminators(weights, norm):
    """GP pulls the norm to 1 from both sides, LP from above only, R1 to 0; the norm's gradient is w / |w|."""
    x, y = points([0.1, 0.2], [0.3, -0.4], [0.5, 0.6]), points([-0.2, 0.1], [0.0, 0.7], [0.2, 0.2])
    above = max(0.0, norm - 1)
    w = torch.tensor([weights], dtype=torch.float64)
    for penalty, value, slope in (
        (gradient_penalty(10), 10 * (norm - 1) ** 2, 20 * (norm - 1)),
        (gradient_penalty(7, one_sided=True), 7 * above**2, 14 * above),
        (r1(4), 2 * norm**2, 4 * norm),
        (r2(4), 2 * norm**2, 4 * norm),
    ):
        discriminator = linear(*weights)
        result = penalty(discriminator, x, y)
        result.backward()
        assert result.shape == ()
        torch.testing.assert_close(result.detach(), torch.tensor(value, dtype=torch.float64))
        torch.testing.assert_close(discriminator.weight.grad, slope * w / norm)
        assert discriminator.bias.grad is None or not discriminator.bias.grad.any()


@pytest.mark.parametrize(("penalty", "side"), [(r1(6.0), 0), (r2(6.0), 1)])
def test_zero_centred_penalties_look_at_one_side_only(penalty, side):
    discriminator = Quadratic(2.0)
    x = random_points(4, 0), random_points(3, 1)
    result = penalty(discriminator, *x)
    result.backward()
    squares = x[side].square().sum(1).mean()
    torch.testing.assert_close(result.detach(), 3.0 * 4.0 * squares)
    torch.testing.assert_close(discriminator.c.grad, 3.0 * 4.0 * squares)


def test_norms_are_per_image():
    """Images of gradient norm 1, 3 and 0.5: the norm over the whole batch would be 3.2."""
    x = points([1.0, 0.0], [0.0, 3.0], [0.3, 0.4])
    expected = 10 * torch.tensor([0.0, 4.0, 0.25], dtype=torch.float64)
    for penalty, value in (
        (gradient_penalty(), expected.mean()),
        (gradient_penalty(one_sided=True), expected[:2].sum() / 3),
    ):
        torch.testing.assert_close(penalty(Quadratic(), x, x).detach(), value)


# the draws


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize(("m", "n"), [(5, 5), (5, 3), (2, 4), (1, 1)])
def test_gradient_penalty_draws_one_alpha_per_image(one_sided, m, n):
    """Of unequal batches the first min(m, n) images are paired; alpha weighs the real one."""
    x, y = random_points(m, 0), random_points(n, 1)
    discriminator = Quadratic(1.7)
    torch.manual_seed(5)
    result = gradient_penalty(10, one_sided)(discriminator, x, y)
    result.backward()
    torch.manual_seed(5)
    alpha = torch.rand(min(m, n), dtype=torch.float32).double()
    assert len(alpha.unique()) == min(m, n)
    length = (alpha[:, None] * x[: min(m, n)] + (1 - alpha)[:, None] * y[: min(m, n)]).norm(dim=1)
    excess = 1.7 * length - 1
    if one_sided:
        excess = excess.clamp(min=0)
    torch.testing.assert_close(result.detach(), 10 * (excess**2).mean())
    torch.testing.assert_close(discriminator.c.grad, 10 * (2 * excess * length).mean())


def test_interpolates_lie_between_their_own_pair():
    """Every pair has its own line, and one place on it that is the same for all pixels."""
    asked = []

    class Watch(Quadratic):
        def forward(self, x):
            asked.append(x.detach().clone())
            return super().forward(x)

    x, y = torch.ones(64, 3, 4, 4, dtype=torch.float64), -torch.ones(64, 3, 4, 4, dtype=torch.float64)
    gradient_penalty()(Watch(), x, y)
    places = asked[0].flatten(1)
    assert len(asked) == 1
    assert (places == places[:, :1]).all()
    assert len(places[:, 0].unique()) == 64
    assert places.min() < -0.8
    assert places.max() > 0.8


def alp_by_hand(discriminator, x, xi=10.0, radius=(0.1, 10.0), low=-1.0, high=1.0, power_iterations=1):
    """Terjek's penalty as written down, with the draws in the documented order: direction, then radius."""

    def unit(d):
        return d / d.flatten(1).norm(dim=1).clamp(min=1e-10).view(-1, *[1] * (d.dim() - 1))

    d = unit(torch.rand_like(x) - 0.5)
    for _ in range(power_iterations):
        d = d.detach().requires_grad_()
        change = (discriminator(x) - discriminator((x + xi * d).clamp(low, high))).abs().mean()
        d = unit(torch.autograd.grad(change, d)[0])
    e = torch.empty(len(x), dtype=torch.float32).uniform_(*radius).double()
    x_adv = (x + e.view(-1, *[1] * (x.dim() - 1)) * d).clamp(low, high).detach()
    distance = (x - x_adv).flatten(1).norm(dim=1).clamp(min=1e-10)
    slope = (discriminator(x) - discriminator(x_adv)).flatten().abs() / distance
    return 10 * ((slope - 1).clamp(min=0) ** 2).mean()


@pytest.mark.parametrize("name", ["conv", "residual, GroupNorm", "MLP, LayerNorm"])
@pytest.mark.parametrize(
    "options",
    [{}, {"xi": 1.0, "radius": (0.5, 2.0)}, {"power_iterations": 3}],
    ids=["default", "near", "3 iterations"],
)
def test_adversarial_lipschitz(name, options):
    discriminator = build(name, torch.float64)
    with torch.no_grad():
        list(discriminator.parameters())[-2].mul_(20)  # the last layer: steep enough to be punished
    x, y = images(5, 1, torch.float64), images(3, 2, torch.float64)
    torch.manual_seed(5)
    result = adversarial_lipschitz(10, **options)(discriminator, x, y)
    torch.manual_seed(5)
    expected = alp_by_hand(discriminator, torch.cat([x, y]), **options)
    assert expected > 1e-3
    torch.testing.assert_close(result.detach(), expected.detach(), rtol=1e-9, atol=0)
    parameters = list(discriminator.parameters())
    for actual, value in zip(
        torch.autograd.grad(result, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(actual, value, rtol=1e-8, atol=1e-12)


def test_the_distance_is_taken_after_the_clip():
    """D rises by 3 per unit and the images sit at 0.5: whatever the radius, the slope is exactly 3."""
    x = torch.full((6, 1), 0.5, dtype=torch.float64)
    for radius in ((2.0, 3.0), (50.0, 60.0)):
        result = adversarial_lipschitz(10, xi=0.1, radius=radius)(linear(3.0), x, x)
        torch.testing.assert_close(result.detach(), torch.tensor(10 * (3.0 - 1) ** 2, dtype=torch.float64))


def test_alp_without_clip_bounds():
    x = random_points(4, 0, features=2)
    result = adversarial_lipschitz(10, clip_min=None, clip_max=None)(linear(3.0, 4.0), x, x)
    torch.testing.assert_close(result.detach(), torch.tensor(160.0, dtype=torch.float64))


def test_alp_at_a_corner_that_cannot_be_left():
    """Images that the clip puts back where they were have distance 0, not a slope without bound."""
    x = torch.ones(4, 2, dtype=torch.float64)
    discriminator = linear(3.0, 4.0)
    for seed in range(4):
        torch.manual_seed(seed)
        result = adversarial_lipschitz(clip_min=1.0, clip_max=1.0)(discriminator, x, x)
        assert result == 0


# robustness


@each_penalty
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_constant_discriminator_gives_no_nan(penalty, dtype):
    """The square root's gradient at 0 is where gradient penalties of the field go wrong."""
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    with torch.no_grad():
        for p in discriminator.parameters():
            p.zero_()
    result = penalty(discriminator, images(4, 1, dtype), images(4, 2, dtype))
    result.backward()
    assert result.isfinite()
    for p in discriminator.parameters():
        assert p.grad is None or p.grad.isfinite().all()


def test_the_constant_discriminator_has_the_penalty_of_slope_zero():
    x = random_points(3, 0, features=2)
    zero = linear(0.0, 0.0)
    assert gradient_penalty(10)(zero, x, x) == 10
    assert gradient_penalty(10, one_sided=True)(zero, x, x) == 0
    assert adversarial_lipschitz(10)(zero, x, x) == 0
    assert r1(10)(zero, x, x) == 0


@each_penalty
def test_equal_batches_give_no_nan(penalty):
    discriminator = build("conv", torch.float64)
    x = torch.zeros(3, 3, 8, 8, dtype=torch.float64)
    result = penalty(discriminator, x, x)
    result.backward()
    assert result.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in discriminator.parameters())


@each_penalty
def test_only_parameters_get_gradients(penalty):
    """Nothing flows into the images, and asking the penalty alone leaves .grad alone."""
    discriminator = build("residual, GroupNorm", torch.float64)
    x, y = (images(3, seed, torch.float64).requires_grad_() for seed in (1, 2))
    result = penalty(discriminator, x, y)
    assert all(p.grad is None for p in discriminator.parameters())
    result.backward()
    assert (x.grad, y.grad) == (None, None)
    assert any(p.grad is not None and p.grad.any() for p in discriminator.parameters()) or result == 0


@each_penalty
def test_precision_follows_the_discriminator(penalty):
    for dtype in (torch.float32, torch.float64):
        assert penalty(build("conv", dtype), images(3, 1, dtype), images(3, 2, dtype)).dtype == dtype


# sums


def of_the_bias(discriminator, x_real, x_fake):
    """A user's own penalty."""
    return discriminator.bias.square().sum()


def test_total():
    x, y = random_points(4, 0, features=2), random_points(3, 1, features=2)
    discriminator = linear(3.0, 4.0)
    both = total(gradient_penalty(10), r1(2))(discriminator, x, y)
    assert math.isclose(both.item(), 160 + 25, rel_tol=1e-12)
    assert total() is None
    with pytest.raises(ValueError, match="one logit per image"):
        total(r1())(nn.Sequential(nn.Linear(2, 3), nn.Unflatten(1, (3, 1, 1))).double(), x, y)


@pytest.mark.parametrize(
    ("penalty", "value"),
    [
        (r1(2) + r2(4), 25 + 50),
        (r1(2) + of_the_bias, 25.25),
        (of_the_bias + r2(2), 25.25),
        (of_the_bias + (r1(2) + r2(2)) + gradient_penalty(10), 210.25),
        (sum([r1(2), r2(2), of_the_bias]), 50.25),
        (total(of_the_bias, of_the_bias), 0.5),
        (total(total(r1(2)), r1(2) + of_the_bias), 50.25),
    ],
)
def test_sums(penalty, value):
    """The norm is 5 and the bias 0.5, whatever the images are."""
    discriminator = linear(3.0, 4.0, bias=0.5)
    result = penalty(discriminator, random_points(4, 0, features=2), random_points(3, 1, features=2))
    assert math.isclose(result.item(), value, rel_tol=1e-12)
    result.backward()
    assert discriminator.weight.grad is None or discriminator.weight.grad.any() == (value > 1)
    assert all(not hasattr(part, "parts") for part in penalty.parts)


def test_sums_are_values():
    assert r1(2) + r2(2) == total(r1(2), r2(2)) != r2(2) + r1(2)
    assert repr(r2(0.5)) == "ZeroCentred(gamma=0.5, side='fake')"
    assert sum([r1()]) == r1()


def test_what_is_no_penalty_is_not_added():
    for wrong in (lambda: r1() + 3, lambda: 3 + r1(), lambda: total(r1(), None), lambda: total(0.1)):
        with pytest.raises(TypeError):
            wrong()


# as the field writes them


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize(
    "penalty", [*ALL.values(), total(*ALL.values(), lambda *_: torch.zeros(()))], ids=[*ALL, "sum"]
)
def test_as_written_is_the_same_with_the_same_draws(name, penalty):
    results = []
    for function in (penalty, as_written(penalty)):
        discriminator = build(name, torch.float64)
        torch.manual_seed(3)
        value = function(discriminator, images(5, 1, torch.float64), images(3, 2, torch.float64))
        value.backward()
        results.append([value, torch.rand(1), *(p.grad for p in discriminator.parameters())])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-13)


def test_a_users_own_penalty_is_as_it_was_written():
    assert as_written(of_the_bias) is of_the_bias
