"""The networks: DCGAN (Radford et al. 2016) and a small ResNet (Miyato et al. 2018), for images of 4 * 2^k pixels, and a
multilayer perceptron for points in the plane.

Generators take latents [n, z_dim] and give images [n, channels, size, size] in [-1, 1], or points [n, 2]; discriminators give
one logit [n]. With classes, both take the labels, int64 [n], beside (Miyato and Koyama 2018): the generator's BatchNorm has a
gain and a bias for each class, the discriminator projects the class on its features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm as parametrized_spectral_norm

from ..errors import ConfigError
from ..method.torch_defaults import plain_defaults


def _doublings(image_size: int) -> int:
    doublings = int(math.log2(image_size)) - 2
    if image_size < 8 or 4 * 2**doublings != image_size:
        raise ValueError(f"image_size must be 4 times a power of two and at least 8; got {image_size}")
    return doublings


def _init_dcgan(module: nn.Module) -> None:
    """Weights from N(0, 0.02), as DCGAN's section 4."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d) and module.affine:
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _init_mlp(module: nn.Module) -> None:
    """He et al. (2015): the points start spread out, as the latents are."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _add_spectral_norm(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
        parametrized_spectral_norm(module)


class ClassBatchNorm(nn.Module):
    """BatchNorm whose gain and bias are the image's class's (Dumoulin et al. 2017)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain, self.bias = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        gain, bias = (of_class(labels)[:, :, None, None] for of_class in (self.gain, self.bias))
        return self.norm(x) * gain + bias


def _norm(channels: int, classes: int) -> nn.Module:
    return ClassBatchNorm(channels, classes) if classes else nn.BatchNorm2d(channels)


class _Generator(nn.Sequential):
    """Layers, of which some want the labels if there are any."""

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        x = latents
        for layer in self:
            wants = labels is not None and isinstance(layer, (ClassBatchNorm, _UpBlock))
            x = layer(x, labels) if wants else layer(x)
        return x


class DCGANGenerator(_Generator):
    def __init__(self, image_size: int, channels: int, width: int, z_dim: int, classes: int) -> None:
        k = _doublings(image_size)
        widths = [width * 2 ** min(i, 3) for i in reversed(range(k))]
        layers: list[nn.Module] = [
            nn.Unflatten(1, (z_dim, 1, 1)),
            nn.ConvTranspose2d(z_dim, widths[0], 4, bias=False),
            _norm(widths[0], classes),
            nn.ReLU(inplace=True),
        ]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                _norm(after, classes),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1), nn.Tanh()]
        super().__init__(*layers)
        self.apply(_init_dcgan)


class DCGANDiscriminator(nn.Sequential):
    def __init__(self, image_size: int, channels: int, width: int, batch_norm: bool) -> None:
        widths = [channels, *(width * 2 ** min(i, 3) for i in range(_doublings(image_size)))]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            normed = batch_norm and i > 0
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=not normed))
            if normed:
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        # No bias on the logit: a critic's constant cancels, and Adam would blow its gradient's rounding up to full steps.
        layers += [nn.Conv2d(widths[-1], 1, 4, bias=False), nn.Flatten(0)]
        super().__init__(*layers)
        self.apply(_init_dcgan)


class _UpBlock(nn.Module):
    def __init__(self, before: int, after: int, classes: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(before, classes), _norm(after, classes)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        condition = () if labels is None else (labels,)
        h = self.conv1(F.interpolate(F.relu(self.norm1(x, *condition)), scale_factor=2.0))
        return self.conv2(F.relu(self.norm2(h, *condition))) + F.interpolate(self.skip(x), scale_factor=2.0)


class _DownBlock(nn.Module):
    def __init__(self, before: int, after: int, first: bool, batch_norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before) if batch_norm and not first else nn.Identity()
        self.norm2 = nn.BatchNorm2d(after) if batch_norm else nn.Identity()
        self.activation1 = nn.Identity() if first else nn.ReLU()  # the first block sees pixels, which must not be cut
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.activation1(self.norm1(x)))
        h = F.avg_pool2d(self.conv2(F.relu(self.norm2(h))), 2)
        return h + self.skip(F.avg_pool2d(x, 2))


