"""The arithmetic of a discriminator step, in forwards of D over both batches, counted in its convolutions' multiplications.

A backward to the images is one unit and one to the weights another. The perturbed images need no gradient, so that their backward
leaves out the first layer's: this part of a unit is `first` below.
"""

import pytest
import torch
from torch import nn

import datgan_fast as dat
from counting import Convolutions, forward_work
from datgan_fast import penalties
from datgan_fast.training.networks import build_discriminator

pytestmark = pytest.mark.usefixtures("one_thread")

M, N = 6, 4
REAL, FAKE, PAIRS = M / (M + N), N / (M + N), 2 * min(M, N) / (M + N)  # parts of a unit; x_hat is one batch of pairs


def images(count, side=32):
    return 2 * torch.rand(count, 3, side, side) - 1


def dcgan():
    network = build_discriminator("dcgan", image_size=32, channels=3, width=8, batch_norm=False)
    for p in network.parameters():
        p.data.mul_(12)  # so steep that every image is punished
    return network


def units(network, x, **options):
    """(of a step after the first one, the first layer's part of a forward), and the record."""
    work, first = forward_work(network, *x), forward_work(next(m for m in network.modules() if is_conv(m)), *x)
    options = {"eps": 0.1, "objective": "wasserstein", **options}
    dat.discriminator_step(network, *x, **options)
    with Convolutions() as counted:
        record = dat.discriminator_step(network, *x, **options)
    return counted.total() / work, first / work, record


def is_conv(module):
    return isinstance(module, nn.Conv2d)


def costs(found, expected):
    """A second pass ends in the last layer, which it does not go forward through."""
    return expected - 0.003 < found < expected + 1e-9


GRADIENT = 4 * PAIRS / 2  # forward, backward to x_hat, and a second pass of two
LIPSCHITZ = 5  # the power iteration's forward and backward; X' forward and backward to both

COSTS = {
    "nothing": ({}, 0),
    "gp": ({"penalty": penalties.gradient_penalty()}, GRADIENT),
    "lp": ({"penalty": penalties.gradient_penalty(one_sided=True)}, GRADIENT),
    # a second pass of two over the images in question
    "r1": ({"penalty": penalties.r1()}, 2 * REAL),
    "r2": ({"penalty": penalties.r2()}, 2 * FAKE),
    "r1 + r2": ({"penalty": penalties.r1() + penalties.r2()}, 2),
    "alp": ({"penalty": penalties.adversarial_lipschitz()}, LIPSCHITZ),
    "hinge": ({"objective": "hinge"}, 0),
    "hinge, alg1": ({"objective": "hinge", "formulation": "alg1"}, 0),
    "least squares, alg1": ({"objective": "least_squares", "formulation": "alg1"}, 0),
    "vanilla, batch_mean": ({"objective": "vanilla", "formulation": "batch_mean"}, 0),
    "fgan, alg1": ({"objective": "fgan", "formulation": "alg1"}, 0),
}


@pytest.mark.parametrize("name", COSTS)
def test_a_step_is_at_its_minimum(name, merging):
    options, more = COSTS[name]
    torch.manual_seed(0)
    found, first, record = units(dcgan(), (images(M), images(N)), **options)
    expected = 6 - first + more - (first if name == "alp" else 0)
    assert costs(found, expected)
    assert record.path == "shared"


@pytest.mark.parametrize(("name", "whole"), [("nothing", 6), ("gp", 8), ("r1", 7), ("r1 + r2", 8), ("alp", 11)])
def test_equal_batches_cost_whole_units_but_for_the_first_layer(name, whole):
    torch.manual_seed(0)
    x = images(5), images(5)
    found, first, _ = units(dcgan(), x, **COSTS[name][0])
    assert costs(found, whole - first * (2 if name == "alp" else 1))


class Led(nn.Module):
    """With BatchNorm, and scores that one pixel leads."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4), nn.Flatten(0)
        )

    def forward(self, x):
        return self.body(x) + 100 * x[:, 0, 0, 0]


def led(pixels):
    x = images(len(pixels), 8)
    x[:, 0, 0, 0] = torch.tensor(pixels)
    return x


# The real images' scores are compared with the generated ones' mean and the other way round.
ABOVE, BELOW, AROUND = [0.5, 0.6, 0.7, 0.8], [-0.5, -0.6, -0.8], [-0.9, 0.9, -0.1, 0.05]


NARROW = [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("real", "fake", "own"),
    [
        (ABOVE, BELOW, 0),
        (BELOW, ABOVE, 0),
        (AROUND, NARROW, "real"),
        (NARROW, AROUND, "fake"),
        (AROUND, AROUND, "both"),
    ],
)
@pytest.mark.parametrize(
    ("objective", "formulation"), [("wasserstein", "eq10"), ("vanilla", "eq10"), ("wasserstein", "alg1")]
)
def test_batchnorm_shares_the_sides_whose_signs_agree(real, fake, own, objective, formulation):
    torch.manual_seed(0)
    network, x = Led(), (led(real), led(fake))
    network.body[3].weight.data.mul_(0.01)
    if objective == "vanilla":  # scores of which none has saturated
        x = x[0].mul(1e-2), x[1].mul(1e-2)
    found, first, record = units(network, x, objective=objective, formulation=formulation)
    share = {"real": len(real), "fake": len(fake), "both": len(real) + len(fake), 0: 0}[own] / (len(real) + len(fake))
    assert found == pytest.approx(6 - first + share, rel=1e-9)
    assert record.path == ("separate" if share else "shared")


@pytest.mark.parametrize("formulation", ["eq10", "batch_mean"])
def test_batchnorm_where_looking_would_wait(monkeypatch, formulation):
    """batch_mean's coefficients are the same for all images whatever they are; nothing else is looked at."""
    monkeypatch.setattr("datgan_fast.method.waiting.looking_waits", lambda device: True)
    torch.manual_seed(0)
    found, first, record = units(Led(), (led(ABOVE), led(BELOW)), formulation=formulation)
    shares = formulation == "batch_mean"
    assert found == pytest.approx(6 - first + (0 if shares else 1), rel=1e-9)
    assert record.path == ("shared" if shares else "separate")


@pytest.mark.parametrize("steep", [0, 2, 7, 10])
def test_images_that_are_not_punished_cost_nothing(steep):
    """Of ten images so many are so bright that D is steep there. X' of the others does not go back, for which the steep ones go
    forward once more; from two thirds of them on that would cost more."""

    class Steep(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4), nn.Flatten(0))

        def forward(self, x):
            return self.body(x) * (1e-3 + 1e3 * (x.detach()[:, 0, 0, 0] > 0))

    torch.manual_seed(0)
    network = Steep()
    x = images(10, 8)
    x[:, 0, 0, 0] = torch.where(torch.arange(10) < steep, 0.9, -0.9)
    # neighbours that stay on their own side of the switch
    penalty = penalties.adversarial_lipschitz(xi=0.5, radius=(0.01, 0.1))
    found, first, record = units(network, (x[:M], x[M:]), penalty=penalty, eps=1e-6)
    back = {0: 0, 2: 0.2 * (3 - first), 7: 2 - first, 10: 2 - first}[steep]
    assert found == pytest.approx(6 - first + 3 + back, rel=1e-9)
    assert (record.penalty > 0) == (steep > 0)
