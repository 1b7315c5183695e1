"""The command sample: a grid of images from a trained generator, a plot of its points, or the generator for other programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from .cli import Parser, a_path, command_parser, output_file, run_command, whole_number
from .errors import ConfigError
from .training.checkpoints import Trained, generate, in_turn, read_generator
from .training.devices import resolve_device
from .training.export import SUFFIX, export
from .training.latents import Asked, drawn, each_class, interpolated, rows_of_classes
from .training.option_values import flag
from .training.pictures import save_grid, save_points

MOST = 10_000  # images in a picture


def sample(arguments: argparse.Namespace) -> int:
    device = resolve_device(arguments.device)
    export_as = chosen_export(arguments)
    suffix = SUFFIX[export_as] if export_as else ".png"
    out = output_file("--out", arguments.out or f"{'generator' if export_as else 'samples'}{suffix}", suffix)
    trained = read_generator(generator_file(arguments.file))
    try:
        if export_as:
            export(trained, export_as, out)
            made = signature(trained)
        else:
            made = draw(trained, asked_for(trained, arguments), device, out)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None
    print(f"{made} in {out}")
    return 0


def generator_file(text: str) -> Path:
    """FILE, or the generator of the run that it is. Raises ConfigError for a folder without one."""
    file = Path(text)
    if file.is_dir():
        file /= "generator.safetensors"
        if not file.is_file():
            raise ConfigError(f"FILE {text}: must be a run folder with a generator.safetensors, or such a file")
    return file


def draw(trained: Trained, asked: Asked, device: str, out: Path) -> str:
    """Writes the picture, and says how many of what are in it. Raises OSError."""
    labels = None if asked.labels is None else asked.labels.to(device)
    generated = generate(trained.generator.to(device), asked.latents.to(device), labels=labels)
    if trained.image_size:
        save_grid(generated, out, asked.columns)
        return f"{len(generated)} images"
    save_points(out, generated)
    return f"{len(generated)} points"


def chosen_export(arguments: argparse.Namespace) -> str:
    """What --export names, or "". Raises ConfigError, also for options that are of pictures."""
    kind = arguments.export
    if kind is None:
        return ""
    if kind not in SUFFIX:
        raise ConfigError(f"--export {kind}: must be {' or '.join(SUFFIX)}")
    for name in ("n", "seed", "class", "interpolate", "each_class"):
        if getattr(arguments, name) not in (None, False):
            raise ConfigError(f"{flag(name)}: is of a picture; leave it out with --export {kind}")
    return kind


def signature(trained: Trained) -> str:
    """What the exported generator takes and gives."""
    takes = f"latents float32 [n, {trained.z_dim}]" + (", labels int64 [n]" if trained.classes else "")
    size = trained.image_size
    gives = f"images [n, {trained.channels}, {size}, {size}] in [-1, 1]" if size else "points [n, 2]"
    return f"{takes} -> {gives}"


def asked_for(trained: Trained, arguments: argparse.Namespace) -> Asked:
    """Latents and labels of the picture. Raises ConfigError."""
    seed = whole_number("--seed", arguments.seed or "0", 0, 2**63 - 1)
    random = torch.Generator("cpu").manual_seed(seed)
    of_one = chosen_class(trained, arguments)
    if arguments.interpolate is not None or arguments.each_class:
        return in_rows(trained, arguments, of_one, random)
    default = 64 if trained.image_size else 1000
    count = default if arguments.n is None else whole_number("--n", arguments.n, 1, MOST)
    latents = drawn(count, trained.z_dim, random)
    return Asked(latents, in_turn(trained.classes, count, "cpu") if of_one is None else of_one.expand(count), None)


def in_rows(
    trained: Trained, arguments: argparse.Namespace, of_one: torch.Tensor | None, random: torch.Generator
) -> Asked:
    """--interpolate and --each-class: --n images a row."""
    option = "--each-class" if arguments.each_class else "--interpolate"
    columns = 10 if arguments.n is None else whole_number("--n", arguments.n, 2, 100)
    if not trained.image_size:
        raise ConfigError(f"{option}: is for images; {arguments.file} generates points")
    if arguments.each_class:
        if arguments.interpolate is not None or of_one is not None:
            raise ConfigError("--each-class: has a row for each class; leave out --interpolate and --class")
        return in_rows_of_classes(trained, arguments.file, columns, random)
    rows = whole_number("--interpolate", arguments.interpolate, 1, MOST // columns)
    labels = None
    if trained.classes:
        of_rows = [i % trained.classes for i in range(rows)] if of_one is None else [int(of_one)] * rows
        labels = rows_of_classes(of_rows, columns)
    return Asked(interpolated(rows, columns, trained.z_dim, random), labels, columns)


def in_rows_of_classes(trained: Trained, file: str, columns: int, random: torch.Generator) -> Asked:
    if not trained.classes:
        raise ConfigError(f"--each-class: {file} was trained without --conditional; leave it out")
    if trained.classes * columns > MOST:
        raise ConfigError(
            f"--each-class: {trained.classes} classes of {columns} images are more than {MOST}; use a smaller --n"
        )
    return each_class(trained.classes, columns, trained.z_dim, random)


def chosen_class(trained: Trained, arguments: argparse.Namespace) -> torch.Tensor | None:
    """That of --class, int64 []; None where none was typed. Raises ConfigError."""
    typed = getattr(arguments, "class")
    if typed is None:
        return None
    if not trained.classes:
        raise ConfigError(f"--class {typed}: {arguments.file} was trained without --conditional; leave it out")
    return torch.tensor(whole_number("--class", typed, 0, trained.classes - 1), dtype=torch.int64, device="cpu")


def build_parser() -> Parser:
    parser = command_parser(
        "sample",
        "FILE [options]",
        ["runs/00000-dcgan-dat-digits --n 100 --out grid.png", "generator.safetensors --class 7 --seed 1"],
    )
    parser.add_argument("file", type=a_path, metavar="FILE", help="a run folder, or its generator.safetensors")
    parser.add_argument(
        "--n",
        metavar="N",
        help="how many; default: 64 images or 1000 points; with --interpolate and --each-class in a row, 10",
    )
    parser.add_argument("--interpolate", metavar="N", help="N rows, each the way from one image to another")
    parser.add_argument(
        "--each-class",
        action="store_true",
        help="of a conditional generator: a row for each class, from the same latents",
    )
    parser.add_argument(
        "--class",
        metavar="K",
        help="of a conditional generator: images of this class, from 0; default: every class in turn",
    )
    parser.add_argument("--seed", metavar="N", help="seed of the latent vectors; default: 0")
    parser.add_argument(
        "--export",
        metavar="onnx|torch",
        help="no picture but the generator, for batches of any size: ONNX, or torch.export's .pt2",
    )
    parser.add_argument(
        "--out", type=a_path, metavar="FILE", help="default: samples.png; with --export generator.onnx or generator.pt2"
    )
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or cuda:i; default: auto")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    return run_command(parser.prog, lambda: sample(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
