"""The paper's Figure 1: how many attack steps fool a trained discriminator, on generated and on real images.

The paper states the stopping rule, |D(x_hat) - D(target)| <= 0.02, and leaves the step, its size, the target and BatchNorm's
mode open; a Protocol fixes them. docs/reproduction/figure1.md compares protocols.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.datasets import load_images
from ..errors import ConfigError
from ..method.module_state import unchanged_state
from ..method.step_arguments import logits_of
from ..training.checkpoints import generate, load_generator
from ..training.config import TrainConfig
from ..training.networks import build_discriminator, build_generator
from ..training.run_folder import RunFolder
from ..training.trainer import load_checkpoint
from .fooling import steps_to_fool

TARGETS = ("paired", "mean")
BATCH_NORM = ("eval", "train")
STEP_SIZES = {"none": (0.1, 1.0, 10.0), "l2": (0.02, 0.05, 0.2), "linf": (0.001, 0.005, 0.02)}  # of all_protocols


@dataclass(frozen=True)
class Protocol:
    """What the paper leaves open. A batch of one kind is attacked towards the scores of a batch of the other kind."""

    rule: str = "l2"  # the step: the gradient ("none"), at unit length ("l2"), or its sign ("linf")
    step_size: float = 0.05
    target: str = "paired"  # image i of the other batch, or that batch's "mean" score
    batch_norm: str = "eval"  # running statistics ("eval") or those of the batch under attack ("train")
    cap: int = 200
    tolerance: float = 0.02
    batch_size: int = 64

    def __str__(self) -> str:
        step = {"none": "raw gradient", "l2": "l2 step", "linf": "sign step"}[self.rule]
        return (
            f"{step}, size {self.step_size:g}, target {self.target}, BatchNorm {self.batch_norm}, "
            f"tolerance {self.tolerance:g}, at most {self.cap} steps"
        )


def all_protocols(base: Protocol) -> Iterator[Protocol]:
    """Every rule, step size, target and mode of BatchNorm, with the base's cap, tolerance and batch size."""
    for (rule, sizes), target, mode in itertools.product(STEP_SIZES.items(), TARGETS, BATCH_NORM):
        for size in sizes:
            yield dataclasses.replace(base, rule=rule, step_size=size, target=target, batch_norm=mode)


@dataclass
class Subject:
    """A trained discriminator, and the generated and real images to attack, float32 [n, C, H, W] in [-1, 1]."""

    label: str
    discriminator: nn.Module
    fake: Tensor
    real: Tensor
    origin: dict[str, Any]  # where all of it comes from, for the record


class Side(NamedTuple):
    """One kind of images before and after the attack, all on the CPU."""

    clean: Tensor  # [n, C, H, W]
    attacked: Tensor
    scores: Tensor  # [n], of the clean images
    steps: Tensor  # [n] int64
    reached: Tensor  # [n] bool

    def record(self) -> dict[str, Any]:
        """Images that never arrived count with the cap, so that their mean is a lower bound."""
        steps = self.steps.double()
        distance = (self.attacked - self.clean).flatten(1).norm(dim=1)
        return {
            "mean": steps.mean().item(),
            "median": steps.quantile(0.5).item(),
            "std": steps.std(correction=0).item(),
            "share_reached": self.reached.double().mean().item(),
            "distance": distance.mean().item(),  # mean Euclidean length of what the attack added
            "clean_score": self.scores.mean().item(),
            "steps": self.steps.tolist(),
        }


class Measurement(NamedTuple):
    subject: Subject
    protocol: Protocol
    fake: Side
    real: Side

    def record(self) -> dict[str, Any]:
        """{"label", "fake": {"mean", "median", "std", "share_reached", ...}, "real": {...}, and where it comes from}."""
        return {
            "label": self.subject.label,
            **self.subject.origin,
            "fake": self.fake.record(),
            "real": self.real.record(),
        }


