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
from ..method.formulas import NORMS
from ..method.module_state import unchanged_state
from ..method.step_arguments import logits_of
from ..training.checkpoints import Checkpoint, find_generator, generate, in_turn, open_checkpoint
from ..training.config import Config
from .fooling import steps_to_fool

ATTACKED = 128  # images of each kind, of a reproduction's runs
SUMMARY = ("mean", "median", "share_reached", "distance", "clean_score")
TARGETS = ("paired", "mean")
BATCH_NORM = ("eval", "train")


@dataclass(frozen=True)
class Protocol:
    """What the paper leaves open. A batch of one kind is attacked towards the scores of a batch of the other kind."""

    rule: str = "l2"  # the step, a key of NORMS: the gradient ("none"), at unit length ("l2"), its sign ("linf")
    step_size: float = 0.05
    target: str = "paired"  # image i of the other batch, or that batch's "mean" score
    batch_norm: str = "eval"  # running statistics ("eval") or those of the batch under attack ("train")
    cap: int = 200
    tolerance: float = 0.02
    batch_size: int = 64

    def __str__(self) -> str:
        return (
            f"{NORMS[self.rule].title}, size {self.step_size:g}, target {self.target}, BatchNorm {self.batch_norm}, "
            f"tolerance {self.tolerance:g}, at most {self.cap} steps"
        )

    def difference(self, other: Protocol) -> str:
        """What is not as in that one: "target mean"."""
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        return ", ".join(f"{_TITLES.get(name, name)} {getattr(self, name)}" for name in changed)


_TITLES = {"batch_norm": "BatchNorm", "rule": "step", "step_size": "step size"}
CHOSEN = Protocol()
# And the nearest ones: another answer to one of the questions that the paper leaves open.
PROTOCOLS = (CHOSEN, dataclasses.replace(CHOSEN, target="mean"), dataclasses.replace(CHOSEN, batch_norm="train"))


def all_protocols(base: Protocol) -> Iterator[Protocol]:
    """Every rule, step size, target and mode of BatchNorm, with the base's cap, tolerance and batch size."""
    for norm, target, mode in itertools.product(NORMS.values(), TARGETS, BATCH_NORM):
        for size in norm.step_sizes:
            yield dataclasses.replace(base, rule=norm.name, step_size=size, target=target, batch_norm=mode)


@dataclass
class Subject:
    """A trained discriminator, and the generated and real images to attack, float32 [n, C, H, W] in [-1, 1]."""

    label: str
    discriminator: nn.Module
    fake: Tensor
    real: Tensor
    origin: dict[str, Any]  # where all of it comes from, for the record


class Attacked(NamedTuple):
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
    fake: Attacked
    real: Attacked

    def summary(self) -> dict[str, Any]:
        """Flat: the protocol, and of each kind of images "fake_median" and so on."""
        kinds = {"fake": self.fake.record(), "real": self.real.record()}
        of_images = {f"{kind}_{name}": record[name] for kind, record in kinds.items() for name in SUMMARY}
        return {"protocol": str(self.protocol), "images": len(self.subject.fake), **of_images}

    def record(self) -> dict[str, Any]:
        """{"label", "fake": {"mean", "median", "std", "share_reached", ...}, "real": {...}, and where it comes from}."""
        return {
            "label": self.subject.label,
            **self.subject.origin,
            "fake": self.fake.record(),
            "real": self.real.record(),
        }


def summary_names() -> list[str]:
    """Of the numbers in a measurement's summary."""
    return [f"{kind}_{name}" for kind in ("fake", "real") for name in SUMMARY]


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
        generator: checkpoint, run folder or generator.safetensors (which has the average only) whose generator makes the images.
        generator_step: or the run's own generator of that step. Neither: the checkpoint's own. Weights are as they were trained.
        dataset, data_dir: of the real images; default: what the run was trained on.
        seed: of the latents and of the choice of real images.

    Raises:
        ConfigError, DataError: what cannot be found, or does not fit together.
    """
    checkpoint = open_checkpoint(source, "SOURCE")
    config = checkpoint.config
    _check_attackable(source, config)
    discriminator = checkpoint.discriminator()
    if generator_step is not None:
        generator = _checkpoint_of_step(checkpoint.path, generator_step)
    trained = find_generator(generator, "raw", "--generator") if generator else checkpoint.generator("raw")

    random = torch.Generator("cpu").manual_seed(seed)
    latents = torch.randn(n, trained.z_dim, generator=random, dtype=torch.float32, device="cpu")
    fake = generate(trained.generator.to(device), latents.to(device), labels=in_turn(trained.classes, n, device))
    if fake.shape[1:] != (config.channels, config.image_size, config.image_size):
        raise ConfigError(
            f"--generator {generator}: makes images {'x'.join(map(str, fake.shape[1:]))}, the discriminator of {source} takes "
            f"{config.channels}x{config.image_size}x{config.image_size}; name a generator of that size"
        )
    dataset = dataset or config.dataset
    where = data_dir or (config.data_dir if dataset == config.dataset else None)
    images = load_images(dataset, where, config.image_size, config.channels, background=config.background)
    if n > len(images):
        raise ConfigError(f"--n {n}: {dataset} has {len(images)} images; use at most as many")
    chosen = images[torch.randperm(len(images), generator=random, device="cpu")[:n]].to(device)
    origin = {
        "source": str(checkpoint.path),
        "discriminator_step": checkpoint.step,
        "generator_step": trained.step,
        "generator": str(generator or checkpoint.path),
        "dataset": dataset,
        "n": n,
        "images_seed": seed,
        "baseline": config.baseline,
        "dat": config.dat,
        "eps": config.eps if config.dat else None,
        "seed": config.seed,
    }
    real = chosen.float().div_(127.5).sub_(1)
    return Subject(label or _name(checkpoint), discriminator.to(device), fake, real, origin)


def _check_attackable(source: Path, config: Config) -> None:
    """Raises ConfigError where the paper's stopping rule has no meaning."""
    if config.objective != "vanilla":
        raise ConfigError(
            f"SOURCE {source}: was trained with --objective {config.objective}, whose scores are no probabilities "
            "to be 0.02 apart; name a run with --objective vanilla"
        )
    if config.classes:
        raise ConfigError(
            f"SOURCE {source}: was trained with --conditional; name a run whose discriminator sees no classes"
        )
    if config.points:
        raise ConfigError(f"SOURCE {source}: was trained on points of {config.dataset}; name a run on images")


def _checkpoint_of_step(beside: Path, step: int) -> Path:
    path = beside.parent / f"step-{step:06d}.pt"
    if not path.is_file():
        kept = ", ".join(p.stem.removeprefix("step-").lstrip("0") for p in sorted(beside.parent.glob("step-*.pt")))
        raise ConfigError(f"--generator-step {step}: {beside.parent} has the steps {kept}")
    return path


def _name(checkpoint: Checkpoint) -> str:
    run = checkpoint.path.resolve().parent.parent
    return f"{run.name if (run / 'config.yaml').is_file() else checkpoint.path.stem}, step {checkpoint.step}"


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
) -> Attacked:
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
    return Attacked(
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
