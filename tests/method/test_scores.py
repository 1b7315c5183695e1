"""Maps, tokens and scales, with and without conditions: steps and attacks against float64 autograd from the formulas."""

import contextlib

import pytest
import torch
from torch import nn

import datgan_fast as dat
from algorithm1 import M, N, assert_cut, each_path, gradient_of, relative_error
from counting import Convolutions
from datgan_fast import penalties
from datgan_fast.method.scores import Scores, scores_in
from datgan_fast.method.sharing import factors_by_image
from host_reads import NoHostReads
from networks import images, steeper, steepness
from oracle import FORMULATIONS, NORMS, OBJECTIVES
from scored_step import OUTPUTS, by_image, judge, scales_of, scored_step

pytestmark = pytest.mark.usefixtures("one_thread", "merging")

EPS = {"none": 1.0, "l2": 2.0, "linf": 0.1, "clamp": 2**-8}
LABELS = torch.tensor([0, 3, 1, 4, 2, 0]), torch.tensor([2, 2, 0, 1])
# of each kind: the arguments of one side
CONDITIONS = {
    "nothing": lambda k: None,
    "labels": lambda k: LABELS[k],
    "keywords": lambda k: {"y": LABELS[k], "gain": 0.7},
}


def batches():
    return images(M, 1, torch.float64), images(N, 2, torch.float64)


def arguments(kind):
    real, fake = CONDITIONS[kind](0), CONDITIONS[kind](1)
    return {} if real is None else {"condition_real": real, "condition_fake": fake}


def bound(network, kind, k):
    """D on a side's images, as a user would write it."""
    c = CONDITIONS[kind](k)
    if c is None:
        return network
    return (lambda x: network(x, **c)) if isinstance(c, dict) else (lambda x: network(x, c))


def expected_step(network, kind, x, **options):
    return scored_step(network, bound(network, kind, 0), bound(network, kind, 1), x, **options)


