"""The command train: trains a GAN, with direct adversarial training or without, and writes a run folder."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml

from .cli import Parser, a_path, command_parser, run_command
from .errors import ConfigError
from .training.config_file import read_config_file
from .training.launch import Launch, launcher, restarted
from .training.networks import parameter_count
from .training.option_values import flag
from .training.options import GENERAL, GROUPS, KINDS, Options, typed
from .training.run_folder import RunFolder
from .training.share import Share
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
    "loggers",
}


def build_parser() -> Parser:
    parser = command_parser(
        "train",
        "[options]",
        ["--baseline wgan-gp --dataset cifar10 --download", "--resume latest --steps 20000"],
        "What is not given is decided by the baseline, the norm, the data set and the device; --dry-run shows it.",
    )
    parser.add_argument("--config", type=a_path, metavar="FILE", help="YAML or TOML file of options; flags win")
    parser.add_argument(
        "--resume", type=a_path, nargs="?", const="latest", metavar="latest|PATH",
        help="continue a run exactly: the newest in --outdir, "
        "or that of a run folder or checkpoint; with 'latest' and nothing to continue, a new run starts"
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the resolved options and the networks, and stop")
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for f in dataclasses.fields(Options):
        group, text, kind = groups[f.metadata["group"]], f.metadata["help"].replace("%", "%%"), KINDS[f.name]
        if (default := GENERAL.get(f.name, "")) != "" and "default" not in text:
            text += f"; default: {_shown(default)}"
        # Values stay text here; options.py converts and checks them, for files and flags alike.
        if kind is bool:
            group.add_argument(flag(f.name), action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            choices = f.metadata.get("choices")
            metavar = (
                "|".join(map(str, choices)) if choices else {int: "N", float: "X", str: "TEXT", Path: "PATH"}[kind]
            )
            group.add_argument(flag(f.name), type=a_path if kind is Path else str, metavar=metavar, help=text)
    return parser


def _shown(default: Any) -> str:
    return (
        ("off", "on")[default]
        if isinstance(default, bool)
        else f"{default:g}"
        if isinstance(default, float)
        else str(default)
    )


def train(arguments: argparse.Namespace) -> int:
    given: dict[str, Any] = {k: v for k, v in vars(arguments).items() if v is not None}
    resume, file, dry_run = given.pop("resume", None), given.pop("config", None), given.pop("dry_run")
    share = Share.of_default_group()
    options = share.alike(lambda: {**(read_config_file(file) if file else {}), **typed(given, "command line")})
    # Where it goes on is the first process's to find, whose the run's folder is.
    path, state, own = share.tell(lambda: where_to_begin(resume, options))
    trainer = share.alike(lambda: Trainer(own))
    if dry_run:
        describe(trainer)
        return 0
    if path is None:
        trainer.fit()
        return 0
    return go_on(RunFolder(path), state, trainer)


State = dict[str, Any] | None  # of a checkpoint


def where_to_begin(resume: str | None, options: dict[str, Any]) -> tuple[Path | None, State, Options]:
    """The run that is continued, if it is one, its checkpoint's state, if it has one yet, and the options to train with."""
    run, checkpoint = (begun_before(resume, options), None) if restarted() else (None, None)
    if resume and not run:
        run, checkpoint = find_run(resume, options)
        if run is None:
            print(f"nothing to resume in {options.get('outdir', GENERAL['outdir'])}; starting a new run")
    if run is None:
        return None, None, Options(**options)
    own = continued(run, options)
    state = load_checkpoint(checkpoint, "--resume") if checkpoint else newest_state(run)
    if state:
        check_alike(run, own, state)
        own = dataclasses.replace(own, init_from=None)  # whose weights are replaced, and whose file may be gone
    return run.path, state, own


def newest_state(run: RunFolder) -> State:
    """Of the newest checkpoint that can be read; None where the run has come to none yet. Raises ConfigError where none of them
    can be, or all are gone."""
    checkpoints = run.checkpoints()[::-1]
    damaged: list[str] = []
    for path in checkpoints:
        try:
            state = load_checkpoint(path, "--resume")
        except ConfigError as error:
            damaged.append(str(error))
            continue
        if damaged:
            warnings.warn(f"{'; '.join(damaged)}; going on from {path}", RuntimeWarning, stacklevel=2)
        return state
    if damaged:
        raise ConfigError(f"{'; '.join(damaged)}; no other checkpoint is there to go on from")
    if run.has_lost_checkpoints():
        raise ConfigError(
            f"--resume {run.path}: has no checkpoint any more; put one back, or start a new run (--init-from takes the "
            "weights of its generator.safetensors)"
        )
    return None


def check_alike(run: RunFolder, own: Options, state: dict[str, Any]) -> None:
    """Raises ConfigError where its config.yaml says something else than the run was trained with."""
    now, then = own.recorded().typed(), state.get("config")
    for name, value in then.items() if isinstance(then, dict) else ():
        if name in now and name not in _MAY_CHANGE and now[name] != value:
            raise ConfigError(
                f"{flag(name)} {now[name]}: stands in {run.path / 'config.yaml'}, but the run was trained with {value}; put "
                "that back, or start a new run (--init-from takes its weights)"
            )


def go_on(run: RunFolder, state: State, trainer: Trainer) -> int:
    """Continues a run from its checkpoint's state, or from the beginning if it has none yet. One at its last step is finished
    anew: it may have been killed after its last checkpoint, in an evaluation or while what is drawn last was written."""
    if state:
        trainer.load_state(state)
    if trainer.share.first:
        run.hold()
    if trainer.step > trainer.config.steps:
        print(f"{run.path}: already at step {trainer.step}; --steps with a larger number goes on")
        run.close()
        return 0
    if trainer.share.first:
        run.rewind(trainer.step)
    trainer.fit(run)
    return 0


def begun_before(resume: str | None, options: dict[str, Any]) -> RunFolder | None:
    """The run that this command itself has begun or gone on with, before torchrun had to start it again."""
    runs = RunFolder.numbered(options.get("outdir", GENERAL["outdir"]))
    if resume and resume != "latest":
        path = Path(resume).resolve()
        runs.append(RunFolder(path.parent.parent if path.is_file() else path))
    return next((run for run in runs if run.launched_by() == launcher()), None)


def find_run(resume: str, options: dict[str, Any]) -> tuple[RunFolder | None, Path | None]:
    """The run that --resume means, and the checkpoint if it names one."""
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
    return run, None


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
    with Launch() as launch:
        return run_command(parser.prog, lambda: launch.run(lambda: train(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
