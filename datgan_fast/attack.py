"""The command attack: how many attack steps fool a trained discriminator (the paper's Figure 1)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import files
from .cli import Parser, a_path, command_parser, run_command, whole_number
from .data.datasets import DATASETS
from .errors import ConfigError, not_one_of
from .method.formulas import NORMS
from .paper.figure1 import BATCH_NORM, TARGETS, Measurement, Protocol, Subject, all_protocols, load_subject, measure
from .paper.figure1_picture import draw, table
from .training.devices import resolve_device

DEFAULT = Protocol()


def attack(arguments: argparse.Namespace) -> int:
    protocol = chosen_protocol(arguments)
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: must be a folder; it is a file")
    device = resolve_device(arguments.device)
    subjects = chosen_subjects(arguments, device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be made ({error.strerror})") from None

    grid = list(all_protocols(protocol)) if arguments.all_protocols else []
    print(protocol, flush=True)
    attacks = (1 + len(grid)) * len(subjects)
    with tqdm(total=attacks, unit="attack", disable=not sys.stderr.isatty(), leave=False) as bar:
        found = measure_each(subjects, protocol, bar)
        with bar.external_write_mode():
            describe(found)
        written = write(out, found, device)
        if grid:
            written += write_grid(out, measure_grid(subjects, grid, bar))
    print(", ".join(map(str, written)))
    return 0


def chosen_subjects(arguments: argparse.Namespace, device: str) -> list[Subject]:
    """The sources' discriminators and images. Raises ConfigError."""
    n = whole_number("--n", arguments.n, 1, 1_000_000)
    seed = whole_number("--seed", arguments.seed, 0, 2**63 - 1)
    if arguments.dataset is not None and arguments.dataset not in DATASETS:
        raise not_one_of("--dataset", arguments.dataset, DATASETS)
    labels = chosen_labels(arguments.labels, len(arguments.sources))
    generator, generator_step = chosen_generator(arguments.generator, arguments.generator_step)
    subjects = [
        load_subject(
            Path(source),
            label=label,
            generator=generator,
            generator_step=generator_step,
            dataset=arguments.dataset,
            data_dir=arguments.data_dir,
            n=n,
            seed=seed,
            device=device,
        )
        for source, label in zip(arguments.sources, labels, strict=True)
    ]
    if len({subject.label for subject in subjects}) < len(subjects):
        raise ConfigError("SOURCE: two of them have the same label; tell them apart with --labels A,B,...")
    return subjects


def chosen_generator(path: str | None, step: str | None) -> tuple[Path | None, int | None]:
    """Whose generator makes the images: a path, or the step of each run's own; neither: the sources'."""
    chosen_step = whole_number("--generator-step", step, 1, 10**9) if step is not None else None
    if path is not None and chosen_step is not None:
        raise ConfigError("--generator with --generator-step: both choose the generator; leave one out")
    return Path(path) if path is not None else None, chosen_step


def measure_each(subjects: list[Subject], protocol: Protocol, bar: tqdm) -> list[Measurement]:
    found = []
    for subject in subjects:
        found.append(measure(subject, protocol))
        bar.update()
    return found


def measure_grid(subjects: list[Subject], grid: list[Protocol], bar: tqdm) -> list[list[Measurement]]:
    """A row for each protocol; away from a terminal a line says how far it is."""
    rows = []
    for number, protocol in enumerate(grid, 1):
        rows.append(measure_each(subjects, protocol, bar))
        if bar.disable:
            print(f"protocol {number}/{len(grid)}: {protocol}", flush=True)
    return rows


def describe(measurements: list[Measurement]) -> None:
    for m in measurements:
        for kind, side in (("generated", m.fake), ("real", m.real)):
            r = side.record()
            print(
                f"{m.subject.label}: {kind} images {r['mean']:.2f} steps (median {r['median']:g}, standard deviation "
                f"{r['std']:.1f}), {100 * r['share_reached']:.1f}% fooled, moved by {r['distance']:.2f}",
                flush=True,
            )


def write(out: Path, measurements: list[Measurement], device: str) -> list[Path]:
    """The numbers and the picture; returns their files."""
    numbers, picture = out / "attack.json", out / "figure1.png"
    record = {
        "protocol": dataclasses.asdict(measurements[0].protocol),
        "runs": records(measurements, True),
        "torch": torch.__version__,
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
    }
    files.write_text(numbers, json.dumps(record, indent=1) + "\n")
    draw(measurements, picture)
    return [numbers, picture]


def write_grid(out: Path, grid: list[list[Measurement]]) -> list[Path]:
    """All protocols as a table and as numbers; returns their files."""
    page, numbers = out / "protocols.md", out / "protocols.json"
    files.write_text(page, table([m for row in grid for m in row]))
    rows = [{"protocol": dataclasses.asdict(row[0].protocol), "runs": records(row, False)} for row in grid]
    files.write_text(numbers, json.dumps(rows, indent=1) + "\n")
    return [page, numbers]


