"""Bounds and slopes of discriminators, against exact singular values and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from datgan_fast.paper.lipschitz import lipschitz_bound, local_slope, operator_norm
from datgan_fast.training.networks import build_discriminator

pytestmark = pytest.mark.usefixtures("one_thread")


def dense(layer, shape):
    """The matrix of an affine layer's linear part, column by column."""
    size = math.prod(shape)
    with torch.no_grad():
        columns = layer(torch.eye(size, dtype=torch.float64).view(size, *shape)) - layer(
            torch.zeros(1, *shape, dtype=torch.float64)
        )
    return columns.flatten(1).T.numpy()


def largest(layer, shape):
    return np.linalg.svd(dense(layer, shape), compute_uv=False)[0]


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        (dict(kernel_size=4, stride=2, padding=1), (3, 8, 8)),
        (dict(kernel_size=3, padding=1), (3, 5, 7)),
        (dict(kernel_size=4), (3, 4, 4)),
        (dict(kernel_size=3, stride=2, dilation=2), (3, 9, 9)),
        (dict(kernel_size=3, padding=1, padding_mode="circular"), (3, 6, 6)),
    ],
)
def test_a_convolution_counts_by_its_largest_singular_value_at_its_size(options, shape):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, **options, dtype=torch.float64).requires_grad_(False)
    found = operator_norm(layer, torch.zeros(1, *shape, dtype=torch.float64))
    assert found == pytest.approx(largest(layer, shape), rel=1e-4)


def of_layers(network, shape):
    """The product over the chain, each factor from its definition."""
    bound, x = 1.0, torch.zeros(1, *shape, dtype=torch.float64)
    for layer in network:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            bound *= largest(layer, tuple(x.shape[1:]))
        elif isinstance(layer, nn.BatchNorm2d):
            bound *= max(
                abs(g) / math.sqrt(v + layer.eps)
                for g, v in zip(layer.weight.tolist(), layer.running_var.tolist(), strict=True)
            )
        x = layer(x.clone())
    return bound


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_a_discriminators_bound_is_the_product_of_its_layers(batch_norm, spectral_norm):
    torch.manual_seed(1)
    network = build_discriminator(
        "dcgan", image_size=16, channels=1, width=4, batch_norm=batch_norm, spectral_norm=spectral_norm
    ).double()
    network(torch.randn(32, 1, 16, 16, dtype=torch.float64))  # running statistics and power iterations move
    network.eval().requires_grad_(False)
    found = lipschitz_bound(network, torch.zeros(7, 1, 16, 16, dtype=torch.float64)[:1])
    assert found == pytest.approx(of_layers(network, (1, 16, 16)), rel=1e-4)


def test_the_bound_of_points_discriminator():
    network = build_discriminator("mlp", image_size=0, channels=0, width=9, batch_norm=False).double()
    network.requires_grad_(False)
    found = lipschitz_bound(network, torch.zeros(1, 2, dtype=torch.float64))
    assert found == pytest.approx(of_layers(network, (2,)), rel=1e-6)


def test_a_steep_leaky_relu_and_a_batch_norm_without_gain():
    norm = nn.BatchNorm1d(2, affine=False, eps=0.0, dtype=torch.float64).eval()
    norm.running_var.copy_(torch.tensor([0.25, 4.0]))
    network = nn.Sequential(nn.LeakyReLU(-3.0), nn.Sequential(norm, nn.Tanh()))
    assert lipschitz_bound(network, torch.zeros(1, 2, dtype=torch.float64)) == pytest.approx(6.0)


class Backwards(nn.Sequential):
    def forward(self, x):
        for layer in reversed(list(self)):
            x = layer(x)
        return x


@pytest.mark.parametrize(
    "network",
    [
        build_discriminator("resnet", image_size=8, channels=1, width=2, batch_norm=False),
        build_discriminator("dcgan", image_size=8, channels=1, width=2, batch_norm=False, classes=3),
        nn.Sequential(nn.Flatten(), nn.SiLU(), nn.Linear(64, 1)),
        Backwards(nn.Linear(64, 1), nn.Flatten()),
        nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)),
    ],
)
def test_what_is_not_known_is_nan(network):
    assert math.isnan(lipschitz_bound(network.eval().requires_grad_(False), torch.zeros(1, 1, 8, 8)))


class Bowl(nn.Module):
    """D(x) = a ||x||^2 / 2, whose slope is a ||x||."""

    def forward(self, x):
        return 3.0 * x.flatten(1).square().sum(1) / 2


def test_the_steepest_place_in_a_bowls_ball_is_outwards():
    images = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]], dtype=torch.float64)
    assert local_slope(Bowl(), images, radius=0.5) == pytest.approx(3.0 * (5.0 + 0.5))


def test_the_steepest_place_may_lie_downwards():
    class Hill(Bowl):
        def forward(self, x):
            return -super().forward(x)

    images = torch.tensor([[[3.0, 4.0]]], dtype=torch.float64)
    assert local_slope(Hill(), images, radius=0.5) == pytest.approx(3.0 * 5.5)


class Dome(nn.Module):
    """D(x) = sin ||x||, steepest at 0; nothing in the ball around such an image is as steep."""

    def forward(self, x):
        return (x.flatten(1).square().sum(1) + 1e-12).sqrt().sin()


def test_the_steepest_place_may_be_an_image():
    images = torch.tensor([[[1e-3, 0.0]], [[1.0, 0.0]]], dtype=torch.float64)
    assert local_slope(Dome(), images, radius=0.5) == pytest.approx(math.cos(1e-3), rel=1e-5)


def test_a_linear_discriminators_slope_is_its_weights_length():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, dtype=torch.float64))
    network.requires_grad_(False)[1].weight.copy_(torch.tensor([[1.0, -2.0, 2.0, 4.0]]))
    images = torch.randn(5, 1, 2, 2, dtype=torch.float64)
    assert local_slope(network, images, radius=1.0) == pytest.approx(5.0)
    assert lipschitz_bound(network, images[:1]) == pytest.approx(5.0)


def test_no_slope_that_is_found_exceeds_the_bound():
    torch.manual_seed(2)
    network = build_discriminator("dcgan", image_size=16, channels=1, width=4, batch_norm=True)
    network(torch.randn(32, 1, 16, 16))
    network.eval().requires_grad_(False)
    images = torch.randn(6, 1, 16, 16)
    at_images = local_slope(network, images, radius=0.0)
    found = local_slope(network, images, radius=2.0)
    assert at_images < found < lipschitz_bound(network, images[:1])
