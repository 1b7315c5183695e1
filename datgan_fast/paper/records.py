"""What a report needs of each finished run, as a line: OUTDIR/results/DATASET.jsonl, appended to when a run ends.

The folder can be carried elsewhere without the runs' own folders, and a reproduction goes on from it on a device of the same
kind: a run that has a line is not made again. Files that nobody appends to any more may be compressed to .jsonl.xz, which are
read too. Numbers are kept to five digits, the theory's to four. A line has the run's place and options, but for those that say
where things are; of its log, evaluations and other measurements what a report shows, as columns over steps; and on what it ran.
"""

from __future__ import annotations

import json
import lzma
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..data.datasets import DATASETS
from ..errors import ConfigError
from ..training.options import Options
from ..training.run_folder import RunFolder
from . import figure1
from .experiments import SETTINGS, Experiment
from .results import Lines, Result, in_order

PLACES = (
    "outdir",
    "data_dir",
    "download",
    "inception_weights",
    "init_from",
    "loggers",
)  # options that say where things are
_OF_LOG = (
    "step",
    "wasserstein",
    "input_grad_norm",
    "loss_clean",
    "loss_adv",
)  # what reports show; the folder has the rest
_OF_ENVIRONMENT = ("started", "datgan_fast", "commit", "torch", "python", "platform", "threads", "gpu", "kernels")

# Records


def line_of(result: Result) -> str:
    e = result.experiment
    config = {name: value for name, value in e.config.typed().items() if name not in PLACES}
    return json.dumps(
        {
            **{name: getattr(e, name) for name in ("figure", "setting", "variant", "seed")},
            "config": config,
            "stats": _columns([{name: line.get(name) for name in _OF_LOG} for line in result.stats]),
            "seconds": _short(result.stats[-1].get("seconds")),
            "metrics": {name: _columns(lines) for name, lines in _by_metric(result.metrics).items()},
            "attacks": _columns(result.attacks),
            "theory": _columns(result.theory, digits=4),
            "environment": _environment(result),
        }
    )


def _environment(result: Result) -> dict[str, Any]:
    known = {name: result.environment.get(name) for name in _OF_ENVIRONMENT}
    return {**known, "platform": str(known["platform"]).partition("-")[0]}


def append(outdir: Path, result: Result) -> None:
    path = outdir / "results" / f"{result.experiment.dataset}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    # At once, so that of several processes none comes between.
    with path.open("ab", buffering=0) as file:
        file.write((_end_of_half_a_line(path) + line_of(result) + "\n").encode())


def _end_of_half_a_line(path: Path) -> str:
    """A process that was killed may have left one, which must not swallow the next line."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return ""
        file.seek(-1, 2)
        return "" if file.read(1) == b"\n" else "\n"


def recorded(outdir: Path) -> dict[str, Result]:
    """By the runs' names. Raises ConfigError for a line that is JSON and yet no record; one that is none is left out with a
    warning, unless it is what a crash left of a last one."""
    found: dict[str, Result] = {}
    for path in sorted((outdir / "results").glob("*.jsonl*")):
        *lines, last = _text(path, outdir).split("\n")
        for number, line in enumerate([*lines, last], 1):
            result = _result(line, f"--outdir {outdir}: {path}, line {number}", outdir / "runs")
            if result is not None:
                found[result.experiment.name] = result
            elif line and number <= len(lines):
                warnings.warn(f"{path}: left out what is no record in line {number}.", stacklevel=2)
    return found


def _text(path: Path, outdir: Path) -> str:
    try:
        data = path.read_bytes()
        return (lzma.decompress(data) if path.suffix == ".xz" else data).decode("utf-8")
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ConfigError(f"--outdir {outdir}: {path} cannot be read ({' '.join(str(error).split())})") from None


def _result(line: str, where: str, folder: Path) -> Result | None:
    """None for what is no JSON."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    try:
        config = Options.from_mapping(found["config"], where).recorded()
        figure, setting, variant = (str(found[name]) for name in ("figure", "setting", "variant"))
        experiment = Experiment(figure, setting, variant, int(found["seed"]), config)
        path = folder / experiment.name
        stats = _rows(found["stats"])
        stats[-1]["seconds"] = found["seconds"]
        result = Result(
            experiment,
            stats,
            [{**row, "metric": name} for name, columns in found["metrics"].items() for row in _rows(columns)],
            path if path.is_dir() else None,
            _rows(found["attacks"]),
            _rows(found["theory"]),
            dict(found["environment"]),
        )
        _check(result)
        return result
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: is no record of a run ({type(error).__name__}: {error}); remove the line"
        ) from None


