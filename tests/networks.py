"""Small discriminators for 3x8x8 images, of every kind the fast step must treat exactly."""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.spectral_norm import spectral_norm as old_spectral_norm

SHAPE = (3, 8, 8)


class Residual(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(
            nn.GroupNorm(2, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width)
        )
        self.tail = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.head(x)
        return self.tail((h + self.body(h)).relu().mean((2, 3)))


class MinibatchStddev(nn.Module):
    """Appends the batch's mean standard deviation as a feature map (Karras et al. 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        deviation = (x.var(0, unbiased=False) + 1e-8).sqrt().mean()
        return torch.cat([x, deviation.expand(len(x), 1, *x.shape[2:])], 1)


class Stranger(nn.Module):
    """Depends on the rest of the batch through one number only, and hardly."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-3 * x.mean()


def conv(*after_first: nn.Module, wrap=lambda layer: layer, channels: int = 8) -> nn.Module:
    return nn.Sequential(
        wrap(nn.Conv2d(3, 8, 3, stride=2, padding=1)),
        *after_first,
        nn.LeakyReLU(0.2),
        wrap(nn.Conv2d(channels, 16, 3, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        wrap(nn.Linear(64, 1)),
    )


def layer_norm_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 1))


# name: (factory, whether it treats images independently)
DISCRIMINATORS = {
    "conv": (conv, True),
    "residual, GroupNorm": (Residual, True),
    "MLP, LayerNorm": (layer_norm_mlp, True),
    "InstanceNorm": (lambda: conv(nn.InstanceNorm2d(8, affine=True)), True),
    "InstanceNorm with statistics": (lambda: conv(nn.InstanceNorm2d(8, track_running_stats=True)), False),
    "BatchNorm": (lambda: conv(nn.BatchNorm2d(8)), False),
    "BatchNorm, eval": (lambda: conv(nn.BatchNorm2d(8)).eval(), True),
    "minibatch stddev": (lambda: conv(MinibatchStddev(), channels=9), False),
    "spectral norm": (lambda: conv(wrap=spectral_norm), True),
    "old spectral norm": (lambda: conv(wrap=old_spectral_norm), True),
    "spectral norm, eval": (lambda: conv(wrap=spectral_norm).eval(), True),
    "spectral norm, BatchNorm": (lambda: conv(nn.BatchNorm2d(8), wrap=spectral_norm), False),
    "dropout": (lambda: conv(nn.Dropout(0.3)), False),
    "dropout, eval": (lambda: conv(nn.Dropout(0.3)).eval(), True),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The named discriminator with the same weights in every dtype; running statistics have seen a batch."""
    torch.manual_seed(0)
    discriminator = DISCRIMINATORS[name][0]()
    modes = [m.training for m in discriminator.modules()]
    with torch.no_grad():
        list(discriminator.parameters())[-2].mul_(4)  # logits that differ from image to image
        discriminator.train()(2 * torch.rand(8, *SHAPE) - 1)
    for module, mode in zip(discriminator.modules(), modes, strict=True):
        module.training = mode
    return discriminator.to(dtype)


def steeper(network: nn.Module, factor: float) -> nn.Module:
    """With images a `factor`th as large it gives the same scores, and `factor` times the gradients to the images."""
    with torch.no_grad():
        next(network.parameters()).mul_(factor)
    return network


def steepness(norm: str) -> float:
    """What norm clamp needs to cut anything: a score's gradients have elements of a hundredth."""
    return 256.0 if norm == "clamp" else 1.0


def images(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (1.8 * torch.rand(count, *SHAPE, generator=generator) - 0.9).to(dtype)


# Layers whose backward is not linear in the gradient: each makes the whole batch's unit length.


class Tapped(nn.Module):
    """By a hook on a tensor inside."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        if x.requires_grad:
            x.register_hook(lambda g: g / g.norm())
        return x


class _UnitLength(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g / g.norm()


class OwnFunction(nn.Module):
    """By a Function of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return _UnitLength.apply(x)


NOT_LINEAR = (Tapped, OwnFunction)
