"""What is measured of the paper's theory, against the formulas in float64, finite differences and closed forms."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import datgan_fast as dat
import oracle
from datgan_fast.paper import theory
from datgan_fast.paper.theory import Added, Recorder, added_by_dat, generator_update, measure
from datgan_fast.training.iteration import Batch

pytestmark = pytest.mark.usefixtures("one_thread")

DOUBLE = torch.float64
SMALL = {"image_size": 8, "channels": 1, "width": 4, "z_dim": 8, "batch_size": 6, "device": "cpu", "steps": 100}


def network(batch_norm=False):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        *([nn.BatchNorm2d(4)] if batch_norm else []),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 1),
        nn.Flatten(0),
    ]
    made = nn.Sequential(*layers).to(DOUBLE).requires_grad_(False)
    made[-2].weight.mul_(4)
    return made


def batches(count=7, size=8):
    random = torch.Generator().manual_seed(1)
    real, fake = (torch.rand(count, 1, size, size, generator=random, dtype=DOUBLE) * 2 - 1 for _ in range(2))
    return Batch(real), Batch(fake * 0.9)


def config(**options):
    return dat.TrainConfig(baseline="dcgan", dataset="digits", **{**SMALL, **options}).resolved()


def expected(discriminator, real, fake, c, cap=700.0):
    """By the formulas, an image at a time, for a discriminator without BatchNorm: (exact, penalty, s, square) a side."""
    g1, g2, slope1, slope2 = oracle.terms(c.objective, cap)
    scores = [np.array([discriminator(x[None]).item() for x in b.images]) for b in (real, fake)]
    found = []
    for k, (batch, g, slope) in enumerate(((real, g1, slope1), (fake, g2, slope2))):
        own, other = scores[k], scores[1 - k]
        n = len(own)
        h, h_slope = (g, slope) if c.formulation == "eq10" else ((g2, slope2), (g1, slope1))[k]
        if c.formulation == "batch_mean":
            inside, h_slope_at = np.full(n, own.mean() - other.mean()), np.full(n, 1 / n)
        else:
            target = h(other).mean() if c.formulation == "eq10" else h(other.mean())
            inside, h_slope_at = h(own) - target, h_slope(own)
        rows = []
        for i, image in enumerate(batch.images):
            x = image[None].clone().requires_grad_()
            (v,) = torch.autograd.grad(discriminator(x), x)
            moved = (x.detach() - c.eps * np.sign(inside[i]) * h_slope_at[i] * v).clamp(-1, 1)
            square = float(v.square().sum())
            exact = -(g(np.array(discriminator(moved).item())) - g(own[i])) / n
            penalty = c.eps * np.sign(inside[i]) * slope(own[i]) * h_slope_at[i] * square / n
            rows.append((exact, penalty, penalty, square / n))
        found.append(np.array(rows).T)
    return found


@pytest.mark.parametrize("formulation", oracle.FORMULATIONS)
@pytest.mark.parametrize("objective", oracle.OBJECTIVES)
def test_what_an_image_adds(objective, formulation):
    discriminator, (real, fake) = network(), batches()
    c = config(objective=objective, formulation=formulation, eps=0.05)
    for found, (exact, penalty, s, square) in zip(
        added_by_dat(discriminator, real, fake, c), expected(discriminator, real, fake, c), strict=True
    ):
        np.testing.assert_allclose(found.exact, exact, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(found.penalty, penalty, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(found.square, square, rtol=1e-9)
        moves = s != 0
        assert (found.ahead.numpy()[moves] == (s[moves] > 0)).all()


def test_both_signs_were_there():
    sides = added_by_dat(network(), *batches(), config(objective="vanilla", formulation="alg1"))
    assert all(0 < int(side.ahead.sum()) < len(side.ahead) for side in sides)


def test_it_is_ahead_when_neither_side_has_moved_on():
    """s = 0 counts as ahead."""
    discriminator, (real, fake) = network(), batches()
    discriminator[-2].weight.zero_()
    discriminator[-2].bias.zero_()
    sides = added_by_dat(discriminator, real, fake, config(objective="hinge", formulation="eq10"))
    assert all(bool(side.ahead.all()) for side in sides)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("k", [0, 1])
def test_the_first_order_expansion_is_the_derivative_along_the_actual_displacement(batch_norm, k):
    discriminator, pair = network(batch_norm).train(), batches()
    c = config(objective="vanilla", eps=3.0)
    moved = dat.reference.adversarial_batch(
        discriminator, pair[0].images, pair[1].images, eps=3.0, objective="vanilla", formulation=c.formulation
    )
    x, way = pair[k].images, moved[k] - pair[k].images
    assert int((moved[k].abs() == 1).sum()) > 5  # some of it is cut
    g = oracle.terms("vanilla", 700.0)[k]

    def terms(t):
        return -g(oracle.array(discriminator(x + t * way))) / len(x)

    found = added_by_dat(discriminator, *pair, c)[k].first_order
    np.testing.assert_allclose(found, (terms(1e-5) - terms(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-11)
    leaf = x.clone().requires_grad_()  # and their sum is that of the loss's gradients times the displacements
    loss = -(nn.functional.logsigmoid((1, -1)[k] * discriminator(leaf))).mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert float(found.sum()) == pytest.approx(float((gradient * way).sum()), rel=1e-9)


@pytest.mark.parametrize("options", [{"norm": "l2", "eps": 0.1}, {"steps_attack": 2, "eps": 0.1}])
def test_another_attack_is_no_penalty(options):
    for side in added_by_dat(network(), *batches(), config(**options)):
        assert bool(side.penalty.isnan().all()) and bool(side.exact.isfinite().all())


def test_pairs_have_no_terms_of_images():
    for side in added_by_dat(network(), *batches(), config(objective="relativistic", formulation="eq10")):
        assert all(bool(t.isnan().all()) for t in (side.exact, side.first_order, side.penalty))


def test_sums_and_correlations():
    values = [torch.tensor(v, dtype=DOUBLE) for v in ([1.0, 2.0, 4.0, -3.0], [1.0, 3.0, 5.0, -2.0])]
    ahead = torch.tensor([True, True, True, False])
    side = Added(ahead, values[0], 2 * values[0], values[1], values[1].square() / 4)
    other = Added(~ahead, -values[0], -values[0], -values[1], values[1].square() / 4)
    found = theory._summed([(side, other), (side, other)])
    assert (found["share_ahead_real"], found["share_ahead_fake"]) == (0.75, 0.25)
    assert found["exact_ahead"] == pytest.approx(7.0 + 3.0)
    assert found["exact_behind"] == pytest.approx(-3.0 - 7.0)
    assert found["first_order_ahead"] == pytest.approx(14.0 + 3.0)
    assert found["penalty_behind"] == pytest.approx(-2.0 - 9.0)
    assert found["square_ahead"] == pytest.approx((1 + 9 + 25 + 4) / 4)
    assert found["gradient_norm"] == pytest.approx((1 + 3 + 5 + 2) / 4)  # ||grad|| = |values[1]| as square is that by 4
    expected = np.corrcoef([1, 2, 4, 3] * 2, [1, 3, 5, 2] * 2)[0, 1]
    assert found["correlation_ahead"] == pytest.approx(expected)


# Of a trainer


def linear_trainer(**options):
    """D is an image's product with a weight, G is affine."""
    torch.manual_seed(4)
    generator = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False), nn.Flatten(0))
    images = torch.randint(64, 192, (50, 1, 8, 8), dtype=torch.uint8)
    c = dat.TrainConfig(z_dim=8, batch_size=6, device="cpu", steps=100, **options)
    return dat.Trainer(c, generator=generator, discriminator=discriminator, images=images)


