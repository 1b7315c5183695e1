"""The command evaluate: metrics of a trained generator, each with its protocol."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import files
from .cli import Parser, a_path, command_parser, output_file, run_command, whole_number
from .data.datasets import DATASETS, dataset_named
from .errors import ConfigError, did_you_mean, not_one_of
from .metrics.catalogue import METRICS, in_words, named
from .metrics.comparison import to_uint8
from .metrics.evaluator import Evaluator
from .training.checkpoints import Trained, find_generator, generate, in_turn
from .training.devices import resolve_device

SOURCE = "GENERATOR"  # the option's name in error messages
NAMES = {"average": "averaged generator (EMA)", "raw": "generator as trained (no EMA)"}


def evaluate(arguments: argparse.Namespace) -> int:
    n = whole_number("--n", arguments.n, 2, 1_000_000)
    seed = whole_number("--seed", arguments.seed, 0, 2**63 - 1)
    batch_size = whole_number("--batch-size", arguments.batch_size, 1, 65536)
    metrics = chosen_metrics(arguments.metrics, arguments.inception_weights)
    out = output_file("--out", arguments.out, ".jsonl") if arguments.out is not None else None
    device = resolve_device(arguments.device)
    trained = chosen_generator(Path(arguments.source), arguments.weights)
    dataset = chosen_dataset(arguments.dataset, trained, arguments.source)
    same = trained.config is not None and trained.config.dataset == dataset
    evaluator = Evaluator(
        dataset,
        arguments.data_dir or (trained.config.data_dir if trained.config and same else None),
        trained.image_size or None,
        trained.channels or None,
        metrics=metrics,
        n=n,
        device=device,
        batch_size=batch_size,
        inception_weights=arguments.inception_weights,
        seed=seed,
        download=arguments.download,
        background=trained.config.background if trained.config and same else "white",
        conditional=trained.classes > 0,
    )
    images = generated(trained.generator.to(device), trained.z_dim, n, seed, batch_size, trained.classes)
    source = f"{NAMES[trained.weights]} at step {trained.step}, seed {seed}, {dataset}"
    for record in evaluator(images, source, in_turn(trained.classes, n, "cpu")):
        print(f"{record['metric']}  {record['value']:.6g}  ({record['protocol']})", flush=True)
        if out is not None:
            files.append_json_lines(out, {"step": trained.step, **record})
    return 0


def chosen_generator(source: Path, weights: str) -> Trained:
    if weights not in NAMES:
        raise not_one_of("--weights", weights, NAMES)
    if weights == "raw" and source.suffix == ".safetensors":
        raise ConfigError(
            f"--weights raw: {source} holds the averaged generator only; name the run folder or a checkpoint (.pt)"
        )
    return find_generator(source, "raw" if weights == "raw" else "average", SOURCE)


def chosen_dataset(typed: str | None, trained: Trained, source: str) -> str:
    """What the generator is compared with, of its own kind. Raises ConfigError."""
    if typed is not None and typed not in DATASETS:
        raise not_one_of("--dataset", typed, DATASETS)
    name = typed or (trained.config and trained.config.dataset)
    if not name:
        raise ConfigError(
            f"--dataset: must be given, for {source} has no config.yaml beside it; one of {', '.join(DATASETS)}"
        )
    points = not trained.image_size
    if dataset_named(name).points != points:
        right = ", ".join(other for other, row in DATASETS.items() if row.points == points)
        raise ConfigError(
            f"--dataset {name}: {source} generates {'points' if points else 'images'}; use one of {right}"
        )
    return name


@torch.no_grad()
def generated(generator: nn.Module, z_dim: int, n: int, seed: int, batch_size: int, classes: int = 0) -> Tensor:
    """n images, of every class in turn, as uint8 [n, C, H, W] on the CPU; NaN pixels, which no uint8 can show, leave them
    float. Or points [n, 2]."""
    device = next(generator.parameters()).device
    random = torch.Generator("cpu").manual_seed(seed)
    images = []
    labels = in_turn(classes, n, device)
    bar = tqdm(total=n, desc="generating", unit="image", disable=not sys.stderr.isatty(), leave=False)
    with bar:
        for start in range(0, n, batch_size):
            latents = torch.randn(
                min(batch_size, n - start), z_dim, generator=random, dtype=torch.float32, device="cpu"
            ).to(device)
            own = None if labels is None else labels[start : start + batch_size]
            batch = generate(generator, latents, batch_size, own)
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
        near = did_you_mean(wrong, METRICS)
        raise ConfigError(f"--metrics {wrong}: must be of {', '.join(METRICS)}, with commas between{near}")
    if inception_weights and not set(chosen) & set(named("inception")):
        raise ConfigError(
            f"--inception-weights {inception_weights}: is for {in_words(named('inception'))}; --metrics names none of them"
        )
    return chosen


def build_parser() -> Parser:
    parser = command_parser(
        "evaluate",
        f"{SOURCE} [options]",
        [
            "runs/00000-dcgan-dat-digits",
            "runs/00003-wgan-gp-dat-cifar10 --metrics is,fid,kid --n 50000 --out metrics.jsonl",
        ],
        "Every figure is printed with its protocol; compare figures of one protocol only.",
    )
    parser.add_argument(
        "source", type=a_path, metavar=SOURCE, help="generator.safetensors, a run folder, or a checkpoint (.pt)"
    )
    parser.add_argument(
        "--weights",
        metavar="|".join(NAMES),
        default="average",
        help="of a run or checkpoint: average (EMA) or raw; default: average",
    )
    parser.add_argument(
        "--metrics",
        metavar="LIST",
        help=f"of {', '.join(METRICS)}; default: what the data set allows, {in_words(named('inception'))} only with "
        "--inception-weights",
    )
    parser.add_argument("--n", metavar="N", default="10000", help="images to generate; default: 10000")
    parser.add_argument("--seed", metavar="N", default="0", help="seed of the latent vectors; default: 0")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset", metavar="|".join(DATASETS), help="what to compare with; default: what the run was trained on"
    )
    data.add_argument(
        "--data-dir", type=a_path, metavar="DIR", help="folder of its files; default: where they were in training"
    )
    data.add_argument("--download", action="store_true", help="fetch missing files of the data set into --data-dir")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch-size", metavar="N", default="256", help="images at a time; default: 256")
    speed.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or cuda:i; default: auto")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=a_path, metavar="FILE.jsonl", help="also append the records to this file")
    output.add_argument(
        "--inception-weights", type=a_path, metavar="FILE", help="Inception weights; default: downloaded when needed"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    return run_command(parser.prog, lambda: evaluate(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
