"""python -m datgan_fast.train: trains a GAN with direct adversarial training and writes a run folder."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import yaml

from .cli import Parser, run_command
from .errors import ConfigError
from .training.config_file import read_config_file
from .training.networks import parameter_count
from .training.option_values import flag
from .training.options import GENERAL, KINDS, Options, typed
from .training.run_folder import RunFolder
from .training.trainer import Trainer, load_checkpoint

# What may change when a run is continued: how long it goes on and what it records, not what it trains.
_MAY_CHANGE = {
    "steps",
    "log_every",
    "sample_every",
    "save_every",
    "eval_every",
    "device",
    "data_dir",
    "outdir",
    "backend",
    "cuda_graph",
    "compile",
    "deterministic",
    "inception_weights",
}


def build_parser() -> Parser:
    parser = Parser(prog="python -m datgan_fast.train", description=__doc__)
    for f in dataclasses.fields(Options):
        text, kind, default = f.metadata["help"].replace("%", "%%"), KINDS[f.name], GENERAL.get(f.name, "")
        if default != "" and kind is not bool and "default" not in text:
            text += f" (default: {default})"
        # Values stay text here; options.py converts and checks them, for files and flags alike.
        if kind is bool:
            parser.add_argument(flag(f.name), action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            choices = f.metadata.get("choices")
            metavar = "|".join(map(str, choices)) if choices else {int: "N", float: "X", str: "TEXT"}[kind]
            parser.add_argument(flag(f.name), metavar=metavar, help=text)
    parser.add_argument("--config", metavar="FILE", help="YAML or TOML file of options; flags win")
    parser.add_argument(
        "--resume", nargs="?", const="latest", metavar="latest|PATH", help="continue a run exactly: the newest in --outdir, "
        "or that of a run folder or checkpoint; with 'latest' and nothing to continue, a new run starts"
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the resolved options and the networks, and stop")
    return parser


def train(arguments: argparse.Namespace) -> int:
    given: dict[str, Any] = {k: v for k, v in vars(arguments).items() if v is not None}
    resume, file, dry_run = given.pop("resume", None), given.pop("config", None), given.pop("dry_run")
    options = {**(read_config_file(file) if file else {}), **typed(given, "command line")}
    if resume:
        run, checkpoint = find_run(resume, options)
        if run:
            return go_on(run, checkpoint, continued(run, options), dry_run)
        print(f"nothing to resume in {options.get('outdir', GENERAL['outdir'])}; starting a new run")
    trainer = Trainer(Options(**options))
    if dry_run:
        describe(trainer)
    else:
        trainer.fit()
    return 0


def go_on(run: RunFolder, checkpoint: Path | None, options: Options, dry_run: bool) -> int:
    """Continues a run from its checkpoint, or from the beginning if it has none yet."""
    if checkpoint:  # its weights replace those that --init-from gave, whose file may be gone
        options = dataclasses.replace(options, init_from=None)
    trainer = Trainer(options)
    if dry_run:
        describe(trainer)
        return 0
    if checkpoint:
        trainer.load_state(load_checkpoint(checkpoint, "--resume"))
    if trainer.step >= trainer.config.steps:
        print(f"{run.path}: already at step {trainer.step}; --steps with a larger number goes on")
        return 0
    run.rewind(trainer.step)
    trainer.fit(run)
    return 0


def find_run(resume: str, options: dict[str, Any]) -> tuple[RunFolder | None, Path | None]:
    """The run that --resume means, and the checkpoint to continue from, if it has one yet."""
    if resume == "latest":
        run = RunFolder.latest(options.get("outdir", GENERAL["outdir"]), options.get("name"))
    else:
        path = Path(resume)
        if path.is_file():
            run = RunFolder(path.resolve().parent.parent)
            if not (run.path / "config.yaml").is_file():
                raise ConfigError(
                    f"--resume {resume}: a checkpoint continues in its run's folder; --init-from takes its weights"
                )
            return run, path
        run = RunFolder(path)
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"--resume {resume}: must be 'latest', a run folder or a checkpoint of one")
    if run is None:
        return None, None
    checkpoints = run.checkpoints()
    return run, checkpoints[-1] if checkpoints else None


def continued(run: RunFolder, options: dict[str, Any]) -> Options:
    """The run's own options, with those given now that may change."""
    own = run.options()
    for name, value in options.items():
        was = getattr(own, name)
        if was is None:  # an option that is younger than the run
            was = GENERAL.get(name)
        if name not in _MAY_CHANGE and value != was:
            raise ConfigError(
                f"{flag(name)} {value}: the run {run.path} was started with {was}; leave the option out to continue it, "
                "or start a new run (--init-from takes its weights)"
            )
    return dataclasses.replace(own, **{k: v for k, v in options.items() if k in _MAY_CHANGE})


def describe(trainer: Trainer) -> None:
    print(yaml.safe_dump(trainer.config.typed(), sort_keys=False))
    for name, network in (("generator", trainer.generator), ("discriminator", trainer.discriminator)):
        print(f"{name} ({parameter_count(network):,} parameters): {network}\n")
    data = trainer.iteration.data
    where = "on" if data.resident else "streamed to"
    kind = "points" if trainer.config.points else "images"
    print(f"data: {len(data.images)} {kind} {tuple(data.images.shape[1:])}, {where} {trainer.device}")


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    return run_command(parser.prog, lambda: train(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
