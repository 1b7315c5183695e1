"""The command sample: a grid of images from a trained generator, or a plot of its points."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from .cli import Parser, a_path, command_parser, output_file, run_command, whole_number
from .errors import ConfigError
from .training.checkpoints import Trained, generate, in_turn, load_generator
from .training.devices import resolve_device
from .training.pictures import save_grid, save_points


def sample(arguments: argparse.Namespace) -> int:
    n = whole_number("--n", arguments.n, 1, 10_000) if arguments.n is not None else None
    seed = whole_number("--seed", arguments.seed, 0, 2**63 - 1)
    out = output_file("--out", arguments.out, ".png")
    device = resolve_device(arguments.device)
    file = Path(arguments.file)
    if file.is_dir():  # a run
        file /= "generator.safetensors"
        if not file.is_file():
            raise ConfigError(
                f"FILE {arguments.file}: must be a run folder with a generator.safetensors, or such a file"
            )
    trained = load_generator(file)
    points = not trained.image_size
    count = n or (1000 if points else 64)
    random = torch.Generator("cpu").manual_seed(seed)
    latents = torch.randn(count, trained.z_dim, generator=random, dtype=torch.float32, device="cpu").to(device)
    labels = chosen_labels(trained, arguments, count, device)
    try:
        generated = generate(trained.generator.to(device), latents, labels=labels)
        if points:
            save_points(out, generated)
        else:
            save_grid(generated, out)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None
    print(f"{count} {'points' if points else 'images'} in {out}")
    return 0


def chosen_labels(trained: Trained, arguments: argparse.Namespace, count: int, device: str) -> torch.Tensor | None:
    """Of the images to be made: the class of --class, or every class in turn. Raises ConfigError."""
    typed = getattr(arguments, "class")
    if typed is None:
        return in_turn(trained.classes, count, device)
    if not trained.classes:
        raise ConfigError(f"--class {typed}: {arguments.file} was trained without --conditional; leave it out")
    return torch.full(
        (count,), whole_number("--class", typed, 0, trained.classes - 1), dtype=torch.int64, device=device
    )


def build_parser() -> Parser:
    parser = command_parser(
        "sample",
        "FILE [options]",
        ["runs/00000-dcgan-dat-digits --n 100 --out grid.png", "generator.safetensors --class 7 --seed 1"],
    )
    parser.add_argument("file", type=a_path, metavar="FILE", help="a run folder, or its generator.safetensors")
    parser.add_argument("--n", metavar="N", help="how many; default: 64 images or 1000 points")
    parser.add_argument(
        "--class",
        metavar="K",
        help="of a conditional generator: images of this class, from 0; default: every class in turn",
    )
    parser.add_argument("--seed", metavar="N", default="0", help="seed of the latent vectors; default: 0")
    parser.add_argument("--out", type=a_path, metavar="FILE.png", default="samples.png", help="default: samples.png")
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or cuda:i; default: auto")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    return run_command(parser.prog, lambda: sample(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
