"""Objectives of one's own, and the built-in relativistic one: elementwise, or a loss that compares the scores of both batches.

The step is compared with Algorithm 1 in float64 autograd, written from each formula once more.
"""

import warnings

import pytest
import torch
from torch.nn import functional as F

import algorithm1 as plain
import datgan_fast as dat
from algorithm1 import ROUNDING, M, N, algorithm1, gradient_of, relative_error
from datgan_fast import penalties
from datgan_fast.method import dispatch
from datgan_fast.method.formulas import OBJECTIVES
from datgan_fast.method.generator_terms import generator_terms
from datgan_fast.method.native import cpu_backend
from networks import build, conv, images, steeper, steepness
from oracle import FORMULATIONS, NORMS
from penalty_formulas import r1, r2
from scored_step import OUTPUTS, judge, scored_step

pytestmark = pytest.mark.usefixtures("one_thread")
merges = pytest.mark.usefixtures("merging")

LABELS = torch.linspace(-1, 1, M, dtype=torch.float64)  # what an auxiliary head would be told of the real images


def exponential(t):
    return -(-t / 2).exp()


def relativistic(r, f):
    return F.softplus(-(r - f)).mean()


def average(r, f):
    return F.softplus(-(r - f.mean())).mean() + F.softplus(f - r.mean()).mean()


def auxiliary(r, f):
    return F.softplus(-r).mean() + F.softplus(f).mean() + 0.3 * (r - LABELS[: len(r)]).square().mean()


# name: (the library's, g1, g2, the loss if it compares both batches)
OWN = {
    "exponential": (dat.Objective("exponential", exponential, lambda t: exponential(-t)),
                    lambda t: -torch.exp(-t / 2), lambda t: -torch.exp(t / 2), None),
    "relativistic": ("relativistic", lambda t: t, lambda t: -t, lambda r, f: torch.log1p(torch.exp(f - r)).mean()),
    "average": (dat.Objective("average", loss=average), lambda t: t, lambda t: -t, average),
    "auxiliary": (dat.Objective("auxiliary", F.logsigmoid, lambda t: F.logsigmoid(-t), loss=auxiliary),
                  plain.G1["vanilla"], plain.G2["vanilla"], auxiliary),
}  # fmt: skip
each_own = pytest.mark.parametrize("own", OWN)


@pytest.fixture(autouse=True)
def known_to_algorithm1(monkeypatch):
    for name, (_, g1, g2, loss) in OWN.items():
        monkeypatch.setitem(plain.G1, name, g1)
        monkeypatch.setitem(plain.G2, name, g2)
        if loss is not None:
            monkeypatch.setitem(plain.LOSSES, name, loss)


@pytest.fixture(autouse=True)
def no_warnings():
    """Nobody expects a kernel for a Python function of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def batches(own, dtype=torch.float32):
    """Unequal, but for the loss that makes pairs."""
    return images(M, 1, dtype), images(M if own == "relativistic" else N, 2, dtype)


def scaled(name, dtype, scale=1.0, shift=0.0, steep=1.0):
    network = steeper(build(name, dtype), steep)
    with torch.no_grad():
        for p in list(network.parameters())[-2:]:
            p.mul_(scale)
        list(network.parameters())[-1].add_(shift)
    return network


def compare(own, name="conv", dtype=torch.float64, scale=1.0, shift=0.0, steep=1.0, formula=None, **options):
    """Runs the step and Algorithm 1 from the same weights; `formula`: the penalty's."""
    network, double = (scaled(name, each, scale, shift, steep) for each in (dtype, torch.float64))
    x = [t / steep for t in batches(own, dtype)]
    record = dat.discriminator_step(network, *x, **{"eps": 0.5, "objective": OWN[own][0], **options})
    for theirs in ("fused", "penalty"):
        options.pop(theirs, None)
    expected = algorithm1(double, *(t / steep for t in batches(own)), **{"eps": 0.5, "objective": own, **options})
    if formula:
        formula(double, *batches(own, torch.float64)).backward()
        expected.gradient = gradient_of(double)
    rounding = ROUNDING[dtype]
    assert relative_error(gradient_of(network), expected.gradient) < rounding
    for field in ("loss_clean", "loss_adv"):
        found, wanted = getattr(record, field), getattr(expected, field)
        torch.testing.assert_close(found.double(), wanted.detach().double(), rtol=rounding, atol=rounding)
    assert record.loss.dtype == record.wasserstein.dtype == dtype
    r, f = expected.logits
    torch.testing.assert_close(record.wasserstein.double(), r.mean() - f.mean(), rtol=rounding, atol=rounding)
    assert not any(t.requires_grad for t in record if isinstance(t, torch.Tensor))
    return record, expected


