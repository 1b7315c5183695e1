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

from .. import archives, files
from ..data.datasets import OWN
from ..errors import ConfigError
from .config import Config
from .networks import build_discriminator, build_generator
from .options import Options
from .run_folder import RunFolder

Weights = Literal["average", "raw"]

_NOT_OURS = "must be a checkpoint that datgan_fast.train wrote"
# What is raised where a file's description of a network is of other types or sizes than ours.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, TypeError, ValueError)
_LARGEST = 65536  # of the numbers that describe a network


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
            lambda device: build_generator(c.architecture, z_dim=c.z_dim, device=device, **c.network_shape),
            "average" if weights == "average" else "generator",
        )
        return Trained(network, self.step, weights, c.z_dim, c.image_size, c.channels, c.classes, c)

    def discriminator(self) -> nn.Module:
        """In evaluation mode. Raises ConfigError where the weights are no such network's."""
        c = self.config
        return self._filled(
            lambda device: build_discriminator(
                c.architecture, batch_norm=c.batch_norm, spectral_norm=c.spectral_norm, device=device, **c.network_shape
            ),
            "discriminator",
        )

    def _filled(self, build: Callable[[str], nn.Module], part: str) -> nn.Module:
        if self.config.architecture == OWN:
            raise ConfigError(_own(self.option, self.path))
        try:
            return _filled(build, self.state[part])
        except _MALFORMED:
            raise ConfigError(f"{self.option} {self.path}: {_NOT_OURS}") from None


def _filled(build: Callable[[str], nn.Module], weights: dict[str, Tensor]) -> nn.Module:
    """The network that `build(device)` makes, with these weights, in evaluation mode. Raises _MALFORMED for another's.

    They are compared where a network takes no memory: a file's description of it may be of any size.
    """
    shapes = {name: t.shape for name, t in build("meta").state_dict().items()}
    if {name: t.shape for name, t in weights.items()} != shapes:
        raise ValueError("the weights are another network's")
    if any(t.nbytes > t.untyped_storage().nbytes() for t in weights.values()):
        raise ValueError("weights that are repeated rather than stored")
    network = build("cpu")
    network.load_state_dict(weights)
    return network.eval()


def _own(option: str, path: Path) -> str:
    return (
        f"{option} {path}: holds networks that were handed to datgan_fast.Trainer in Python; "
        "make them there and load their weights"
    )


def load_checkpoint(path: str | Path, option: str) -> dict[str, Any]:
    """A checkpoint's state. Raises ConfigError, naming the option, if it is none, or damaged."""
    path = Path(path).expanduser()
    try:
        archives.check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # torch.load raises many kinds for what is not a checkpoint
        damaged = f"; {error}" if type(error) is ValueError else ""
        raise ConfigError(f"{option} {path}: {_NOT_OURS}{damaged}") from None
    if not (isinstance(state, dict) and _is_step(state.get("step")) and _is_weights(state.get("generator"))):
        raise ConfigError(f"{option} {path}: {_NOT_OURS}")
    if not all(_is_weights(state[name]) for name in ("discriminator", "average") if name in state):
        raise ConfigError(f"{option} {path}: {_NOT_OURS}")
    return state


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_weights(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def open_checkpoint(source: Path, option: str) -> Checkpoint:
    """A checkpoint, or a run folder's newest. Raises ConfigError, naming the option."""
    path = source = source.expanduser()
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
    source = source.expanduser()
    if source.is_dir() and not (source / "config.yaml").is_file():
        raise ConfigError(f"{option} {source}: must be a run folder; this one has no config.yaml")
    file = source / "generator.safetensors" if source.is_dir() and weights == "average" else source
    if file.suffix == ".safetensors" and (file.is_file() or file == source):
        trained, run = read_generator(file, option), RunFolder(file.parent)
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


def load_generator(path: str | Path) -> nn.Module:
    """The generator of a run: its generator.safetensors, its folder, or a checkpoint; the moving average, in evaluation mode on
    the CPU.

    It takes latents float32 [n, z_dim], normally distributed, and with classes their labels int64 [n]; it gives images
    [n, C, H, W] in [-1, 1], or points [n, 2]. z_dim stands in the run's config.yaml and README.md.

    Example:
        >>> config = dat.TrainConfig(dataset="ring", width=8, steps=1, device="cpu")
        >>> run = dat.Trainer(config).fit()  # doctest: +ELLIPSIS
        runs/00000-dcgan-dat-ring: ...
        >>> generator = dat.load_generator("runs/00000-dcgan-dat-ring")  # on images: "runs/00000-dcgan-dat-digits"
        >>> generator(torch.randn(64, config.resolved().z_dim)).shape
        torch.Size([64, 2])

    Raises ConfigError, a ValueError, if there is no such generator; the file is data only, no code of it is run.
    """
    return find_generator(Path(path), "average", "path").generator


def read_generator(path: str | Path, option: str = "FILE") -> Trained:
    """The generator of a generator.safetensors. Raises ConfigError if the file is no such generator."""
    path = Path(path).expanduser()
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        described = json.loads(metadata["datgan_fast"])
        architecture, step, shape = described["network"].pop("architecture"), described["step"], described["network"]
        if architecture == OWN:
            raise ConfigError(_own(option, path))
        shape = {name: _size(value) for name, value in shape.items()}
        if not _is_step(step):
            raise ValueError("step")
        generator = _filled(lambda device: build_generator(architecture, device=device, **shape), tensors)
        own = {name: shape.get(name, 0) for name in ("z_dim", "image_size", "channels", "classes")}
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be read ({error.strerror or error})") from None
    except ConfigError:
        raise
    except (SafetensorError, *_MALFORMED):
        raise ConfigError(f"{option} {path}: must be a generator.safetensors that datgan_fast.train wrote") from None
    return Trained(generator, step, "average", **own, config=None)


def _size(value: Any) -> int:
    """One of the numbers that describe a network; points have None for some. Raises ValueError."""
    size = 0 if value is None else value
    if not _is_step(size) or size > _LARGEST:
        raise ValueError(f"a network's size of {value!r}")
    return size


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
