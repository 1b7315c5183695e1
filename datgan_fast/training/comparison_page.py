"""Several runs on one HTML page: their curves in one figure a quantity, their last grids beside each other, what differs.

Pictures are in the page, which lies anywhere and is one file to send.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files, pages
from .config import Config
from .option_values import flag
from .pictures import as_text, axis_label, over_steps
from .run_folder import RunFolder
from .run_record import Measured, Value, last_step, measured

_QUANTITIES = ("loss_d", "loss_g", "wasserstein", "input_grad_norm")
_NOT_COMPARED = ("name", "outdir", "data_dir")
Lines = Mapping[str, tuple[Sequence[int], Sequence[float]]]  # a run's name -> steps, values


@dataclass(frozen=True)
class Row:
    """A metric as all runs have it that measured it in one way; None for those that did not."""

    metric: Measured
    values: list[Value | None]

    @property
    def best(self) -> Value | None:
        """Of several."""
        there = [value for value in self.values if value]
        return self.metric.best_of(there) if len(there) > 1 else None


def write_comparison(runs: Sequence[RunFolder], out: Path) -> None:
    """Raises ConfigError for a run whose config.yaml cannot be read, OSError."""
    names = unlike([run.path for run in runs])
    configs = [run.options("RUN").recorded() for run in runs]
    of_metrics = [measured(run) for run in runs]
    rows = _metric_rows(of_metrics)
    page = pages.render(
        "compare.html",
        title=f"{len(runs)} runs compared" if len(runs) > 1 else names[0],
        names=names,
        links=[_link(run.path / "index.html", out) for run in runs],
        facts=[*_differing(configs), *_how_far(runs)],
        grids=_grids(runs, names, configs),
        curves=_curves(runs, names, all(c.points for c in configs)) + _metric_curves(rows, of_metrics, names),
        rows=rows,
        several_protocols=len({row.metric.metric for row in rows}) < len(rows),
    )
    files.write_text(out, page)


def unlike(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of those above as it takes to tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = [os.sep.join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def _link(page: Path, out: Path) -> str | None:
    if not page.is_file():
        return None
    return pages.address(os.path.relpath(page.absolute(), out.absolute().parent))


def _differing(configs: Sequence[Config]) -> list[tuple[str, list[Any]]]:
    values = [config.typed() for config in configs]
    different = [name for name in values[0] if any(v[name] != values[0][name] for v in values)]
    return [(flag(name), [v[name] for v in values]) for name in different if name not in _NOT_COMPARED]


def _how_far(runs: Sequence[RunFolder]) -> list[tuple[str, list[Any]]]:
    seconds = [next((r.get("seconds") for r in reversed(run.records("stats"))), None) for run in runs]
    said = [f"{s:,.0f} s" if isinstance(s, (int, float)) else "" for s in seconds]
    return [("steps made", [f"{last_step(run):,}" for run in runs]), ("training time", said)]


def _grids(runs: Sequence[RunFolder], names: Sequence[str], configs: Sequence[Config]) -> list[tuple[Path, str]]:
    """Each data set's real images once, then each run's last picture."""
    real = {c.dataset: run.real_path for run, c in zip(reversed(runs), reversed(configs), strict=True)}
    grids = [(path, f"{dataset}: training data") for dataset, path in reversed(real.items()) if path.is_file()]
    for run, name in zip(runs, names, strict=True):
        if samples := run.samples():
            step, path = samples[-1]
            grids.append((path, f"{name}, step {step:,}"))
    return grids


def _curves(runs: Sequence[RunFolder], names: Sequence[str], points: bool) -> list[tuple[str, str]]:
    statistics = {name: run.records("stats") for name, run in zip(names, runs, strict=True)}
    figures = []
    for quantity in _QUANTITIES:
        lines = {name: over_steps(records, quantity) for name, records in statistics.items() if records}
        if lines:
            label = axis_label(quantity, points)
            figures.append((_figure(lines, label), f"{label.partition(',')[0].partition(chr(10))[0]} over training"))
    return figures


def _metric_curves(
    rows: Sequence[Row], of_metrics: Sequence[Sequence[Measured]], names: Sequence[str]
) -> list[tuple[str, str]]:
    """Of the metrics that several runs have measured alike, more than once."""
    figures = []
    for row in rows:
        key = (row.metric.metric, row.metric.protocol)
        lines = {
            name: ([v.step for v in m.values], [v.value for v in m.values])
            for name, found in zip(names, of_metrics, strict=True)
            for m in found
            if (m.metric, m.protocol) == key
        }
        if len(lines) > 1 and any(len(steps) > 1 for steps, _ in lines.values()):
            figures.append((_figure(lines, row.metric.title), f"{row.metric.title} over training"))
    return figures


def _figure(lines: Lines, label: str) -> str:
    """The address of a picture of these lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for number, (name, (steps, values)) in enumerate(lines.items()):
        marker = "o" if len(steps) < 10 else None
        style = ("-", "--", ":", "-.")[number // 10 % 4]  # there are ten colours
        label_of_run = f"\u200b{as_text(name)}"  # one that began with _ would be left out
        axis.plot(steps, values, style, marker=marker, markersize=4, linewidth=1.2, label=label_of_run)
    axis.set(xlabel="generator steps", ylabel=label)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return pages.embedded_bytes(picture.getvalue(), ".png")


def _metric_rows(of_metrics: Sequence[Sequence[Measured]]) -> list[Row]:
    """In the order of the first run that has them."""
    keys = {(m.metric, m.protocol): m for found in of_metrics for m in found}
    rows = []
    for key, metric in keys.items():
        own = [next((m for m in found if (m.metric, m.protocol) == key), None) for found in of_metrics]
        rows.append(Row(metric, [m.last if m else None for m in own]))
    order = list(dict.fromkeys(row.metric.metric for row in rows))
    return sorted(rows, key=lambda row: order.index(row.metric.metric))