def test_a_linear_critic_in_closed_form():
    trainer = linear_trainer(baseline="wgan", eps=0.1, dat=False)
    trainer.train_step()
    found = measure(trainer)
    w = trainer.discriminator[1].weight.detach().double().flatten()
    length = float(w.norm())
    for name in ("gradient_norm", "lipschitz_local", "lipschitz_bound"):
        assert found[name] == pytest.approx(length, rel=1e-5)
    shares = (found["share_ahead_real"] + found["share_ahead_fake"]) / 2
    sums = {name: found[f"{name}_ahead"] - found[f"{name}_behind"] for name in ("exact", "first_order", "penalty")}
    for value in sums.values():
        assert value == pytest.approx(0.1 * 2 * length**2, rel=1e-3)  # exact: differences of float32
    assert found["square_ahead"] == pytest.approx(2 * shares * length**2, rel=1e-5)


def adam(p, g, state, lr, betas):
    m = betas[0] * oracle.array(state["exp_avg"]) + (1 - betas[0]) * g
    v = betas[1] * oracle.array(state["exp_avg_sq"]) + (1 - betas[1]) * g**2
    t = int(state["step"]) + 1
    return lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + 1e-8)


def rmsprop(p, g, state, lr, betas):
    v = betas[1] * oracle.array(state["square_avg"]) + (1 - betas[1]) * g**2
    return lr * g / (np.sqrt(v) + 1e-8)


