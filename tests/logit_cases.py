"""What logit_terms must do on every backend, against the float64 oracle; collected by the files that say where it runs."""

import math

import pytest
import torch

import datgan_fast as dat
import oracle
from attack_inputs import each_formulation, each_objective
from datgan_fast.method.buffered_ops import logit_terms_into
from kernel_cases import assert_close, logits_of
from layouts import FLOATS, name
from oracle import array


def parted(device, m, n, dtype, step=2, guard=3):
    """(real, fake, all memory): two slices of one buffer of NaN, as a merged batch has them, every `step`-th element."""
    room = torch.full((step * (m + n) + guard,), math.nan, dtype=dtype, device=device)
    both = room[guard : guard + step * (m + n) : step]
    return both[:m], both[m:], room


def check_terms(target, logits, *, weight=0.7, floor=0.0, objective="vanilla", formulation="eq10", attack=True):
    """Runs logit_terms into slices of larger buffers and compares all it writes; returns that."""
    (m, n), dtype = map(len, logits), logits[0].dtype
    double = torch.float64 in (logits[0].dtype, logits[1].dtype)
    exact = torch.float64 if double else torch.float32
    *weights, weight_room = parted(target.device, m, n, dtype)
    if logits[1].dtype != dtype:
        weights[1] = torch.full((n,), math.nan, dtype=logits[1].dtype, device=target.device)
    *coefficients, coefficient_room = parted(target.device, m, n, exact)
    sums, _, sum_room = parted(target.device, 4, 0, exact, step=3)
    logit_terms_into(
        logits,
        tuple(weights),
        sums,
        weight=weight,
        floor=floor,
        objective=objective,
        formulation=formulation,
        coefficients=tuple(coefficients) if attack else (None, None),
        impl=target.impl,
    )
    expected = oracle.logit_terms(
        *map(array, logits), weight, floor, objective, formulation, cap=700.0 if double else 80.0
    )
    for i, side in enumerate(("real", "fake")):
        assert_close(target, weights[i], expected.weights[i], f"weight_{side}", double)
        if attack:
            assert_close(target, coefficients[i], expected.coefficients[i], f"coefficient_{side}", double)
        else:
            assert sums[2 + i] == 0 and coefficients[i].isnan().all()
    count = 4 if attack else 2
    assert_close(target, sums[:count], expected.sums[:count], "sums", double)
    rooms = [(weight_room, m + n if logits[1].dtype == dtype else m), (sum_room, 4)]
    for room, written in [*rooms, (coefficient_room, m + n if attack else 0)]:
        assert room.isnan().logical_not().sum() == written, "written outside"
    return weights, sums, coefficients


@each_objective
@each_formulation
def test_all_terms(target, objective, formulation):
    check_terms(target, logits_of(target, 5, 3), objective=objective, formulation=formulation)


@pytest.mark.parametrize("fake_dtype", FLOATS, ids=name)
@pytest.mark.parametrize("dtype", FLOATS, ids=name)
def test_dtypes_and_slices_of_one_buffer(target, dtype, fake_dtype):
    real, fake, _ = parted(target.device, 6, 7, dtype)
    for t, values in zip((real, fake), logits_of(target, 6, 7, torch.float64), strict=True):
        t.copy_(values)
    check_terms(target, (real, fake.to(fake_dtype)), weight=-3.0, objective="least_squares")


@pytest.mark.parametrize("attack", [False, True], ids=["objective alone", "with the attack"])
@pytest.mark.parametrize(("m", "n"), [(0, 0), (0, 3), (4, 0), (1, 1)])
def test_empty_sides(target, m, n, attack):
    check_terms(target, logits_of(target, m, n), attack=attack)


@each_objective
def test_calls_with_one_side_each_add_up(target, objective):
    real, fake = logits_of(target, 5, 3)
    both_weights, both, _ = check_terms(target, (real, fake), objective=objective, attack=False)
    halves = [
        check_terms(target, logits, objective=objective, attack=False)
        for logits in ((real, fake[:0]), (real[:0], fake))
    ]
    assert_close(target, halves[0][1] + halves[1][1], array(both), "sums")
    for k in range(2):
        assert torch.equal(halves[k][0][k], both_weights[k])


@each_formulation
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=name)
def test_more_logits_than_a_block_has_threads(target, formulation, dtype):
    check_terms(target, logits_of(target, 3001, 2500, dtype), formulation=formulation)


