"""Seven designs as they are published: how many lines of their loops direct adversarial training changes, and what the changed
loops train to, against float64 autograd from the formulas."""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import algorithm1
import datgan_fast as dat
from algorithm1 import M, N
from designs import Auxiliary, Features, Patches, Periods, Projection
from networks import MinibatchStddev, conv, images
from scored_step import scored_step

pytestmark = pytest.mark.usefixtures("one_thread", "merging")

# Miyato and Koyama (2018): projection


def projection(d, optimizer, batches):
    for x_real, x_fake, y_real, y_fake in batches:
        optimizer.zero_grad()
        loss = F.relu(1 - d(x_real, y_real)).mean() + F.relu(1 + d(x_fake, y_fake)).mean()
        loss.backward()
        optimizer.step()


def projection_with_dat(d, optimizer, batches):
    for x_real, x_fake, y_real, y_fake in batches:
        optimizer.zero_grad()
        labels = {"condition_real": y_real, "condition_fake": y_fake}
        dat.discriminator_step(d, x_real, x_fake, eps=0.5, objective="hinge", **labels)
        optimizer.step()


# Odena et al. (2017): an auxiliary classifier


def auxiliary(d, optimizer, batches):
    for x_real, x_fake, y_real, _ in batches:
        optimizer.zero_grad()
        (score_real, classes), (score_fake, _) = d(x_real), d(x_fake)
        loss = F.softplus(-score_real).mean() + F.softplus(score_fake).mean()
        loss = loss + F.cross_entropy(classes, y_real)
        loss.backward()
        optimizer.step()


def auxiliary_with_dat(d, optimizer, batches):
    for x_real, x_fake, y_real, _ in batches:
        optimizer.zero_grad()
        dat.discriminator_step(
            d, x_real, x_fake, eps=0.5, scores=lambda out: out[0],
            penalty=lambda d, x, _, y=y_real: F.cross_entropy(d(x)[1], y),
        )  # fmt: skip
        optimizer.step()


# Isola et al. (2017): patches of an image joined with its source


def patches(d, optimizer, batches):
    for x_real, x_fake, source in batches:
        optimizer.zero_grad()
        loss = (d(source, x_real) - 1).square().mean() + d(source, x_fake).square().mean()
        loss.backward()
        optimizer.step()


def patches_with_dat(d, optimizer, batches):
    for x_real, x_fake, source in batches:
        optimizer.zero_grad()
        sources = {"condition_real": source, "condition_fake": source}
        dat.discriminator_step(lambda x, s: d(s, x), x_real, x_fake, eps=0.5, objective="least_squares", **sources)
        optimizer.step()


# Kong et al. (2020): sound seen at several periods


def periods(d, optimizer, batches):
    for x_real, x_fake in batches:
        optimizer.zero_grad()
        scores = zip(d(x_real)[0], d(x_fake)[0], strict=True)
        loss = sum((1 - r).square().mean() + f.square().mean() for r, f in scores)
        loss.backward()
        optimizer.step()


def periods_with_dat(d, optimizer, batches):
    for x_real, x_fake in batches:
        optimizer.zero_grad()
        scores = {"objective": "least_squares", "scores": lambda out: out[0]}
        dat.discriminator_step(d, x_real, x_fake, eps=0.5, **scores)
        optimizer.step()


# Karras et al. (2018): the minibatch's standard deviation


def deviation(d, optimizer, batches):
    for x_real, x_fake in batches:
        optimizer.zero_grad()
        loss = F.softplus(-d(x_real)).mean() + F.softplus(d(x_fake)).mean()
        loss.backward()
        optimizer.step()


def deviation_with_dat(d, optimizer, batches):
    for x_real, x_fake in batches:
        optimizer.zero_grad()
        dat.discriminator_step(d, x_real, x_fake, eps=0.5)
        optimizer.step()


# Salimans et al. (2016): features beside the score, which the generator's turn matches


def features(d, optimizer, batches):
    for x_real, x_fake in batches:
        optimizer.zero_grad()
        loss = F.relu(1 - d(x_real)[0]).mean() + F.relu(1 + d(x_fake)[0]).mean()
        loss.backward()
        optimizer.step()


def features_with_dat(d, optimizer, batches):
    for x_real, x_fake in batches:
        optimizer.zero_grad()
        dat.discriminator_step(d, x_real, x_fake, eps=0.5, objective="hinge", scores=lambda out: out[0])
        optimizer.step()


# Huang et al. (2024): pairs of a real and a generated image


