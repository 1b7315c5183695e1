"""The discriminators, images and penalties that several suites measure."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from datgan_fast.method import penalties
from datgan_fast.training.networks import build_discriminator
from measure import DEVICE

BATCH, IMAGE, WIDTH = 64, (3, 32, 32), 64

# name -> the penalty of a step, None for none
PENALTIES: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor] | None] = {
    "none": None,
    "gp": penalties.gradient_penalty(10.0),
    "lp": penalties.gradient_penalty(10.0, one_sided=True),
    "r1": penalties.r1(10.0),
    "r1+r2": penalties.total(penalties.r1(10.0), penalties.r2(10.0)),
    "alp": penalties.adversarial_lipschitz(10.0),
}


def dcgan(batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return build_discriminator("dcgan", image_size=32, channels=3, width=WIDTH, batch_norm=batch_norm).to(DEVICE)


def images() -> tuple[Tensor, Tensor]:
    """A real and a generated batch, float32 [64, 3, 32, 32] in [-1, 1]."""
    real, fake = (2 * torch.rand(BATCH, *IMAGE, device=DEVICE) - 1 for _ in range(2))
    return real, fake


def mlp() -> nn.Module:
    """A critic of motions or of tables: 512 features through three hidden layers with ReLU."""
    torch.manual_seed(0)
    sizes = (512, 1000, 256, 256, 1)
    layers: list[nn.Module] = []
    for i, o in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(DEVICE)


def rows() -> tuple[Tensor, Tensor]:
    """A real and a generated batch of it, float32 [500, 512] in [-1, 1]."""
    real, fake = (2 * torch.rand(500, 512, device=DEVICE) - 1 for _ in range(2))
    return real, fake
