"""What users hand to the Trainer in place of what the options describe: networks and images of their own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..data.datasets import OWN
from ..errors import ConfigError
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
    if len(images) == 0 or images.shape[1] not in (1, 3):
        raise ConfigError(f"images: must be one or more, of 1 (grey) or 3 (RGB) channels; got {list(images.shape)}")
    if images.dtype == torch.float32 and not bool(images.abs().max() <= 1):
        least, most = (value.item() for value in torch.aminmax(images))
        raise ConfigError(f"images: must lie in [-1, 1]; got values from {least:.4g} to {most:.4g}")
    return to_uint8(images)


def check_own_generator(generator: nn.Module, config: Config, images: Tensor) -> None:
    """Raises ConfigError unless it makes images of the training images' size; lazy layers get their sizes."""
    device = torch.device(config.device)
    latents = torch.zeros(2, config.z_dim, dtype=torch.float32, device=device)
    try:
        made = generate(generator, latents)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"generator: does not take latents [n, {config.z_dim}] ({reason}); --z-dim is their size"
        ) from None
    if not isinstance(made, Tensor) or made.shape[1:] != images.shape[1:]:
        raise ConfigError(
            f"generator: makes {list(made.shape[1:])} of a latent, the images are {list(images.shape[1:])}"
        )
