"""What users hand to the Trainer in place of what the options describe: networks and images of their own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..data.datasets import OWN
from ..errors import ConfigError
from ..method.step_arguments import logits_of
from ..metrics.comparison import to_uint8
from .checkpoints import generate
from .config import Config
from .options import Options


def with_own_parts(
    options: Options, generator: nn.Module | None, discriminator: nn.Module | None, images: Tensor | None
) -> Config:
    """The run's configuration, which says "own" of what was handed over. Raises ConfigError for what cannot be trained on."""
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        if network is not None and not isinstance(network, nn.Module):
            raise ConfigError(f"{name}: must be an nn.Module; got {type(network).__name__}")
    if images is not None:
        options = replace(options, dataset=OWN, channels=images.shape[1], image_size=images.shape[3])  # type: ignore[arg-type]
    if generator is not None and discriminator is not None:
        options = replace(options, architecture="own")
    config = options.resolved()
    if config.conditional and (generator is not None or discriminator is not None):
        raise ConfigError("--conditional: is for networks that are built here; leave it out with your own")
    if images is not None and not (generator and discriminator) and images.shape[2] != images.shape[3]:
        raise ConfigError(f"images: are {images.shape[2]}x{images.shape[3]}; the networks built here need square ones")
    return config


def recorded_architecture(config: Config, generator: nn.Module | None, discriminator: nn.Module | None) -> Config:
    """For the record: no command can build the run's networks again."""
    return replace(config, architecture="own") if generator or discriminator else config


def own_images(images: Tensor) -> Tensor:
    """As the sampler takes them: uint8, to which images in [-1, 1] are rounded. Raises ConfigError for what are no images."""
    if not isinstance(images, Tensor) or images.dtype not in (torch.uint8, torch.float32) or images.dim() != 4:
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ConfigError(f"images: must be uint8 or float32 [N, C, H, W]; got {got}")
    if images.is_meta or images.layout is not torch.strided:
        raise ConfigError(f"images: must be a dense tensor with values; got {images.layout} on {images.device}")
    if images.numel() == 0 or images.shape[1] not in (1, 3):
        raise ConfigError(f"images: must be one or more, of 1 (grey) or 3 (RGB) channels; got {list(images.shape)}")
    if images.dtype == torch.float32 and not bool(images.abs().max() <= 1):
        least, most = (value.item() for value in torch.aminmax(images))
        raise ConfigError(f"images: must lie in [-1, 1]; got values from {least:.4g} to {most:.4g}")
    return to_uint8(images)


@torch.no_grad()
def check_own_networks(
    config: Config, generator: nn.Module | None, discriminator: nn.Module | None, images: Tensor
) -> None:
    """Tries them on two images, on the run's device; lazy layers get their sizes. Raises ConfigError if they do not fit."""
    device = torch.device(config.device)
    if generator is not None:
        latents = torch.zeros(2, config.z_dim, dtype=torch.float32, device=device)
        try:
            made = generate(generator.to(device), latents)
        except (RuntimeError, ValueError) as error:
            reason = f"does not take latents [n, {config.z_dim}] ({_line(error)}); --z-dim is their size"
            raise ConfigError(f"generator: {reason}") from None
        if made.shape[1:] != images.shape[1:]:
            raise ConfigError(
                f"generator: makes {list(made.shape[1:])} of a latent, the images are {list(images.shape[1:])}"
            )
    if discriminator is not None:
        pair = images[[0, -1]].to(device)
        x = pair.float().div(127.5).sub(1) if pair.dtype == torch.uint8 else pair  # points are as they are
        was_training = discriminator.training
        try:
            logits_of(discriminator.to(device).eval(), x)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"discriminator: does not suit images {list(x.shape[1:])} ({_line(error)})") from None
        discriminator.train(was_training)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