@pytest.mark.parametrize(("optimizer", "rule"), [("adam", adam), ("rmsprop", rmsprop)])
def test_how_far_the_generator_moves(optimizer, rule):
    trainer = linear_trainer(baseline="dcgan", optimizer=optimizer, lr=1e-3)
    for _ in range(3):
        trainer.train_step()
    iteration, c = trainer.iteration, trainer.config
    latents = torch.randn(6, 8)
    generator = copy.deepcopy(trainer.generator).double()
    d = copy.deepcopy(trainer.discriminator).double()
    loss = -nn.functional.logsigmoid(d(generator(latents.double()))).mean()
    gradients = [oracle.array(g) for g in torch.autograd.grad(loss, list(generator.parameters()))]
    own = list(trainer.generator.parameters())
    moves = [
        rule(p, g, iteration.optimizer_g.state[p], 1e-3, (c.beta1, c.beta2))
        for p, g in zip(own, gradients, strict=True)
    ]

    def length(arrays):
        return math.sqrt(sum((a**2).sum() for a in arrays))

    found = generator_update(iteration, trainer.discriminator, Batch(latents), Batch(latents))
    assert found.gradient == pytest.approx(length(gradients), rel=1e-4)
    assert found.length == pytest.approx(length(moves), rel=1e-3)
    assert found.relative == pytest.approx(length(moves) / length(map(oracle.array, own)), rel=1e-3)
    trainer.discriminator.zero_grad()


def flat(state):
    """Every leaf of a nested state, tensors as bytes."""
    if isinstance(state, dict):
        return [leaf for key in state for leaf in flat(state[key])]
    if isinstance(state, (list, tuple)):
        return [leaf for value in state for leaf in flat(value)]
    return [state.numpy().tobytes() if isinstance(state, torch.Tensor) else state]


@pytest.mark.parametrize(
    "options",
    [
        {"baseline": "dcgan", "dat": True},
        {"baseline": "wgan", "dat": False},
        {"baseline": "dcgan", "spectral_norm": True},
        {"baseline": "dcgan", "conditional": True},
        {"baseline": "dcgan", "architecture": "resnet"},
    ],
)
def test_measuring_changes_nothing(options):
    made = [dat.Trainer(dat.TrainConfig(dataset="digits", **{**SMALL, **options})) for _ in range(2)]
    for trainer, measured in zip(made, (False, True), strict=True):
        for _ in range(3):
            trainer.train_step()
            if measured:
                before = flat(trainer.state())
                networks = (trainer.generator, trainer.discriminator)
                gradients = [
                    (p, p.grad, None if p.grad is None else p.grad.clone()) for n in networks for p in n.parameters()
                ]
                modes = [m.training for n in networks for m in n.modules()]
                trainer.discriminator.eval()
                random = torch.get_rng_state()
                found = measure(trainer)
                assert torch.equal(random, torch.get_rng_state())
                assert not any(m.training for m in trainer.discriminator.modules())
                trainer.discriminator.train()
                assert modes == [m.training for n in networks for m in n.modules()]
                assert all(p.grad is g and (g is None or torch.equal(g, value)) for p, g, value in gradients)
                assert all(p.requires_grad for n in networks for p in n.parameters())
                assert flat(trainer.state()) == before
                assert measure(trainer) == pytest.approx(found, nan_ok=True, rel=0, abs=0)
    plain, measured = ({**t.state(), "seconds": 0.0} for t in made)
    assert flat(plain) == flat(measured)