def records(measurements: list[Measurement], each_image: bool) -> list[dict[str, Any]]:
    found = [m.record() for m in measurements]
    if not each_image:
        for record in found:
            del record["fake"]["steps"], record["real"]["steps"]
    return found


def chosen_protocol(arguments: argparse.Namespace) -> Protocol:
    for option, value, choices in (
        ("--rule", arguments.rule, NORMS),
        ("--target", arguments.target, TARGETS),
        ("--batch-norm", arguments.batch_norm, BATCH_NORM),
    ):
        if value not in choices:
            raise not_one_of(option, value, choices)
    return Protocol(
        rule=arguments.rule,
        step_size=number("--step-size", arguments.step_size, 1e9),
        target=arguments.target,
        batch_norm=arguments.batch_norm,
        cap=whole_number("--cap", arguments.cap, 1, 1_000_000),
        tolerance=number("--tolerance", arguments.tolerance, 1),
        batch_size=whole_number("--batch-size", arguments.batch_size, 1, 65536),
    )


def number(option: str, text: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= most:
        raise ConfigError(f"{option} {text}: must be a number above 0 and at most {most:g}")
    return value


def chosen_labels(text: str | None, count: int) -> list[str | None]:
    if text is None:
        return [None] * count
    labels = [label.strip() for label in text.split(",")]
    if len(labels) != count or not all(labels):
        raise ConfigError(f"--labels {text}: must be {count} names with commas between, one for each SOURCE")
    return list(labels)


# Long: a line for each option.
def build_parser() -> Parser:
    parser = command_parser(
        "attack",
        "SOURCE ... [options]",
        [
            "runs/00000-dcgan-digits runs/00001-dcgan-dat-digits --labels 'without DAT,with DAT'",
            "runs/00001-dcgan-dat-digits --rule l2 --step-size 0.1",
        ],
        "Images move until the discriminator gives them a score of the other batch, to within --tolerance.",
    )
    parser.add_argument(
        "sources", type=a_path, metavar="SOURCE", nargs="+", help="run folder (its newest checkpoint) or checkpoint"
    )
    method = parser.add_argument_group("method (what the paper leaves open)")
    method.add_argument(
        "--rule",
        metavar="|".join(NORMS),
        default=DEFAULT.rule,
        help="the step: the raw gradient (none), at unit length (l2), its sign (linf), or its elements cut to [-1, 1] (clamp); "
        f"default: {DEFAULT.rule}",
    )
    method.add_argument(
        "--step-size",
        metavar="X",
        default=str(DEFAULT.step_size),
        help=f"images being in [-1, 1]; default: {DEFAULT.step_size}",
    )
    method.add_argument(
        "--target",
        metavar="|".join(TARGETS),
        default=DEFAULT.target,
        help=f"score to reach: the paired image's of the other batch, or that batch's mean; default: {DEFAULT.target}",
    )
    method.add_argument(
        "--batch-norm",
        metavar="|".join(BATCH_NORM),
        default=DEFAULT.batch_norm,
        help=f"running statistics (eval) or the attacked batch's own (train); default: {DEFAULT.batch_norm}",
    )
    method.add_argument("--cap", metavar="N", default=str(DEFAULT.cap), help=f"the most steps; default: {DEFAULT.cap}")
    method.add_argument(
        "--tolerance",
        metavar="X",
        default=str(DEFAULT.tolerance),
        help=f"of the score, from 0 to 1; default: {DEFAULT.tolerance}",
    )
    method.add_argument("--all-protocols", action="store_true", help="also measure a grid of protocols, as a table")
    data = parser.add_argument_group("data")
    data.add_argument("--n", metavar="N", default="256", help="images of each kind; default: 256")
    data.add_argument(
        "--generator",
        type=a_path,
        metavar="PATH",
        help="whose generator makes the images: a run, checkpoint or generator.safetensors",
    )
    data.add_argument(
        "--generator-step", metavar="N", help="or each run's own checkpoint of this step; default: the SOURCE itself"
    )
    data.add_argument(
        "--dataset", metavar="|".join(DATASETS), help="of the real images; default: what the run was trained on"
    )
    data.add_argument(
        "--data-dir", type=a_path, metavar="DIR", help="folder of its files; default: where they were in training"
    )
    data.add_argument("--seed", metavar="N", default="0", help="seed of latents and choice of real images; default: 0")
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--batch-size",
        metavar="N",
        default=str(DEFAULT.batch_size),
        help=f"images in a batch; default: {DEFAULT.batch_size}",
    )
    speed.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or cuda:i; default: auto")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out", type=a_path, metavar="DIR", default="figure1", help="folder for the results; default: figure1"
    )
    output.add_argument("--labels", metavar="A,B,...", help="names of the sources in the picture; default: the runs'")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    return run_command(parser.prog, lambda: attack(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