# The step


@merges
@each_own
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_formulations_and_norms(own, formulation, norm):
    steep = steepness(norm)
    record, expected = compare(own, formulation=formulation, norm=norm, steep=steep, eps=0.5 / steep)
    assert record.path == "shared"
    if norm == "clamp":
        plain.assert_cut([t / steep for t in batches(own)], expected.adv, 0.5 / steep)
    torch.testing.assert_close(record.input_grad_norm, expected.input_grad_norm, rtol=1e-9, atol=0)


@each_own
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", ["conv", "BatchNorm"])
def test_the_reference(own, formulation, name):
    assert compare(own, name, formulation=formulation, fused=False)[0].path == "reference"


@merges
@each_own
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("lambda_clean", [0.0, 0.7])
@pytest.mark.parametrize("name", ["BatchNorm", "minibatch stddev"])
def test_images_that_depend_on_each_other(own, formulation, lambda_clean, name):
    record, _ = compare(own, name, formulation=formulation, lambda_clean=lambda_clean)
    if own != "exponential" and lambda_clean:
        assert record.path == "separate"  # a loss over pairs may give each score any weight


@merges
@each_own
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("lambda_clean", "lambda_adv"), [(0.0, 1.0), (1.0, 0.0), (0.3, 2.5)])
def test_lambdas(own, fused, lambda_clean, lambda_adv):
    compare(own, lambda_clean=lambda_clean, lambda_adv=lambda_adv, fused=fused)


@merges
@each_own
@pytest.mark.parametrize("name", ["spectral norm", "residual, GroupNorm", "MLP, LayerNorm"])
def test_float32(own, name):
    assert compare(own, name, torch.float32)[0].path == "shared"


@merges
@each_own
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["conv", "BatchNorm"])
def test_several_steps(own, name, fused):
    compare(own, name, norm="l2", steps=3, alpha=0.3, fused=fused)


@merges
@each_own
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_saturated_scores(own, formulation):
    """Real scores so far above the generated ones that float32 knows no slope of the loss any more."""
    scale = 8.0 if own == "exponential" else 40.0
    compare(own, scale=scale, formulation=formulation)
    errors = {}
    for fused in (True, False):
        network, double = (scaled("conv", dtype, scale) for dtype in (torch.float32, torch.float64))
        options = {"eps": 0.5, "formulation": formulation}
        dat.discriminator_step(network, *batches(own), objective=OWN[own][0], fused=fused, **options)
        expected = algorithm1(double, *batches(own), objective=own, **options)
        errors[fused] = relative_error(gradient_of(network), expected.gradient)
    assert errors[True] < max(5 * errors[False], 1e-6)


class Brighter(torch.nn.Module):
    """Its scores grow with the first pixel, by far more than with all others."""

    def __init__(self, dtype):
        super().__init__()
        self.body = build("conv", dtype)

    def forward(self, x):
        return self.body(x).flatten() + 200 * x[:, 0, 0, 0]


@merges
def test_images_without_weight_are_attacked():
    """A real image that beats its generated one by 360 has no slope left in float32, and is pushed all the same."""
    x = images(M, 1), images(M, 2)
    x[0][:, 0, 0, 0], x[1][:, 0, 0, 0] = 0.9, -0.9
    network, double = Brighter(torch.float32), Brighter(torch.float64)
    record = dat.discriminator_step(network, *x, eps=0.01, objective="relativistic", lambda_adv=1.0)
    expected = algorithm1(double, *x, eps=0.01, objective="relativistic")
    assert (expected.adv[0] - x[0])[:, 0, 0, 0].max() < -1 and record.loss_clean < 1e-30
    assert record.path == "shared"
    assert relative_error(gradient_of(network), expected.gradient) < 1e-5
    torch.testing.assert_close(record.input_grad_norm.double(), expected.input_grad_norm, rtol=1e-5, atol=0)