def load_subject(
    source: Path,
    *,
    label: str | None = None,
    generator: Path | None = None,
    generator_step: int | None = None,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    n: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Subject:
    """The discriminator of a checkpoint (a run folder: its newest), n generated images and n training images.

    Args:
        generator: checkpoint, run folder or generator.safetensors whose generator makes the images.
        generator_step: or the run's own generator of that step. Neither: the checkpoint's own. Weights are those
            that were trained, not their average (but for a generator.safetensors, which has only that).
        dataset, data_dir: of the real images; default: what the run was trained on.
        seed: of the latents and of the choice of real images.

    Raises:
        ConfigError, DataError: what cannot be found, or does not fit together.
    """
    path = checkpoint_of(source, "SOURCE")
    state, config = _state_and_config(path, "SOURCE")
    if config.objective != "vanilla":
        raise ConfigError(
            f"SOURCE {source}: was trained with --objective {config.objective}, whose scores are no probabilities "
            "to be 0.02 apart; name a run with --objective vanilla"
        )
    if config.image_size is None:
        raise ConfigError(f"SOURCE {source}: was trained on points of {config.dataset}; name a run on images")
    shape: dict[str, Any] = {"image_size": int(config.image_size or 0), "channels": int(config.channels or 0)}
    discriminator = build_discriminator(
        str(config.architecture),
        width=int(config.width or 0),
        batch_norm=bool(config.batch_norm),
        spectral_norm=config.spectral_norm,
        **shape,
    )
    _load(discriminator, state["discriminator"], path, "SOURCE")
    if generator_step is not None:
        generator = path.parent / f"step-{generator_step:06d}.pt"
        if not generator.is_file():
            kept = ", ".join(p.stem.removeprefix("step-").lstrip("0") for p in sorted(path.parent.glob("step-*.pt")))
            raise ConfigError(f"--generator-step {generator_step}: {path.parent} has the steps {kept}")
    network, z_dim, step = load_raw_generator(generator or path, "--generator" if generator else "SOURCE")

    random = torch.Generator("cpu").manual_seed(seed)
    fake = generate(
        network.to(device), torch.randn(n, z_dim, generator=random, dtype=torch.float32, device="cpu").to(device)
    )
    if fake.shape[1:] != (shape["channels"], shape["image_size"], shape["image_size"]):
        raise ConfigError(
            f"--generator {generator}: makes images {_size(fake.shape)}, the discriminator of {source} takes "
            f"{shape['channels']}x{shape['image_size']}x{shape['image_size']}; name a generator of that size"
        )
    dataset = dataset or config.dataset
    where = data_dir or (config.data_dir if dataset == config.dataset else None)
    images = load_images(dataset, where, **shape)
    if n > len(images):
        raise ConfigError(f"--n {n}: {dataset} has {len(images)} images; use at most as many")
    chosen = images[torch.randperm(len(images), generator=random, device="cpu")[:n]].to(device)
    origin = {
        "source": str(path),
        "discriminator_step": state["step"],
        "generator_step": step,
        "generator": str(generator or path),
        "dataset": dataset,
        "n": n,
        "images_seed": seed,
        "baseline": config.baseline,
        "dat": config.dat,
        "eps": config.eps if config.dat else None,
        "seed": config.seed,
    }
    run = path.resolve().parent.parent
    label = label or f"{run.name if (run / 'config.yaml').is_file() else path.stem}, step {state['step']}"
    return Subject(label, discriminator.to(device), fake, chosen.float().div_(127.5).sub_(1), origin)


def load_raw_generator(path: Path, option: str) -> tuple[nn.Module, int, int]:
    """(generator, size of its latents, step) of a checkpoint, a run folder or a generator.safetensors."""
    if path.suffix == ".safetensors":
        network, described = load_generator(str(path), option)
        return network, described["z_dim"], described["step"]
    path = checkpoint_of(path, option)
    state, config = _state_and_config(path, option)
    generator = build_generator(
        str(config.architecture),
        image_size=int(config.image_size or 0),
        channels=int(config.channels or 0),
        width=int(config.width or 0),
        z_dim=int(config.z_dim or 0),
    )
    _load(generator, state["generator"], path, option)
    return generator, int(config.z_dim or 0), state["step"]


def checkpoint_of(path: Path, option: str) -> Path:
    """The newest checkpoint of a run folder; a file is taken for one."""
    if not path.is_dir():
        return path
    checkpoints = RunFolder(path).checkpoints()
    if not checkpoints:
        raise ConfigError(f"{option} {path}: must be a run folder with a checkpoint, or a checkpoint (.pt)")
    return checkpoints[-1]


def _state_and_config(path: Path, option: str) -> tuple[dict[str, Any], TrainConfig]:
    state = load_checkpoint(path, option)
    try:
        return state, TrainConfig.from_mapping(state["config"], str(path))
    except (AttributeError, KeyError):
        raise ConfigError(f"{option} {path}: must be a checkpoint that datgan_fast.train wrote") from None


def _load(network: nn.Module, tensors: dict[str, Tensor], path: Path, option: str) -> None:
    try:
        network.load_state_dict(tensors)
    except (AttributeError, RuntimeError):
        raise ConfigError(f"{option} {path}: must be a checkpoint that datgan_fast.train wrote") from None


def _size(shape: torch.Size) -> str:
    return "x".join(map(str, shape[1:]))


def measure(subject: Subject, protocol: Protocol) -> Measurement:
    """Attacks the generated images towards the real ones' scores and the real ones towards the generated ones'."""
    network = subject.discriminator
    network.train(protocol.batch_norm == "train")
    size = protocol.batch_size
    fakes, reals = subject.fake.split(size), subject.real.split(size)
    fake_scores, real_scores = ([_scores(network, x) for x in batches] for batches in (fakes, reals))
    return Measurement(
        subject,
        protocol,
        _attacked(network, fakes, fake_scores, real_scores, protocol),
        _attacked(network, reals, real_scores, fake_scores, protocol),
    )


def _attacked(
    network: nn.Module, batches: tuple[Tensor, ...], own: list[Tensor], other: list[Tensor], p: Protocol
) -> Side:
    results = [
        steps_to_fool(
            network,
            images,
            scores.mean() if p.target == "mean" else scores,
            rule=p.rule,
            step_size=p.step_size,
            cap=p.cap,
            tolerance=p.tolerance,
        )
        for images, scores in zip(batches, other, strict=True)
    ]
    return Side(
        torch.cat(batches).cpu(),
        torch.cat([r.images for r in results]).cpu(),
        torch.cat(own).cpu(),
        torch.cat([r.steps for r in results]).cpu(),
        torch.cat([r.reached for r in results]).cpu(),
    )


def _scores(network: nn.Module, images: Tensor) -> Tensor:
    """[n] in [0, 1], float32; the network's running statistics stay."""
    with torch.no_grad(), unchanged_state(network):
        return logits_of(network, images).float().sigmoid()