_TEXTS = ("metric", "protocol")
_NEEDED = {"metrics": (*_TEXTS, "value"), "attacks": ("protocol", "images", *figure1.summary_names())}


def _check(result: Result) -> None:
    """Raises LookupError or TypeError for lines that are not what the others of their kind are."""
    for name in ("stats", "metrics", "attacks", "theory"):
        for line in getattr(result, name):
            if missing := [key for key in ("step", *_NEEDED.get(name, ())) if key not in line]:
                raise LookupError(f"a line of {name} without {missing[0]}")
            for key, value in line.items():
                kinds = str if key in _TEXTS else int if key == "step" else (int, float, type(None))
                if not isinstance(value, kinds) or isinstance(value, bool):
                    raise TypeError(f"{key} of {name} is {value!s:.40}")


def _by_metric(lines: Lines) -> dict[str, Lines]:
    found: dict[str, Lines] = {}
    for line in lines:
        found.setdefault(line["metric"], []).append({k: v for k, v in line.items() if k != "metric"})
    return found


def _columns(lines: Sequence[Mapping[str, Any]], digits: int = 5) -> dict[str, Any]:
    """name -> its values, or the text that all lines have."""
    columns = {name: [_short(line.get(name), digits) for line in lines] for name in _names(lines)}
    return {n: v[0] if isinstance(v[0], str) and len(set(v)) == 1 else v for n, v in columns.items()}


def _names(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line))


def _short(value: Any, digits: int = 5) -> Any:
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _rows(columns: Mapping[str, Any]) -> Lines:
    steps = columns.get("step", [])
    return [
        {name: values[i] if isinstance(values, list) else values for name, values in columns.items()}
        for i in range(len(steps))
    ]


# Records and folders


def read(outdir: Path) -> list[Result]:
    """Every run of the figures that was recorded or has its folder in outdir/runs, in the order of data sets and figures."""
    found = recorded(outdir)
    for path in sorted((outdir / "runs").glob("*/experiment.json")):
        if path.parent.name not in found and (path.parent / "config.yaml").is_file():
            experiment = Experiment(*place_of(path), config=RunFolder(path.parent).options("--outdir").recorded())
            found[path.parent.name] = read_run(experiment, path.parent)
    data_sets = list(DATASETS)
    order = [(s.figure, s.name, v) for s in in_order() for v in SETTINGS[s.name].variants]
    known = [r for r in found.values() if r.experiment.place in order]
    return sorted(
        known, key=lambda r: (data_sets.index(r.experiment.dataset), order.index(r.experiment.place), r.experiment.seed)
    )


def place_of(path: Path) -> tuple[str, str, str, int]:
    """Figure, setting, variant and seed, as a run's experiment.json has them. Raises ConfigError."""
    try:
        place = json.loads(path.read_text(encoding="utf-8"))
        return str(place["figure"]), str(place["setting"]), str(place["variant"]), int(place["seed"])
    except (OSError, ValueError, RecursionError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--outdir {path.parents[2]}: {path} cannot be read ({reason}); remove the run's folder to make it again"
        ) from None


def read_run(experiment: Experiment, path: Path) -> Result:
    """From its folder. Raises ConfigError."""
    stats, metrics, attacks, theory = (
        files.read_json_lines(path / f"{name}.jsonl") for name in ("stats", "metrics", "attacks", "theory")
    )
    result = Result(experiment, stats, metrics, path, attacks, theory, RunFolder(path).environment())
    try:
        _check(result)
    except (LookupError, TypeError) as error:
        raise ConfigError(
            f"--outdir {path.parents[1]}: {path} is damaged ({error}); remove it to make it again"
        ) from None
    return result
