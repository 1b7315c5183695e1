"""What the runs of a reproduction measured: their records as series over discriminator updates."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from ..data.datasets import DATASETS
from ..errors import ConfigError
from ..metrics.catalogue import best_first
from ..training.run_folder import RunFolder
from .experiments import DAT, FIGURES, PLAIN, Experiment

Series = tuple[np.ndarray, np.ndarray]  # discriminator updates, values


@dataclass(frozen=True)
class Result:
    """A run and its records: stats.jsonl's and metrics.jsonl's lines. `path` is None for records made by hand."""

    experiment: Experiment
    stats: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    path: Path | None = None

    @property
    def finished(self) -> bool:
        return bool(self.stats) and self.stats[-1]["step"] == self.experiment.config.steps

    def statistic(self, name: str) -> Series:
        return self._series((r["step"], r.get(name)) for r in self.stats)

    def metric(self, name: str) -> Series:
        return self._series((r["step"], r["value"]) for r in self.metrics if r["metric"] == name)

    def penalty_added(self) -> Series:
        """What DAT adds to the discriminator's loss: that of the perturbed images less that of the clean ones."""
        updates, adversarial = self.statistic("loss_adv")
        return updates, adversarial - self.statistic("loss_clean")[1]

    def _series(self, pairs: Iterable[tuple[int, float | None]]) -> Series:
        """Values that were not finite, null in the files, are NaN."""
        found = list(pairs)
        updates = np.array([step for step, _ in found]) * self.experiment.config.n_dis
        return updates, np.array([np.nan if value is None else value for _, value in found], dtype=float)


def read(folder: Path) -> list[Result]:
    """Every run in the folder that is one of the figures', finished or not, in the order of data sets and figures."""
    results = []
    for path in sorted(folder.glob("*/experiment.json")):
        if not (path.parent / "config.yaml").is_file():
            continue
        experiment = Experiment(*place_of(path), config=RunFolder(path.parent).options("--outdir").recorded())
        results.append(read_run(experiment, path.parent))
    data_sets = list(DATASETS)
    order = [(name, s.name, v) for name, figure in FIGURES.items() for s in figure.settings for v in s.variants]
    known = [r for r in results if r.experiment.place in order]
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
    stats, metrics = (files.read_json_lines(path / name) for name in ("stats.jsonl", "metrics.jsonl"))
    return Result(experiment, stats, metrics, path)


def pairs(results: Iterable[Result]) -> list[tuple[Result, Result]]:
    """(plain, DAT) of the same data set, figure, setting and seed, where both finished."""
    by_variant: dict[str, dict[tuple[str, str, str, int], Result]] = {PLAIN: {}, DAT: {}}
    for r in results:
        e = r.experiment
        if r.finished and e.variant in by_variant:
            by_variant[e.variant][e.dataset, e.figure, e.setting, e.seed] = r
    plain, dat = by_variant[PLAIN], by_variant[DAT]
    return [(plain[key], dat[key]) for key in plain if key in dat]


def datasets(results: Iterable[Result]) -> list[str]:
    """The data sets among these results, in their order there."""
    return list(dict.fromkeys(r.experiment.dataset for r in results))


def settings(results: Iterable[Result]) -> list[str]:
    """Names of the settings among these results, in the order of their figures."""
    present = {r.experiment.setting for r in results}
    return [s.name for figure in FIGURES.values() for s in figure.settings if s.name in present]


def score_name(results: Iterable[Result]) -> str | None:
    """What stands in for the paper's Inception Score: the best that all these runs measured; None if there is none."""
    measured = [{m["metric"] for m in r.metrics} for r in results]
    return next(
        (m.name for m in best_first() if m.score and measured and all(m.name in of_run for of_run in measured)), None
    )
