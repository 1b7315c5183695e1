"""The command compare: one page with the curves, pictures, options and metrics of several runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .cli import Parser, a_path, command_parser, output_file, run_command
from .errors import ConfigError
from .training.comparison_page import write_comparison
from .training.run_folder import RunFolder


def build_parser() -> Parser:
    parser = command_parser(
        "compare",
        "RUN [RUN ...] [options]",
        ["runs/00000-dcgan-dat-digits runs/00001-dcgan-digits", "runs/* --out all.html"],
    )
    parser.add_argument("runs", type=a_path, metavar="RUN", nargs="+", help="a run folder")
    parser.add_argument(
        "--out",
        type=a_path,
        metavar="FILE.html",
        default="compare.html",
        help="the page, with its pictures in it; default: compare.html",
    )
    return parser


def compare(arguments: argparse.Namespace) -> int:
    out = output_file("--out", arguments.out, ".html")
    runs = [run_at(name) for name in arguments.runs]
    for i, run in enumerate(runs):
        if run.path.resolve() in {other.path.resolve() for other in runs[:i]}:
            raise ConfigError(f"RUN {run.path}: is named twice; name each run once")
    try:
        write_comparison(runs, out)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None
    print(f"{len(runs)} runs in {out}")
    return 0


def run_at(name: str) -> RunFolder:
    """Raises ConfigError for a folder that is no run's."""
    path = Path(name)
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"RUN {name}: must be a run folder; it has no config.yaml")
    return RunFolder(path)


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    return run_command(parser.prog, lambda: compare(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