@merges
@each_own
@pytest.mark.parametrize("fused", [True, False])
def test_zero_centred_penalties(own, fused):
    def formula(*given):
        return r1(*given, gamma=3.0) + r2(*given, gamma=2.0)

    compare(own, penalty=penalties.r1(3.0) + penalties.r2(2.0), formula=formula, fused=fused)


@merges
@each_own
@pytest.mark.parametrize("name", ["conv", "BatchNorm"])
def test_penalties_that_compare_scores(own, name):
    gradients = []
    for fused in (True, False):
        network = scaled(name, torch.float64, 20.0)
        torch.manual_seed(3)
        penalty = penalties.adversarial_lipschitz() + penalties.r1(0.1)
        options = {"eps": 0.5, "objective": OWN[own][0], "penalty": penalty, "fused": fused}
        dat.discriminator_step(network, *batches(own, torch.float64), **options)
        gradients.append(gradient_of(network))
    assert relative_error(*gradients) < 1e-11


@merges
@each_own
@pytest.mark.parametrize("scale", [torch.tensor(1024.0), 0.5])
def test_a_loss_scale(own, scale):
    gradients = []
    for factor in (scale, 1.0):
        network = build("conv", torch.float64)
        x = batches(own, torch.float64)
        dat.discriminator_step(network, *x, eps=0.5, objective=OWN[own][0], grad_scale=factor)
        gradients.append(gradient_of(network))
    assert relative_error(gradients[0], gradients[1] * scale) < 1e-12


@merges
@each_own
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(own, dtype):
    x = batches(own, dtype)
    expected = algorithm1(build("conv", torch.float64), *x, objective=own, eps=0.5).gradient
    errors = {}
    for fused in (True, False):
        network = build("conv")
        with torch.autocast("cpu", dtype):
            options = {"eps": 0.5, "objective": OWN[own][0], "fused": fused}
            record = dat.discriminator_step(network, *(t.float() for t in x), **options)
        errors[fused] = relative_error(gradient_of(network), expected)
        assert record.loss.dtype == torch.float32
        if fused:  # float16 cannot hold the least weights that a loss over pairs may have
            narrow = dtype == torch.float16 and own != "exponential"
            assert record.path == ("separate" if narrow else "shared")
    assert errors[True] < 2 * errors[False] < 0.2


@merges
def test_a_side_that_the_loss_leaves_out():
    """Its images are attacked and are none of the loss's."""
    only = dat.Objective("only", loss=lambda r, f: F.softplus(-r).mean())
    gradients = []
    for fused in (True, False):
        network = build("conv", torch.float64)
        record = dat.discriminator_step(network, *batches("only", torch.float64), eps=0.5, objective=only, fused=fused)
        gradients.append(gradient_of(network))
        assert fused or record.input_grad_norm[M:].isnan().all()
        assert record.input_grad_norm[:M].isfinite().all()
    assert relative_error(*gradients) < 1e-12


# of each kind: what D takes beside the images of a side with these labels
CONDITIONS = {"nothing": lambda y: None, "labels": lambda y: y, "keywords": lambda y: {"y": y, "gain": 0.7}}


def beside(network, condition):
    """D on a side's images, as a user would write it."""
    keywords = isinstance(condition, dict)
    return lambda x: network(x, **condition) if keywords else network(x, *(() if condition is None else (condition,)))