def agree(record, network, expected):
    assert relative_error(gradient_of(network), expected.gradient) < 1e-11
    for field in ("loss", "loss_clean", "loss_adv"):
        torch.testing.assert_close(getattr(record, field), getattr(expected, field), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close((record.real_logits, record.fake_logits), tuple(expected.logits), rtol=1e-11, atol=1e-12)
    means = [t.mean() for t in expected.logits]
    torch.testing.assert_close(record.wasserstein, means[0] - means[1], rtol=1e-11, atol=1e-12)
    known = ~record.input_grad_norm.isnan()
    torch.testing.assert_close(record.input_grad_norm[known], expected.input_grad_norm[known], rtol=1e-9, atol=1e-12)
    assert not any(t.requires_grad for t in record if isinstance(t, torch.Tensor))
    return known.all()


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("norm", [NORMS[0], *(pytest.param(norm, marks=pytest.mark.slow) for norm in NORMS[1:])])
def test_every_combination(output, kind, formulation, objective, norm):
    options = {"objective": objective, "formulation": formulation, "norm": norm, "eps": EPS[norm]}
    steep = steepness(norm)
    x = [t / steep for t in batches()]
    expected = expected_step(steeper(judge(output), steep), kind, x, **options)
    for fused in (True, False):
        network = steeper(judge(output), steep)
        record = dat.discriminator_step(network, *x, fused=fused, **arguments(kind), **options)
        known = agree(record, network, expected)
        assert known or output != "logit" or (objective == "hinge" and not fused)
        assert known or objective != "wasserstein"
    adv = dat.adversarial_batch(steeper(judge(output), steep), *x, **arguments(kind), **options)
    torch.testing.assert_close(adv, tuple(expected.adv), rtol=1e-9, atol=1e-11)
    if norm == "clamp":
        assert_cut(x, expected.adv, EPS[norm])


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("objective", ["vanilla", "wasserstein", "hinge"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_positions_that_agree_share_one_backward(output, objective, formulation):
    """Of each image: some are pushed up and others down."""
    levels = [0.4, 0.5, 0.6, -0.8, 0.5, 0.4], [-0.5, 0.9, -0.6, -0.7]  # one of each side goes the other way
    x = [
        0.1 * t + torch.tensor(level).double()[:, None, None, None] for t, level in zip(batches(), levels, strict=True)
    ]

    def led():
        network = judge(output)
        for weight in (network.body[0].weight, network.fine.weight, network.coarse.weight):
            weight.data.abs_()
        return network

    options = {"objective": objective, "formulation": formulation, "eps": 0.3}
    double = led()
    expected = scored_step(double, double, double, x, **options)
    network = led()
    record = dat.discriminator_step(network, *x, **options)
    agree(record, network, expected)
    several = output != "logit"
    signs = formulation == "eq10" or objective == "wasserstein"
    assert record.path == ("shared" if not several or signs else "separate")
    assert ("several scores" in record.reason) == (record.path == "separate")


@pytest.mark.parametrize("output", OUTPUTS)
def test_what_scores_cost(output, merging):
    """One backward to the images more than the minimum, where their positions disagree."""
    network = judge(output)
    dat.discriminator_step(network, *batches(), eps=0.5)
    with Convolutions() as counted:
        record = dat.discriminator_step(network, *batches(), eps=0.5)
    passes, layers = 1 if merging else 2, 3 if output == "scales" else 2
    assert record.path == ("shared" if output == "logit" else "separate")
    assert counted.calls["forward"] == passes * 2 * layers
    assert counted.calls["weight"] == passes * 2 * layers
    # the perturbed images' own gradient is not wanted
    assert counted.calls["input"] == passes * (2 * layers - 1 + (layers if record.path == "separate" else 0))


@pytest.mark.parametrize("output", ["map", "scales"])
@pytest.mark.parametrize(("lambda_clean", "lambda_adv"), [(0.0, 1.0), (0.4, 2.0), (1.0, 0.0)])
@pytest.mark.parametrize("objective", ["wasserstein", "least_squares"])
@each_path
def test_lambdas(output, lambda_clean, lambda_adv, objective, fused):
    options = {"lambda_clean": lambda_clean, "lambda_adv": lambda_adv, "objective": objective}
    network, double = judge(output), judge(output)
    record = dat.discriminator_step(network, *batches(), eps=1.0, fused=fused, **options)
    expected = expected_step(double, "nothing", batches(), **options)
    if not lambda_adv:
        assert record.loss_adv == 0
        expected.loss_adv = torch.zeros_like(expected.loss_adv)
    assert agree(record, network, expected) or (lambda_clean and objective != "wasserstein")


@pytest.mark.parametrize("output", ["map", "scales"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
@each_path
def test_maps_of_dependent_images(output, formulation, fused):
    network, double = (judge(output, norm=nn.BatchNorm2d(6)) for _ in range(2))
    options = {"objective": "wasserstein", "formulation": formulation, "eps": 0.5}
    record = dat.discriminator_step(network, *batches(), fused=fused, **options)
    expected = expected_step(double, "nothing", batches(), **options)
    assert relative_error(gradient_of(network), expected.gradient) < 1e-11
    if fused:
        r, f = (scales_of(double(x)) for x in batches())
        above = {bool(a.mean() > b.mean()) for a, b in zip(r, f, strict=True)}  # of each scale
        assert record.path == ("shared" if formulation == "batch_mean" and len(above) == 1 else "separate")


@pytest.mark.parametrize("output", ["map", "scales"])
@pytest.mark.parametrize("start", [False, True])
def test_several_steps_and_random_starts(output, start):
    results = []
    for function in (dat.adversarial_batch, dat.reference.adversarial_batch):
        torch.manual_seed(4)
        options = {"norm": "linf", "eps": 0.1, "steps": 3, "random_start": start}
        results.append(function(judge(output), *batches(), **arguments("labels"), **options))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_sides_of_different_sizes():
    """Of other sizes are images and maps, not means."""
    x = batches()[0], 0.9 * torch.rand(N, 3, 12, 12, dtype=torch.float64)
    for fused in (True, False):
        network, double = judge("scales"), judge("scales")
        record = dat.discriminator_step(network, *x, eps=1.0, fused=fused)
        agree(record, network, scored_step(double, double, double, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1.0, None])
def test_other_dtypes_and_gradient_scales(dtype, scale):
    network, double = judge("scales", dtype), judge("scales")
    double.load_state_dict(network.state_dict())
    x = tuple(t.to(dtype) for t in batches())
    factor = torch.tensor(64.0) if scale is None else scale
    dat.discriminator_step(network, *x, eps=1.0, norm="l2", grad_scale=factor)
    expected = scored_step(double, double, double, [t.double() for t in x], norm="l2")
    bound = 5e-6 if dtype == torch.float32 else 0.1
    assert relative_error(gradient_of(network) / float(factor), expected.gradient) < bound


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("lambda_clean", [1.0, 0.0])
def test_nothing_is_read_where_it_would_wait(output, lambda_clean, monkeypatch):
    """Signs are not looked at: the attack has a backward of its own."""
    monkeypatch.setattr("datgan_fast.method.waiting.looking_waits", lambda device: True)
    network, double = judge(output), judge(output)
    options = {"objective": "wasserstein", "eps": 0.5, "lambda_clean": lambda_clean}
    for k in range(3):
        network.zero_grad()
        with NoHostReads() if k else contextlib.nullcontext():
            record = dat.discriminator_step(network, *batches(), **arguments("labels"), **options)
    assert record.path == ("shared" if output == "logit" else "separate")
    agree(record, network, expected_step(double, "labels", batches(), **options))


@pytest.mark.compiles
@pytest.mark.parametrize("output", OUTPUTS)
def test_compiled_networks(output):
    torch.compiler.reset()
    network, double = judge(output), judge(output)
    for layer in (network.body[0], network.fine, double.body[0], double.fine):
        layer.padding_mode = (
            "zeros"  # torch 2.14 compiles the backward of a replicating one for another layout than it gets
        )
    compiled = torch.compile(network)
    for _ in range(3):
        network.zero_grad()
        double.zero_grad()
        record = dat.discriminator_step(compiled, *batches(), eps=0.5, **arguments("labels"))
        agree(record, network, expected_step(double, "labels", batches(), eps=0.5))


# Penalties


def whole_gradient(network):
    """With zeros for what has none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in network.parameters()])


def zero_centred(network, kind, x, k):
    x = x[k].detach().requires_grad_()
    total = sum(t.sum() for t in scales_of(bound(network, kind, k)(x)))
    (gradient,) = torch.autograd.grad(total, x, create_graph=True)
    return gradient.flatten(1).square().sum(1).mean()


def two_sided(network, kind, x, k, seed=3):
    torch.manual_seed(seed)
    pairs = min(M, N)
    alpha = torch.rand(pairs, dtype=torch.float32)[:, None, None, None].double()
    x = (alpha * x[0][:pairs] + (1 - alpha) * x[1][:pairs]).requires_grad_()
    c = CONDITIONS[kind](k)
    if isinstance(c, dict):
        c = c | {"y": c["y"][:pairs]}
        output = network(x, **c)
    else:
        output = network(x) if c is None else network(x, c[:pairs])
    total = sum(t.sum() for t in scales_of(output))
    (gradient,) = torch.autograd.grad(total, x, create_graph=True)
    return 10 * (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def lipschitz(network, kind, x, seed=3):
    torch.manual_seed(seed)

    def score(t):
        sides = zip((0, 1), t.split([M, N]), strict=True)
        return torch.cat([by_image(scales_of(bound(network, kind, k)(part))) for k, part in sides])

    x = torch.cat(x)
    d = torch.rand(x.shape, dtype=torch.float64) - 0.5
    d = (d / d.flatten(1).norm(dim=1)[:, None, None, None]).requires_grad_()
    change = (score(x).detach() - score((x + 10 * d).clamp(-1, 1))).abs().mean()
    (d,) = torch.autograd.grad(change, d)
    d = d / d.flatten(1).norm(dim=1)[:, None, None, None]
    e = torch.empty(len(x), dtype=torch.float32).uniform_(0.1, 10.0)[:, None, None, None]
    x_adv = (x + e * d).clamp(-1, 1)
    slope = (score(x) - score(x_adv)).abs() / (x - x_adv).flatten(1).norm(dim=1)
    return 10 * (slope - 1).clamp(min=0).square().mean()


PENALTIES = {
    "r1": (penalties.r1(2.0), lambda *a: zero_centred(*a, 0)),
    "r2": (penalties.r2(2.0), lambda *a: zero_centred(*a, 1)),
    "gp": (penalties.gradient_penalty(), lambda *a: two_sided(*a, 0)),
    "gp, generated": (penalties.gradient_penalty(condition="fake"), lambda *a: two_sided(*a, 1)),
    "alp": (penalties.adversarial_lipschitz(), lipschitz),
    "r1 + alp": (penalties.r1(2.0) + penalties.adversarial_lipschitz(), lambda *a: zero_centred(*a, 0) + lipschitz(*a)),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("name", PENALTIES)
def test_penalties(output, kind, name):
    """By themselves, and in a step, fused and not."""
    penalty, formula = PENALTIES[name]

    def steep():
        network = judge(output)
        network.fine.weight.data.mul_(60)
        return network

    double = steep()
    value = formula(double, kind, batches())
    value.backward()
    alone = whole_gradient(double)
    assert alone.any()
    network = steep()
    torch.manual_seed(3)
    found = penalty(network, *batches(), **arguments(kind))
    found.backward()
    torch.testing.assert_close(found, value, rtol=1e-10, atol=0)
    assert relative_error(whole_gradient(network), alone) < 1e-10
    options = {"eps": 0.1, "objective": "wasserstein"}
    double.zero_grad()
    expected_step(double, kind, batches(), **options)
    expected = whole_gradient(double) + alone
    for fused in (True, False):
        network = steep()
        torch.manual_seed(3)
        record = dat.discriminator_step(network, *batches(), penalty=penalty, fused=fused, **arguments(kind), **options)
        torch.testing.assert_close(record.penalty, value.detach(), rtol=1e-10, atol=0)
        assert relative_error(whole_gradient(network), expected) < 1e-10


# What scores are


@pytest.mark.parametrize(
    ("shape", "widths"),
    [
        ((4,), (1,)),
        ((4, 1), (1,)),
        ((4, 1, 1, 1), (1,)),
        ((4, 1, 3, 2), (6,)),
        ((4, 7), (7,)),
        ((4, 7, 1), (7,)),
        ((4, 1, 5), (5,)),
    ],
)
def test_shapes(shape, widths):
    t = torch.randn(shape)
    scores = scores_in(t, 4)
    assert scores.widths == widths
    assert torch.equal(scores.logits.flatten(), t.flatten())
    assert scores.single == (widths == (1,))


def test_scales_lie_one_behind_the_other():
    fine, coarse = torch.randn(4, 1, 2, 2), torch.randn(4)
    scores = scores_in([fine, coarse], 4)
    assert scores.widths == (4, 1)
    assert torch.equal(scores.split()[0], fine.flatten())
    assert torch.equal(scores.split()[1], coarse)
    assert torch.equal(scores.join(scores.split()), scores.logits)
    torch.testing.assert_close(scores.by_image(), fine.mean((1, 2, 3)) + coarse)
    torch.testing.assert_close((scores.shares() * scores.logits).sum(1), scores.by_image())


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(3, 1), r"4 images gave \(3, 1\); scores may also be a map .* or a list of such$"),
        (torch.zeros(()), r"4 images gave \(\)"),
        (torch.zeros(4, 8, 2, 2), r"gave \(4, 8, 2, 2\).*scores=lambda out: out.flatten\(1\)"),
        (torch.zeros(4, 0), r"gave \(4, 0\)"),
        ((torch.zeros(4, 1), torch.zeros(4, 16)), r"gave tuple of \(4, 1\), \(4, 16\).*scores=lambda out: out\[0\]"),
        ([], "gave list of nothing"),
        (
            [torch.zeros(4, 1), [torch.zeros(4, 3)]],
            r"gave list of \(4, 1\), list of \(4, 3\).*scores=lambda out: out\[0\]",
        ),
        ({"logits": torch.zeros(4)}, r"gave dict with logits.*scores=lambda out: out\['logits'\]"),
        (None, "gave NoneType"),
    ],
)
def test_what_is_no_scores(output, message):
    with pytest.raises(ValueError, match=f"must give one logit per image: .*{message}") as caught:
        scores_in(output, 4)
    assert "\n" not in str(caught.value)


@each_path
def test_sides_with_unequal_numbers_of_scales(fused):
    network = judge("scales")

    def call(x, both):
        return network(x) if both else network(x)[:1]

    with pytest.raises(ValueError, match="same number of scales; got 2 and 1"):
        dat.discriminator_step(call, *batches(), eps=1.0, fused=fused, condition_real=(True,), condition_fake=(False,))


@pytest.mark.parametrize(
    ("coefficients", "weights", "factors"),
    [
        ([[2.0, 4.0], [-1.0, 0.0]], [[1.0, 2.0], [1.0, 0.0]], [2.0, -1.0]),
        ([[0.0, 0.0], [3.0, 3.0]], [[0.0, 0.0], [1.0, 1.0]], [0.0, 3.0]),
        ([[0.0, 0.0]], [[1.0, 1.0]], [0.0]),
        ([[2.0, -2.0]], [[1.0, 1.0]], None),
        ([[2.0, 0.0]], [[1.0, 1.0]], None),
        ([[2.0, 1.0]], [[0.0, 0.0]], None),
    ],
)
def test_factors_by_image(coefficients, weights, factors):
    found = factors_by_image(torch.tensor(coefficients), torch.tensor(weights))
    assert found is None if factors is None else torch.equal(found, torch.tensor(factors))


def test_a_row_of_scores_is_a_row_of_images():
    scores = Scores(torch.randn(5, 3), (2, 1))
    assert torch.equal(scores.rows(slice(2)).by_image(), scores.by_image()[:2])