def relativistic(d, optimizer, batches):
    for x_real, x_fake in batches:
        optimizer.zero_grad()
        loss = F.softplus(d(x_fake) - d(x_real)).mean()
        loss.backward()
        optimizer.step()


def relativistic_with_dat(d, optimizer, batches):
    for x_real, x_fake in batches:
        optimizer.zero_grad()
        dat.discriminator_step(d, x_real, x_fake, eps=0.5, objective="relativistic")
        optimizer.step()


LABELS = torch.tensor([0, 3, 1, 4, 2, 0]), torch.tensor([2, 2, 0, 1])


def pairs(k, m=M, n=N):
    return images(m, 2 * k, torch.float64), images(n, 2 * k + 1, torch.float64)


def sounds(k):
    torch.manual_seed(k)
    return tuple(1.8 * torch.rand(count, 1, 61, dtype=torch.float64) - 0.9 for count in (M, N))


class Design(NamedTuple):
    plain: Callable[..., None]
    ours: Callable[..., None]
    make: Callable[[], nn.Module]
    batch: Callable[[int], Any]  # the k-th: both sides' images, and what else the loop has
    # from D and a batch to D on each side's images
    sides: Callable[..., Any] = lambda d, b: (d, d)
    objective: str = "vanilla"
    beside: Callable[..., torch.Tensor] | None = None  # from D and a batch to what is added to the loss


def first(d, b):
    return (lambda x: d(x)[0],) * 2


DESIGNS = {
    "projection": Design(projection, projection_with_dat, Projection, lambda k: (*pairs(k), *LABELS),
                         lambda d, b: (lambda x: d(x, b[2]), lambda x: d(x, b[3])), "hinge"),
    "auxiliary classifier": Design(auxiliary, auxiliary_with_dat, Auxiliary, lambda k: (*pairs(k), *LABELS), first,
                                   beside=lambda d, b: F.cross_entropy(d(b[0])[1], b[2])),
    "patches": Design(patches, patches_with_dat, Patches, lambda k: (*pairs(k, M, M), images(M, 9 + k, torch.float64)),
                      lambda d, b: (lambda x: d(b[2], x),) * 2, "least_squares"),
    "periods": Design(periods, periods_with_dat, Periods, sounds, first, "least_squares"),
    "minibatch deviation": Design(deviation, deviation_with_dat, lambda: conv(MinibatchStddev(), channels=9), pairs),
    "features": Design(features, features_with_dat, Features, pairs, first, "hinge"),
    "relativistic": Design(relativistic, relativistic_with_dat, conv, lambda k: pairs(k, M, M), objective="relativistic"),
}  # fmt: skip
each_design = pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)


@pytest.fixture(autouse=True)
def relativistic_formula(monkeypatch):
    monkeypatch.setitem(algorithm1.G1, "relativistic", lambda t: t)
    monkeypatch.setitem(algorithm1.G2, "relativistic", lambda t: -t)
    monkeypatch.setitem(algorithm1.LOSSES, "relativistic", lambda r, f: torch.log1p(torch.exp(f - r)).mean())


def made(design):
    torch.manual_seed(0)
    network = design.make().double()
    return network, torch.optim.Adam(network.parameters(), 1e-2, eps=1e-3), [design.batch(k) for k in (1, 2)]


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def changed(before, after):
    """How many lines of a loop's body others have taken the place of."""
    lines = [inspect.getsource(loop).splitlines()[1:] for loop in (before, after)]
    marks = [line[0] for line in difflib.ndiff(*lines)]
    return max(marks.count("-"), marks.count("+"))


@each_design
def test_how_many_lines_change(design):
    assert 1 <= changed(design.plain, design.ours) <= 4


@each_design
def test_two_steps_are_those_of_autograd(design):
    network, optimizer, batches = made(design)
    design.ours(network, optimizer, batches)
    double, optimizer, batches = made(design)
    start = weights(double)
    for batch in batches:
        optimizer.zero_grad()
        scored_step(double, *design.sides(double, batch), batch[:2], eps=0.5, objective=design.objective)
        if design.beside:
            design.beside(double, batch).backward()
        optimizer.step()
    assert (weights(double) - start).abs().max() > 1e-3
    torch.testing.assert_close(weights(network), weights(double), rtol=1e-9, atol=1e-11)


@each_design
def test_without_perturbed_images_both_loops_are_one(design, monkeypatch):
    monkeypatch.setattr(dat, "discriminator_step", functools.partial(dat.discriminator_step, lambda_adv=0.0))
    found = []
    for loop in (design.plain, design.ours):
        network, *given = made(design)
        loop(network, *given)
        found.append(weights(network))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-11)