@merges
@pytest.mark.parametrize("own", ["exponential", "relativistic", "average"])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("norm", [NORMS[0], *(pytest.param(norm, marks=pytest.mark.slow) for norm in NORMS[1:])])
def test_every_combination(own, output, kind, formulation, norm):
    """A loss over pairs is one of each scale, summed."""
    steep = steepness(norm)
    x = [t / steep for t in batches(own, torch.float64)]
    options = {"eps": 0.5 / steep, "formulation": formulation, "norm": norm}
    sides = [CONDITIONS[kind](torch.arange(k, len(t) + k) % 5) for k, t in enumerate(x)]
    told = {} if kind == "nothing" else dict(zip(("condition_real", "condition_fake"), sides, strict=True))
    double = steeper(judge(output), steep)
    expected = scored_step(double, *(beside(double, c) for c in sides), x, objective=own, **options)
    if norm == "clamp":
        plain.assert_cut(x, expected.adv, options["eps"])
    options["objective"] = OWN[own][0]
    for fused in (True, False):
        network = steeper(judge(output), steep)
        record = dat.discriminator_step(network, *x, fused=fused, **told, **options)
        assert relative_error(gradient_of(network), expected.gradient) < 1e-11
        for field in ("loss", "loss_clean", "loss_adv"):
            torch.testing.assert_close(getattr(record, field), getattr(expected, field), rtol=1e-11, atol=1e-12)
        scores = record.real_logits, record.fake_logits
        torch.testing.assert_close(scores, tuple(expected.logits), rtol=1e-11, atol=1e-12)
    adv = dat.adversarial_batch(steeper(judge(output), steep), *x, **told, **options)
    torch.testing.assert_close(adv, tuple(expected.adv), rtol=1e-9, atol=1e-11)


