"""generator.safetensors: the averaged generator's weights, with what is needed to build it again in the metadata."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import files
from ..errors import ConfigError
from .config import TrainConfig
from .networks import build_generator


def save_generator(path: Path, generator: nn.Module, config: TrainConfig, step: int) -> None:
    shape = {key: getattr(config, key) for key in ("architecture", "image_size", "channels", "width", "z_dim")}
    # One key: safetensors writes several in random order, and the same generator should be the same bytes.
    metadata = {"datgan_fast": json.dumps({"network": shape, "step": step})}
    tensors = {name: t.detach().cpu().contiguous() for name, t in generator.state_dict().items()}
    with files.atomic(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_generator(path: str, option: str = "FILE") -> tuple[nn.Module, dict]:
    """(generator in evaluation mode, its network options and step). Raises ConfigError if the file is no such generator."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        described = json.loads(metadata["datgan_fast"])
        network = described["network"]
        architecture = network.pop("architecture")
        generator = build_generator(architecture, **network)
        generator.load_state_dict(tensors)
        network["step"] = described["step"]
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
        raise ConfigError(f"{option} {path}: must be a generator.safetensors that datgan_fast.train wrote") from None
    return generator.eval(), network


@torch.no_grad()
def generate(generator: nn.Module, latents: Tensor, batch_size: int = 256) -> Tensor:
    """Images [n, C, H, W] in [-1, 1], or points [n, 2], for latents [n, z_dim], in evaluation mode, a batch at a time."""
    was_training = generator.training
    generator.eval()
    images = torch.cat([generator(z) for z in latents.split(batch_size)])
    generator.train(was_training)
    return images
