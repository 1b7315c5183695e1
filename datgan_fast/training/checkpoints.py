"""What a run leaves of its networks, written and found again: checkpoints/*.pt with everything, and generator.safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .. import files
from ..data.datasets import OWN
from ..errors import ConfigError
from .config import Config
from .networks import build_discriminator, build_generator
from .options import Options
from .run_folder import RunFolder

Weights = Literal["average", "raw"]

_NOT_OURS = "must be a checkpoint that datgan_fast.train wrote"


@dataclass(frozen=True)
class Trained:
    """A generator in evaluation mode, and where it comes from."""

    generator: nn.Module
    step: int
    weights: Weights  # the moving average, or the weights as they were trained
    z_dim: int
    image_size: int  # 0, like channels, for points
    channels: int
    classes: int  # 0 for one without
    config: Config | None  # None for a generator file away from its run


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step."""

    path: Path
    option: str  # that named it, for messages
    config: Config
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return self.state["step"]

    def generator(self, weights: Weights) -> Trained:
        """Raises ConfigError where the weights are no such network's."""
        c = self.config
        network = self._filled(
            lambda: build_generator(c.architecture, z_dim=c.z_dim, **c.network_shape),
            "average" if weights == "average" else "generator",
        )
        return Trained(network, self.step, weights, c.z_dim, c.image_size, c.channels, c.classes, c)

    def discriminator(self) -> nn.Module:
        """In evaluation mode. Raises ConfigError where the weights are no such network's."""
        c = self.config
        return self._filled(
            lambda: build_discriminator(
                c.architecture, batch_norm=c.batch_norm, spectral_norm=c.spectral_norm, **c.network_shape
            ),
            "discriminator",
        )

    def _filled(self, build: Callable[[], nn.Module], part: str) -> nn.Module:
        if self.config.architecture == OWN:
            raise ConfigError(_own(self.option, self.path))
        try:
            network: nn.Module = build()
            network.load_state_dict(self.state[part])
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
            raise ConfigError(f"{self.option} {self.path}: {_NOT_OURS}") from None
        return network.eval()


def _own(option: str, path: Path) -> str:
    return (
        f"{option} {path}: holds networks that were handed to datgan_fast.Trainer in Python; "
        "make them there and load their weights"
    )


def load_checkpoint(path: str | Path, option: str) -> dict[str, Any]:
    """A checkpoint's state. Raises ConfigError, naming the option, if it is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read ({error.strerror or error})") from None
    except Exception:  # torch.load raises many kinds for what is not a checkpoint
        state = None
    if not isinstance(state, dict) or "generator" not in state or "step" not in state:
        raise ConfigError(f"{option} {path}: {_NOT_OURS}")
    return state


def open_checkpoint(source: Path, option: str) -> Checkpoint:
    """A checkpoint, or a run folder's newest. Raises ConfigError, naming the option."""
    path = source
    if source.is_dir():
        checkpoints = RunFolder(source).checkpoints()
        if not checkpoints:
            raise ConfigError(f"{option} {source}: must be a run folder with a checkpoint, or a checkpoint (.pt)")
        path = checkpoints[-1]
    state = load_checkpoint(path, option)
    try:
        config = Options.from_mapping(state["config"], str(path)).recorded()
    except (AttributeError, KeyError):
        raise ConfigError(f"{option} {path}: {_NOT_OURS}") from None
    return Checkpoint(path, option, config, state)


def find_generator(source: Path, weights: Weights, option: str) -> Trained:
    """The generator of a generator.safetensors, a run folder (its newest) or a checkpoint. Raises ConfigError.

    A generator.safetensors has the average only, whatever `weights` are asked of the others.
    """
    if source.is_dir() and not (source / "config.yaml").is_file():
        raise ConfigError(f"{option} {source}: must be a run folder; this one has no config.yaml")
    file = source / "generator.safetensors" if source.is_dir() and weights == "average" else source
    if file.suffix == ".safetensors" and (file.is_file() or file == source):
        trained, run = load_generator(file, option), RunFolder(file.parent)
        if (run.path / "config.yaml").is_file():
            trained = replace(trained, config=run.options(option).recorded())
        return trained
    return open_checkpoint(source, option).generator(weights)


def save_generator(path: Path, generator: nn.Module, config: Config, step: int) -> None:
    """The averaged generator's weights, with what is needed to build it again in the metadata."""
    names: tuple[str, ...] = ("architecture", "image_size", "channels", "width", "z_dim")
    values = config.typed()
    if config.classes:
        names = (*names, "classes")
    # One key: safetensors writes several in random order, and the same generator should be the same bytes.
    metadata = {"datgan_fast": json.dumps({"network": {name: values[name] for name in names}, "step": step})}
    tensors = {name: t.detach().cpu().contiguous() for name, t in generator.state_dict().items()}
    with files.atomic(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))  # save_file has errors and a file mode of its own


def load_generator(path: str | Path, option: str = "FILE") -> Trained:
    """The generator of a generator.safetensors. Raises ConfigError if the file is no such generator."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        described = json.loads(metadata["datgan_fast"])
        network: dict[str, Any] = {key: value or 0 for key, value in described["network"].items()}
        architecture = network.pop("architecture")
        if architecture == OWN:
            raise ConfigError(_own(option, path))
        generator = build_generator(architecture, **network)
        generator.load_state_dict(tensors)
        step = described["step"]
        shape = {name: network[name] for name in ("z_dim", "image_size", "channels")} | {
            "classes": network.get("classes", 0)
        }
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read ({error.strerror or error})") from None
    except ConfigError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise ConfigError(f"{option} {path}: must be a generator.safetensors that datgan_fast.train wrote") from None
    return Trained(generator.eval(), step, "average", **shape, config=None)


def in_turn(classes: int, count: int, device: torch.device | str) -> Tensor | None:
    """Labels for `count` images, every class in turn; None for a generator without classes."""
    return torch.arange(count, dtype=torch.int64, device=device) % classes if classes else None


@torch.no_grad()
def generate(generator: nn.Module, latents: Tensor, batch_size: int = 256, labels: Tensor | None = None) -> Tensor:
    """Images [n, C, H, W] in [-1, 1], or points [n, 2], for latents [n, z_dim], and labels [n] if the generator takes them, in
    evaluation mode, a batch at a time."""
    was_training = generator.training
    generator.eval()
    inputs = (latents,) if labels is None else (latents, labels)
    batches = zip(*(t.split(batch_size) for t in inputs), strict=True)
    images = torch.cat([generator(*batch) for batch in batches])
    generator.train(was_training)
    return images