@merges
@pytest.mark.parametrize("own", ["exponential", "relativistic", "average"])
@pytest.mark.parametrize("output", ["map", "tokens", "scales"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize(("fused", "lambda_clean"), [(True, 1.0), (False, 1.0), (True, 0.0)])
def test_maps_tokens_and_scales(own, output, formulation, fused, lambda_clean):
    """Real labels as a tensor, the generated images' as keywords."""
    x = batches(own, torch.float64)
    real, fake = (torch.arange(len(t)) % 5 for t in x)
    network, double = judge(output), judge(output)
    options = {"eps": 0.5, "formulation": formulation, "lambda_clean": lambda_clean}
    told = {"condition_real": real, "condition_fake": {"y": fake}, "fused": fused}
    record = dat.discriminator_step(network, *x, objective=OWN[own][0], **told, **options)
    expected = scored_step(double, lambda t: double(t, real), lambda t: double(t, fake), x, objective=own, **options)
    assert relative_error(gradient_of(network), expected.gradient) < 1e-11
    for field in ("loss", "loss_clean", "loss_adv"):
        torch.testing.assert_close(getattr(record, field), getattr(expected, field), rtol=1e-11, atol=1e-12)
    r, f = expected.logits
    torch.testing.assert_close(record.wasserstein, r.mean() - f.mean(), rtol=1e-11, atol=1e-12)
    if own != "exponential" and lambda_clean:  # an image's positions may have any weights
        assert record.input_grad_norm.isnan().all() and record.path == ("separate" if fused else "reference")


# The attack


@each_own
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_attack_losses_and_gradients(own, formulation):
    torch.manual_seed(1)
    r, f, target_r, target_f = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (5, 3, 4, 6))
    expected = plain.attack_objective(r, f, target_r.detach(), target_f.detach(), own, formulation)
    if formulation == "batch_mean":  # whose own mean is that of the targets too
        means = [
            target.detach().mean() + (t - t.detach()).sum() / len(target)
            for t, target in ((r, target_r), (f, target_f))
        ]
        expected = (means[0] - target_f.detach().mean()).abs() + (means[1] - target_r.detach().mean()).abs()
    for attack_loss in (dat.attack_loss, dat.reference.attack_loss):
        options = {"objective": OWN[own][0], "formulation": formulation}
        losses = attack_loss(r, f, target_real_logits=target_r, target_fake_logits=target_f, **options)
        torch.testing.assert_close(sum(losses), expected, rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad(sum(losses), (r, f))
        torch.testing.assert_close(
            found, torch.autograd.grad(expected, (r, f), retain_graph=True), rtol=1e-10, atol=1e-12
        )


@each_own
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_the_single_pass(own, formulation, norm):
    torch.manual_seed(2)
    x = [torch.rand(n, 2, 3, dtype=torch.float64) - 0.5 for n in (5, 3)]
    v = [torch.randn(n, 2, 3, dtype=torch.float64) for n in (5, 3)]
    scores = [torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (5, 3)]
    weights = [torch.rand(n, dtype=torch.float64) + 0.5 for n in (5, 3)]
    loss = plain.attack_objective(*scores, *(t.detach() for t in scores), own, formulation)
    coefficients = torch.autograd.grad(loss, scores)
    options = {
        "objective": OWN[own][0],
        "formulation": formulation,
        "norm": norm,
        "clip_max": torch.tensor(0.4, dtype=torch.float64),
    }
    weighted = {"grad_weight_real": weights[0], "grad_weight_fake": weights[1]}
    for attack_step in (dat.attack_step, dat.reference.attack_step):
        step = attack_step(*x, *v, *scores, 0.1, **options, **weighted)
        assert not any(t.requires_grad for t in step)
        torch.testing.assert_close(step.loss_real + step.loss_fake, loss.detach(), rtol=1e-12, atol=1e-12)
        for k in range(2):
            gradient = (coefficients[k] / weights[k])[:, None, None] * v[k]
            torch.testing.assert_close(step[2 + k], gradient, rtol=1e-10, atol=1e-12)
            if norm == "l2":
                gradient = gradient / gradient.flatten(1).norm(dim=1)[:, None, None]
            if norm == "clamp":
                gradient = gradient.clamp(-1, 1)
            moved = x[k] - 0.1 * (gradient.sign() if norm == "linf" else gradient)
            torch.testing.assert_close(step[k], moved.clamp(-1, 0.4), rtol=1e-10, atol=1e-12)


@merges
@each_own
@pytest.mark.parametrize("options", [{}, {"norm": "linf", "eps": 0.05, "steps": 2, "random_start": True}], ids=str)
@pytest.mark.parametrize("name", ["conv", "BatchNorm"])
def test_adversarial_batches(own, name, options):
    found = []
    for adversarial_batch in (dat.adversarial_batch, dat.reference.adversarial_batch):
        torch.manual_seed(3)
        x = batches(own, torch.float64)
        found.append(
            adversarial_batch(build(name, torch.float64), *x, **{"eps": 0.5, "objective": OWN[own][0], **options})
        )
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
    if not options:
        expected = algorithm1(build(name, torch.float64), *batches(own), eps=0.5, objective=own)
        torch.testing.assert_close(list(found[0]), expected.adv, rtol=1e-9, atol=1e-11)


LOGITS = torch.tensor([0.5, 2.0, -1.0]), torch.tensor([-1.0, 1.5])


@pytest.mark.parametrize("objective", ["relativistic", OWN["average"][0]], ids=["a name", "an object"])
def test_the_attack_of_a_loss_over_pairs_has_kernels(objective, monkeypatch):
    ran = []
    for op in ("attack_loss", "attack_step"):
        own = getattr(cpu_backend(), op)
        monkeypatch.setattr(cpu_backend(), op, lambda *a, own=own: (ran.append(own), own(*a)))
    x = torch.rand(3, 4), torch.rand(2, 4)
    for impl in (None, "cpu"):
        assert dat.attack_loss(*LOGITS, objective=objective, impl=impl) == dat.attack_loss(
            *LOGITS, objective="wasserstein"
        )
        steps = [dat.attack_step(*x, *x, *LOGITS, 0.1, objective=o, impl=impl) for o in (objective, "wasserstein")]
        for ours, theirs in zip(*steps, strict=True):
            assert torch.equal(ours, theirs)
    assert len(ran) == 8


def test_formulas_of_ones_own_have_none():
    own = OWN["exponential"][0]
    with pytest.raises(dat.BackendError, match="impl: backend 'cpu' has no kernel for objective 'exponential'"):
        dat.attack_loss(*LOGITS, objective=own, impl="cpu")
    x = torch.rand(3, 4), torch.rand(2, 4)
    with dat.use_backend("cpu"), pytest.raises(dat.BackendError, match="use_backend: backend 'cpu' has no kernel"):
        dat.attack_step(*x, *x, *LOGITS, 0.1, objective=own)
    with dat.use_backend("cpu"), pytest.raises(dat.BackendError, match="has no kernel for objective 'exponential'"):
        dat.discriminator_step(conv(), *batches("average"), eps=0.1, objective=own)
    dat.attack_loss(*LOGITS, objective=own, impl="reference")


def test_attack_losses_of_ones_own_can_be_differentiated_twice():
    def loss(*logits):
        targets = {"target_real_logits": LOGITS[0].double(), "target_fake_logits": LOGITS[1].double()}
        return dat.attack_loss(*logits, objective=OWN["exponential"][0], **targets)

    logits = [t.double().requires_grad_() for t in LOGITS]
    assert torch.autograd.gradcheck(loss, logits) and torch.autograd.gradgradcheck(loss, logits)


def test_an_objective_is_itself():
    one, other = (dat.Objective("mine", exponential, lambda t: exponential(-t)) for _ in range(2))
    assert one != other and len({one, other, one}) == 2
    assert repr(one) == "Objective('mine')"


def test_a_row_is_its_name(monkeypatch):
    monkeypatch.setattr(dispatch, "_warned", set())
    assert dispatch.backend(torch.device("cpu"), "", objective="hinge") is cpu_backend()
    for name, row in OBJECTIVES.items():
        assert dat.attack_loss(*LOGITS, objective=row, impl="cpu") == dat.attack_loss(
            *LOGITS, objective=name, impl="cpu"
        )
    mine = dat.Objective("mine", exponential, lambda t: exponential(-t))
    monkeypatch.setitem(OBJECTIVES, "mine", mine)
    with pytest.warns(UserWarning, match="for objective 'mine'"):  # by name a kernel might be expected
        dat.attack_loss(*LOGITS, objective=mine)


def test_the_registered_operations_know_the_name():
    losses, *coefficients = torch.ops.datgan_fast.attack_loss(*LOGITS, *LOGITS, "relativistic", "eq10", "cpu")
    assert torch.equal(losses, torch.stack(dat.attack_loss(*LOGITS, objective="wasserstein")))
    assert torch.equal(coefficients[0].abs(), torch.ones(3))
    sums, weights = torch.empty(4), [torch.empty_like(t) for t in LOGITS]
    with pytest.raises(ValueError, match="'relativistic' compares the scores of both batches"):
        torch.ops.datgan_fast.logit_terms(*LOGITS, 1.0, 0.0, "relativistic", "eq10", "", *weights, sums, None, None)


# The generator


def test_the_generator_of_the_relativistic_objective_sees_real_scores():
    torch.manual_seed(4)
    r, f = (torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = dat.reference.generator_loss(f, "relativistic", real_logits=r)
    expected = torch.log1p(torch.exp(-(f - r))).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    found = torch.autograd.grad(loss, (f, r), allow_unused=True)
    torch.testing.assert_close(found[0], torch.autograd.grad(expected, f)[0], rtol=1e-12, atol=0)
    assert found[1] is None  # they are constants
    assert generator_terms(f, "relativistic") is None
    with pytest.raises(ValueError, match=r"'relativistic': its generator's loss compares .*; give real_logits"):
        dat.reference.generator_loss(f, "relativistic")


def test_generator_losses_of_ones_own():
    r, f = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.25, 3.0, -1.0])
    loss = dat.reference.generator_loss
    with_roles_exchanged = F.softplus(-(f - r.mean())).mean() + F.softplus(r - f.mean()).mean()
    torch.testing.assert_close(loss(f, OWN["average"][0], real_logits=r), with_roles_exchanged)
    torch.testing.assert_close(loss(f, OWN["exponential"][0], real_logits=r), -(f / 2).exp().mean())
    of_one = dat.Objective("one", loss=average, generator_loss=lambda f: (1 - f).mean())
    torch.testing.assert_close(loss(f, of_one), (1 - f).mean())
    of_two = dat.Objective("two", torch.tanh, torch.sin, generator_loss=lambda f, r: (r - f).mean())
    torch.testing.assert_close(loss(f, of_two, real_logits=r), (r - f).mean())
    of_module = dat.Objective("module", loss=average, generator_loss=torch.nn.MSELoss())
    torch.testing.assert_close(loss(f, of_module, real_logits=r), (r - f).square().mean())
    terms = generator_terms(f, OWN["exponential"][0])
    torch.testing.assert_close(terms[0], -(f / 2).exp().mean())
    torch.testing.assert_close(terms[1], -(f / 2).exp() / 6)


def test_discriminator_losses():
    r, f = torch.tensor([1.0, -2.0]), torch.tensor([0.25, 3.0])
    loss = dat.reference.discriminator_loss
    torch.testing.assert_close(loss(r, f, "relativistic"), torch.log1p(torch.exp(f - r)).mean())
    torch.testing.assert_close(loss(r, f, OWN["exponential"][0]), ((-r / 2).exp() + (f / 2).exp()).mean())
    torch.testing.assert_close(loss(r.bfloat16(), f.bfloat16(), "relativistic"), loss(r, f, "relativistic"))


def test_constant_slopes():
    """A score that does not depend on its logit is never moved."""
    flat = dat.Objective("flat", torch.ones_like, lambda t: 2 * t)
    t = torch.randn(4, dtype=torch.float64)
    assert torch.equal(dat.reference.slope1(flat, t), torch.zeros_like(t))
    assert torch.equal(dat.reference.slope2(flat, t), torch.full_like(t, 2))


# What is refused


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: dat.Objective("x"), "'x' needs both g1 and g2, or a loss"),
        (lambda: dat.Objective("x", torch.sin), "'x' needs both g1 and g2"),
        (lambda: dat.Objective("x", torch.sin, loss=average), "'x' needs both g1 and g2"),
        (lambda: dat.Objective("x", torch.sin, 3.0), "'x': g2 must be a function of scores; got 3.0"),
        (lambda: dat.Objective("x", loss="hinge"), "'x': loss must be a function of scores; got 'hinge'"),
        (lambda: dat.Objective(torch.sin, torch.cos), "name must be a string that is not empty; got <"),
        (lambda: dat.Objective("", torch.sin, torch.cos), "name must be a string that is not empty; got ''"),
    ],
)
def test_what_is_no_objective(make, said):
    with pytest.raises(TypeError, match=said):
        make()