@each_objective
@each_formulation
def test_extreme_logits_give_finite_terms(target, objective, formulation):
    real = torch.tensor([-3e4, -100.0, 0.0, 100.0, 3e4], device=target.device)
    fake = torch.tensor([-200.0, 50.0, 2e4], device=target.device)
    written = check_terms(target, (real, fake), objective=objective, formulation=formulation)
    assert all(t.isfinite().all() for t in (*written[0], written[1], *written[2]))


# Logits at which the objective's slope is 0, or smaller than any floor here
SATURATED = {
    "hinge": ([1.5, 1.0, 90.0, -0.5], [-2.0, -1.0, 0.5]),
    "least_squares": ([1.0, 0.5], [0.0, 3.0]),
    "vanilla": ([60.0, -1.0], [-60.0, 2.0]),
    "fgan": ([75.0, 0.5], [1.0]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("weight", [0.5, -2.0])
@pytest.mark.parametrize("objective", SATURATED)
def test_no_weight_is_smaller_than_the_floor(target, objective, weight, dtype):
    logits = tuple(torch.tensor(values, dtype=dtype, device=target.device) for values in SATURATED[objective])
    weights, *_ = check_terms(target, logits, weight=weight, floor=1e-20, objective=objective)
    expected = oracle.logit_terms(*map(array, logits), weight, 1e-20, objective, "eq10", cap=700.0).weights
    for t, values in zip(weights, expected, strict=True):  # relative: check_terms' tolerance is far above these
        assert (abs(array(t) / values - 1) < (5e-3 if dtype == torch.bfloat16 else 1e-5)).all()
    assert abs(expected[0]).min() == 1e-20 / len(logits[0]), "something is floored"


def test_a_floored_weight_keeps_its_sign(target):
    """vanilla's weights are negative on the real side and positive on the generated, however small."""
    logits = tuple(torch.tensor([t], device=target.device) for t in (80.0, -80.0))
    (real, fake), *_ = check_terms(target, logits, floor=1e-20)
    assert real == -torch.tensor(1e-20) and fake == torch.tensor(1e-20)


def test_without_a_floor_zero_stays_zero(target):
    logits = tuple(torch.tensor(values, device=target.device) for values in ([2.0, 0.0], [-3.0]))
    (real, fake), *_ = check_terms(target, logits, objective="hinge")
    assert real[0] == 0 and real[1] != 0 and fake == 0


@each_objective
@each_formulation
def test_the_attack_is_attack_losss_to_the_bit(target, objective, formulation):
    logits = logits_of(target, 70, 40)
    _, sums, coefficients = check_terms(target, logits, objective=objective, formulation=formulation)
    losses, *expected = torch.ops.datgan_fast.attack_loss(*logits, *logits, objective, formulation, target.impl)
    assert torch.equal(sums[2:], losses)
    assert all(torch.equal(a, b) for a, b in zip(coefficients, expected, strict=True))


def test_the_same_logits_give_the_same_bits(target):
    logits = logits_of(target, 999, 1203)
    first, second = (check_terms(target, logits, objective="fgan") for _ in range(2))
    assert torch.equal(first[1], second[1])
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))


def test_nan_stays_visible(target):
    logits = logits_of(target, 4, 3)
    logits[0][2] = math.nan
    weights, sums = [torch.empty_like(t) for t in logits], torch.empty(4, device=target.device)
    logit_terms_into(logits, tuple(weights), sums, weight=1.0, floor=1e-20, impl=target.impl)
    assert weights[0].isnan().tolist() == [False, False, True, False]
    assert sums[:2].isnan().all() and not weights[1].isnan().any()


def test_a_step_moves_what_the_terms_say(target):
    """The chain of a shared step: weights from logits, v = weight * dD/dx, and the attack undoes the weight."""
    real, fake = logits_of(target, 4, 3)
    weights, *_ = check_terms(target, (real, fake), floor=1e-20, objective="hinge")
    x, gradient = (torch.randn(7, 6, generator=torch.Generator().manual_seed(k)).to(target.device) for k in (1, 2))
    v = torch.cat(weights).view(-1, 1) * gradient
    options = {"formulation": "alg1", "objective": "hinge", "clip_min": None, "clip_max": None, "impl": target.impl}
    shared = dat.attack_step(
        *x.split([4, 3]), *v.split([4, 3]), real, fake, 0.3,
        grad_weight_real=weights[0], grad_weight_fake=weights[1], **options,
    )  # fmt: skip
    plain = dat.attack_step(*x.split([4, 3]), *gradient.split([4, 3]), real, fake, 0.3, **options)
    for a, b in zip(shared, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
