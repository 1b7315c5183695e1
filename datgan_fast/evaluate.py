"""python -m datgan_fast.evaluate: metrics of a trained generator, each with its protocol."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import files
from .cli import Parser, run_command, whole_number
from .data.datasets import DATASETS
from .errors import ConfigError
from .metrics.catalogue import METRICS, in_words, named
from .metrics.comparison import to_uint8
from .metrics.evaluator import Evaluator
from .training.checkpoints import generate, load_generator
from .training.config import TrainConfig, resolve_device
from .training.networks import build_generator
from .training.run_folder import RunFolder
from .training.trainer import load_checkpoint

SOURCE = "GENERATOR"  # the option's name in error messages


@dataclass
class Trained:
    """A generator and where it comes from; config is None for a generator file away from its run."""

    generator: nn.Module
    step: int
    weights: str  # "average" or "raw"
    z_dim: int
    image_size: int | None  # None, like channels, for points
    channels: int | None
    config: TrainConfig | None


def find_generator(path: Path, weights: str) -> Trained:
    """The generator of a generator.safetensors, a run folder (its newest) or a checkpoint. Raises ConfigError."""
    if path.is_dir():
        run = RunFolder(path)
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"{SOURCE} {path}: must be a run folder; this one has no config.yaml")
        file = path / "generator.safetensors"
        if weights == "average" and file.is_file():
            return _from_generator_file(file)
        checkpoints = run.checkpoints()
        if not checkpoints:
            raise ConfigError(f"{SOURCE} {path}: this run has no checkpoint yet")
        return _from_checkpoint(checkpoints[-1], weights)
    if path.suffix == ".safetensors":
        if weights == "raw":
            raise ConfigError(
                f"--weights raw: {path} holds the averaged generator only; name the run folder or a checkpoint (.pt)"
            )
        return _from_generator_file(path)
    return _from_checkpoint(path, weights)


def _from_generator_file(path: Path) -> Trained:
    generator, network = load_generator(str(path), SOURCE)
    run = RunFolder(path.parent)
    config = run.config(SOURCE) if (path.parent / "config.yaml").is_file() else None
    shape = {key: network[key] for key in ("z_dim", "image_size", "channels")}
    return Trained(generator, network["step"], "average", **shape, config=config)


def _from_checkpoint(path: Path, weights: str) -> Trained:
    state = load_checkpoint(path, SOURCE)
    try:
        config = TrainConfig.from_mapping(state["config"], str(path))
        shape = {"image_size": config.image_size, "channels": config.channels}
        z_dim = int(config.z_dim or 0)
        generator = build_generator(str(config.architecture), width=int(config.width or 0), z_dim=z_dim, **shape)
        saved = state["average" if weights == "average" else "generator"]
        # An AveragedModel's state has a counter, and its parameters behind "module."
        tensors = {name.removeprefix("module."): t for name, t in saved.items() if name != "n_averaged"}
        generator.load_state_dict(tensors)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        raise ConfigError(f"{SOURCE} {path}: must be a checkpoint that datgan_fast.train wrote") from None
    return Trained(generator.eval(), state["step"], weights, z_dim, **shape, config=config)


def evaluate(arguments: argparse.Namespace) -> int:
    n = whole_number("--n", arguments.n, 2, 1_000_000)
    seed = whole_number("--seed", arguments.seed, 0, 2**63 - 1)
    batch_size = whole_number("--batch-size", arguments.batch_size, 1, 65536)
    if arguments.weights not in ("average", "raw"):
        raise ConfigError(f"--weights {arguments.weights}: must be average or raw")
    if arguments.dataset is not None and arguments.dataset not in DATASETS:
        raise ConfigError(f"--dataset {arguments.dataset}: must be one of {', '.join(DATASETS)}")
    metrics = chosen_metrics(arguments.metrics, arguments.inception_weights)
    out = Path(arguments.out) if arguments.out is not None else None
    if out is not None:
        check_out(out)
    device = resolve_device(arguments.device)
    trained = find_generator(Path(arguments.source), arguments.weights)
    dataset = arguments.dataset or (trained.config and trained.config.dataset)
    if not dataset:
        raise ConfigError(
            f"--dataset: must be given, for {arguments.source} has no config.yaml beside it; one of {', '.join(DATASETS)}"
        )
    points = trained.image_size is None
    if points != DATASETS[dataset].points:
        others = ", ".join(row.name for row in DATASETS.values() if row.points == points)
        kind = "points" if points else "images"
        raise ConfigError(f"--dataset {dataset}: {arguments.source} generates {kind}; use one of {others}")
    same = trained.config is not None and trained.config.dataset == dataset
    evaluator = Evaluator(
        dataset,
        arguments.data_dir or (trained.config.data_dir if trained.config and same else None),
        trained.image_size,
        trained.channels,
        metrics=metrics,
        n=n,
        device=device,
        batch_size=batch_size,
        inception_weights=arguments.inception_weights,
        seed=seed,
        download=arguments.download,
    )
    images = generated(trained.generator.to(device), trained.z_dim, n, seed, batch_size)
    name = {"average": "averaged generator (EMA)", "raw": "generator as trained (no EMA)"}[trained.weights]
    for record in evaluator(images, f"{name} at step {trained.step}, seed {seed}, {dataset}"):
        print(f"{record['metric']}  {record['value']:.6g}  ({record['protocol']})", flush=True)
        if out is not None:
            files.append_json_line(out, {"step": trained.step, **record})
    return 0


@torch.no_grad()
def generated(generator: nn.Module, z_dim: int, n: int, seed: int, batch_size: int) -> Tensor:
    """n images as uint8 [n, C, H, W] on the CPU; NaN pixels, which no uint8 can show, leave them float. Or points [n, 2]."""
    device = next(generator.parameters()).device
    random = torch.Generator("cpu").manual_seed(seed)
    images = []
    bar = tqdm(total=n, desc="generating", unit="image", disable=not sys.stderr.isatty(), leave=False)
    with bar:
        for start in range(0, n, batch_size):
            latents = torch.randn(
                min(batch_size, n - start), z_dim, generator=random, dtype=torch.float32, device="cpu"
            ).to(device)
            batch = generate(generator, latents, batch_size)
            if not batch.isfinite().all():
                return batch.cpu()
            images.append((to_uint8(batch) if batch.ndim == 4 else batch).cpu())
            bar.update(len(batch))
    return torch.cat(images)


def chosen_metrics(names: str | None, inception_weights: str | None) -> list[str] | None:
    """The metrics of --metrics, in its order; None leaves the choice to the evaluator. Raises ConfigError."""
    if names is None:
        return None
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not chosen or (unknown := [name for name in chosen if name not in METRICS]):
        wrong = unknown[0] if chosen else names
        raise ConfigError(f"--metrics {wrong}: must be of {', '.join(METRICS)}, with commas between")
    if inception_weights and not set(chosen) & set(named("inception")):
        raise ConfigError(
            f"--inception-weights {inception_weights}: is for {in_words(named('inception'))}; --metrics names none of them"
        )
    return chosen


def check_out(path: Path) -> None:
    if path.suffix.lower() != ".jsonl":
        raise ConfigError(f"--out {path}: must be a .jsonl file")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: its folder does not exist; make {path.parent} first")
    if path.is_dir():
        raise ConfigError(f"--out {path}: is a folder; name a .jsonl file")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m datgan_fast.evaluate", description=__doc__)
    parser.add_argument("source", metavar=SOURCE, help="generator.safetensors, a run folder, or a checkpoint (.pt)")
    parser.add_argument(
        "--metrics",
        help=f"of {','.join(METRICS)} (default: what the data set allows; {in_words(named('inception'))} only with "
        "--inception-weights)",
    )
    parser.add_argument("--n", default="10000", help="how many images to generate (default: 10000)")
    parser.add_argument(
        "--weights", default="average", help="of a run or checkpoint: average (EMA) or raw (default: average)"
    )
    parser.add_argument("--dataset", help="what to compare with (default: what the run was trained on)")
    parser.add_argument("--data-dir", help="where its files are (default: where they were in training)")
    parser.add_argument("--download", action="store_true", help="fetch missing files of the data set into --data-dir")
    parser.add_argument(
        "--inception-weights", metavar="FILE", help="Inception weights (default: downloaded when needed)"
    )
    parser.add_argument("--seed", default="0", help="seed of the latent vectors (default: 0)")
    parser.add_argument("--batch-size", default="256", help="images at a time (default: 256)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i (default: auto)")
    parser.add_argument("--out", metavar="FILE.jsonl", help="also append the records to this file")
    return run_command(parser.prog, lambda: evaluate(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