class ResNetGenerator(_Generator):
    def __init__(self, image_size: int, channels: int, width: int, z_dim: int, classes: int) -> None:
        hidden = 2 * width
        super().__init__(
            nn.Linear(z_dim, hidden * 16),
            nn.Unflatten(1, (hidden, 4, 4)),
            *(_UpBlock(hidden, hidden, classes) for _ in range(_doublings(image_size))),
            _norm(hidden, classes),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 3, padding=1),
            nn.Tanh(),
        )


class ResNetDiscriminator(nn.Sequential):
    def __init__(self, image_size: int, channels: int, width: int, batch_norm: bool) -> None:
        hidden = 2 * width
        blocks = (
            _DownBlock(channels if i == 0 else hidden, hidden, i == 0, batch_norm)
            for i in range(_doublings(image_size))
        )
        super().__init__(
            *blocks, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(hidden, 1, bias=False), nn.Flatten(0)
        )


class ProjectionDiscriminator(nn.Module):
    """D(x, y) = psi(phi(x)) + <embed(y), phi(x)> of a network that ends in phi, psi and the flattening of its logit.

    Source: Miyato and Koyama (2018), "cGANs with Projection Discriminator", equation 3.
    """

    def __init__(self, network: nn.Sequential, classes: int) -> None:
        super().__init__()
        *features, psi, _ = network
        self.phi, self.psi = nn.Sequential(*features), psi
        self.embedding = nn.Embedding(classes, cast(Tensor, psi.weight)[0].numel())
        nn.init.normal_(self.embedding.weight, 0.0, 0.02)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features = self.phi(images)
        return self.psi(features).flatten() + (self.embedding(labels) * features.flatten(1)).sum(1)


class MLPGenerator(nn.Sequential):
    def __init__(self, width: int, z_dim: int) -> None:
        super().__init__(*_hidden_layers(z_dim, width), nn.Linear(width, 2))
        self.apply(_init_mlp)


class MLPDiscriminator(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(*_hidden_layers(2, width), nn.Linear(width, 1, bias=False), nn.Flatten(0))
        self.apply(_init_mlp)


def _hidden_layers(inputs: int, width: int) -> list[nn.Module]:
    """Three, each with a ReLU."""
    return [layer for n in (inputs, width, width) for layer in (nn.Linear(n, width), nn.ReLU(inplace=True))]


def _known(architecture: str, kinds: dict[str, Any]) -> Any:
    if architecture == "own":
        raise ConfigError(
            "--architecture own: is for networks that are handed to datgan_fast.Trainer in Python; use dcgan, resnet or mlp"
        )
    return kinds[architecture]


# The mlp has neither image size nor channels nor classes: all are 0. On the device "meta" a network takes no memory.


def build_generator(
    architecture: str,
    *,
    image_size: int,
    channels: int,
    width: int,
    z_dim: int,
    classes: int = 0,
    device: str = "cpu",
) -> nn.Module:
    with plain_defaults(device):
        if architecture == "mlp":
            return MLPGenerator(width, z_dim)
        kind: Callable[..., nn.Module] = _known(architecture, {"dcgan": DCGANGenerator, "resnet": ResNetGenerator})
        return kind(image_size, channels, width, z_dim, classes)


def build_discriminator(
    architecture: str,
    *,
    image_size: int,
    channels: int,
    width: int,
    batch_norm: bool,
    spectral_norm: bool = False,
    classes: int = 0,
    device: str = "cpu",
) -> nn.Module:
    with plain_defaults(device):
        if architecture == "mlp":
            discriminator: nn.Module = MLPDiscriminator(width)
        else:
            kind: Callable[..., nn.Module] = _known(
                architecture, {"dcgan": DCGANDiscriminator, "resnet": ResNetDiscriminator}
            )
            discriminator = kind(image_size, channels, width, batch_norm)
            if classes:
                discriminator = ProjectionDiscriminator(cast(nn.Sequential, discriminator), classes)
        if spectral_norm:
            discriminator.apply(_add_spectral_norm)
    return discriminator


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if not isinstance(p, torch.nn.UninitializedParameter))