def test_which_mode_the_discriminator_is_measured_in(monkeypatch):
    """Training mode for what DAT adds, evaluation mode for its Lipschitz constant; RADIUS is one per element."""
    seen = {}
    added, bound, local = theory.added_by_dat, theory.lipschitz_bound, theory.local_slope

    def of_added(discriminator, *others):
        seen["added"] = discriminator.training
        return added(discriminator, *others)

    def of_bound(discriminator, image):
        seen["bound"] = discriminator.training
        return bound(discriminator, image)

    def of_local(discriminator, images, condition, *, radius):
        seen["local"], seen["radius"], seen["images"] = discriminator.training, radius, len(images)
        return local(discriminator, images, condition, radius=radius)

    for spy in (of_added, of_bound, of_local):
        name = {"of_added": "added_by_dat", "of_bound": "lipschitz_bound", "of_local": "local_slope"}[spy.__name__]
        monkeypatch.setattr(theory, name, spy)
    trainer = dat.Trainer(dat.TrainConfig(dataset="digits", baseline="dcgan", **SMALL))
    trainer.discriminator.eval()  # whatever it is in
    measure(trainer)
    assert seen == {"added": True, "bound": False, "local": False, "radius": pytest.approx(0.1 * 8), "images": 12}


def test_points_are_measured_too():
    trainer = dat.Trainer(dat.TrainConfig(dataset="ring", width=8, batch_size=16, device="cpu", steps=10))
    trainer.train_step()
    found = measure(trainer)
    assert math.isfinite(found["lipschitz_bound"]) and 0 < found["lipschitz_local"] <= found["lipschitz_bound"]
    assert all(isinstance(value, float) for value in found.values())


# Along a run


class Known:
    """In place of a trainer, what is measured of it being known."""


def recorder(monkeypatch):
    made = Recorder()
    made.trainer = Known()
    monkeypatch.setattr(theory, "measure", lambda trainer: {"a": 1.0, "b": math.nan} if trainer is made.trainer else {})
    return made


def lines(path):
    return [json.loads(line) for line in (path / "theory.jsonl").read_text().splitlines()]


def test_a_line_for_each_evaluation(monkeypatch, tmp_path):
    made = recorder(monkeypatch)
    made.begin(None, tmp_path, 0)
    made.scalars(5, "train", {})
    made.scalars(10, "metrics", {})
    made.scalars(20, "metrics", {})
    made.close()
    assert lines(tmp_path) == [{"step": 10, "a": 1.0, "b": None}, {"step": 20, "a": 1.0, "b": None}]


def test_a_run_that_goes_on(monkeypatch, tmp_path):
    """Later lines are forgotten; that of an evaluation on record which has none is made up for."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n')
    (tmp_path / "theory.jsonl").write_text('{"step": 10, "a": 0.5}\nhalf a\n{"step": 30, "a": 0.5}\n')
    made = recorder(monkeypatch)
    made.begin(None, tmp_path, 20)
    assert lines(tmp_path) == [{"step": 10, "a": 0.5}, {"step": 20, "a": 1.0, "b": None}]
    made.begin(None, tmp_path, 20)
    assert [record["step"] for record in lines(tmp_path)] == [10, 20]
    made.begin(None, tmp_path, 15)
    assert [record["step"] for record in lines(tmp_path)] == [10]


def test_an_evaluation_that_is_made_again_has_one_line(monkeypatch, tmp_path):
    (tmp_path / "theory.jsonl").write_text('{"step": 10, "a": 0.5}\n')
    made = recorder(monkeypatch)
    made.begin(None, tmp_path, 10)
    made.scalars(10, "metrics", {})
    assert lines(tmp_path) == [{"step": 10, "a": 1.0, "b": None}]


@pytest.mark.trains
def test_a_run_records_what_is_measured_of_it(tmp_path):
    c = dat.TrainConfig(
        dataset="ring", width=8, batch_size=16, device="cpu", steps=100, eval_every=50, outdir=str(tmp_path)
    ).resolved()
    recorder = Recorder()
    trainer = recorder.trainer = dat.Trainer(c, loggers=[recorder])
    run = trainer.fit()
    records = lines(run.path)
    assert [record["step"] for record in records] == [50, 100] == sorted(run.measured())
    now = measure(trainer)
    assert records[-1] == {"step": 100, **{k: v if math.isfinite(v) else None for k, v in now.items()}}