def half(t):
    return t[: len(t) // 2]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("objective", "error", "said"),
    [
        (dat.Objective("x", half, half), ValueError, r"'x': g\d must be elementwise, .*; scores \(6,\) gave .*\(3,\)"),
        (dat.Objective("x", torch.sin, torch.mean), ValueError, "'x': g2 must be elementwise"),
        (dat.Objective("x", lambda t: t > 0, torch.sin), ValueError, "'x': g1 must be elementwise, .* gave torch.bool"),
        (dat.Objective("x", lambda t: 1.0, torch.sin), ValueError, "'x': g1 must be elementwise, .* gave float"),
        (dat.Objective("x", loss=lambda r, f: r), TypeError, r"'x': loss must return a floating 0-d tensor.*got .*\(6,\)"),
        (dat.Objective("x", loss=lambda r, f: 0.5), TypeError, "'x': loss must return .* got float"),
        (dat.Objective("x", loss=lambda r, f: r.detach().mean()), ValueError, "'x': loss depends on none of the scores"),
        (dat.Objective("hinge", torch.sin, torch.cos), ValueError, "the name 'hinge' is taken by another"),
        ("r3gan", ValueError, "objective must be one of vanilla, .*, relativistic; got 'r3gan'"),
        (torch.sin, ValueError, "objective must be one of vanilla"),
        ("relativistic", ValueError, r"both batches must have the same size; got scores of shape \(6,\) and \(4,\)"),
        (dat.Objective("x", loss=lambda r, f: (r - f).mean()), RuntimeError, "size of tensor a"),  # torch's own words
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_an_objective_must_not_give(objective, error, said, fused):
    with pytest.raises(error, match=said):
        dat.discriminator_step(conv(), images(M, 1), images(N, 2), eps=0.1, objective=objective, fused=fused)


def test_a_discriminator_that_ends_in_probabilities_is_refused():
    network = torch.nn.Sequential(conv(), torch.nn.Sigmoid())
    with pytest.raises(ValueError, match="objective 'relativistic' takes logits"):
        dat.discriminator_step(network, images(M, 1), images(M, 2), eps=0.1, objective="relativistic")
    dat.discriminator_step(network, images(M, 1), images(M, 2), eps=0.1, objective=OWN["average"][0])


@pytest.mark.compiles
@each_own
def test_attack_losses_compile(own):
    def loss(r, f):
        return sum(dat.attack_loss(r, f, objective=OWN[own][0]))

    logits = [t.clone().requires_grad_() for t in LOGITS]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*logits)
    torch.testing.assert_close(compiled, loss(*logits))
    torch.testing.assert_close(torch.autograd.grad(compiled, logits), torch.autograd.grad(loss(*logits), logits))
