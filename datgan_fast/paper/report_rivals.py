"""The page of the rivals: DAT beside other regularisers, by updates and at equal time, and how their weights were chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import rivals, statistics, sweep
from .experiments import PLAIN, SETTINGS
from .report_figures import mean_and_spread, options
from .report_page import Block, Heading, Paragraph, Picture, Table
from .report_pictures import draw_rivals
from .results import Result, datasets, settings
from .verdicts import counted

Group = dict[str, list[Result]]  # label -> its runs, in the order of the seeds


def blocks(found: Sequence[Result], outdir: Path) -> list[Block]:
    if not found:
        return []
    said: list[Block] = [
        Heading("DAT beside its rivals, at equal cost", 1),
        Paragraph(
            "Each regulariser with the weight that figure rivals-sweep chose (seeds 0 to 2), on other seeds. Distances to the "
            "real data are those of the sweep, smaller is better. Equal time is the time after which the quickest of the "
            "trainings has made all of its updates; a training's time is its updates times the median over its runs of seconds "
            "an update, as they were recorded, without evaluations. p: a sign-flip test over seeds against plain training, "
            "corrected for all comparisons of the page (Holm). Runs that diverged are left out, which favours their training."
        ),
    ]
    compared = [(d, n, g) for d, n, g in _groups(found, choosing=False) if len(g) > 1]
    p = _corrected(compared)
    for (dataset, network, group), of_group in zip(compared, p, strict=True):
        said += _compared(dataset, network, group, of_group, outdir)
    for dataset, network, group in _groups(found, choosing=True):
        if set(group) == set(SETTINGS[network].variants):
            said += [Heading(f"Weights: {network} on {dataset}"), _weights(group)]
    return said


def _groups(found: Sequence[Result], choosing: bool) -> list[tuple[str, str, Group]]:
    """(data set, network, its runs by label), of the seeds that choose or of the others."""
    groups = []
    for dataset in datasets(found):
        for network in settings(found):
            runs = [
                r
                for r in found
                if (r.experiment.dataset, r.experiment.setting) == (dataset, network)
                and (r.experiment.seed in rivals.CHOOSING) == choosing
            ]
            order = SETTINGS[network].variants if choosing else (PLAIN, *rivals.CHOSEN[network])
            group = {label: [r for r in runs if r.experiment.variant == label] for label in order}
            groups.append((dataset, network, {label: of_label for label, of_label in group.items() if of_label}))
    return groups


# Compared


def _corrected(compared: Sequence[tuple[str, str, Group]]) -> list[dict[str, float]]:
    """Of each group its labels' p, against plain training, corrected over all of them together."""
    keys = [
        (i, label) for i, (_, _, group) in enumerate(compared) for label in group if label != PLAIN and PLAIN in group
    ]
    found = [statistics.permutation_p(_log_ratios(compared[i][2], label)[None]) for i, label in keys]
    corrected = statistics.holm(np.array(found))
    p: list[dict[str, float]] = [{} for _ in compared]
    for (i, label), value in zip(keys, corrected, strict=True):
        p[i][label] = float(value)
    return p


def _log_ratios(group: Group, label: str) -> np.ndarray:
    """Of final distances, regulariser over plain, of each seed that both have."""
    plain = {r.experiment.seed: sweep.distance(r) for r in group[PLAIN]}
    pairs = [(sweep.distance(r), plain[r.experiment.seed]) for r in group[label] if r.experiment.seed in plain]
    return np.array([math.log(a / b) for a, b in pairs if a > 0 and b > 0 and math.isfinite(a / b)])


def _compared(dataset: str, network: str, group: Group, p: dict[str, float], outdir: Path) -> list[Block]:
    cost = {label: _seconds_an_update(runs) for label, runs in group.items()}
    updates = {
        label: runs[0].experiment.config.steps * runs[0].experiment.config.n_dis for label, runs in group.items()
    }
    equal = min(cost[label] * updates[label] for label in group)
    rows = []
    seeds = {r.experiment.seed for runs in group.values() for r in runs}
    for label, runs in group.items():
        ratios = _log_ratios(group, label) if label != PLAIN and PLAIN in group else np.zeros(0)
        rows.append(
            (
                label,
                str(len(runs)) if len(runs) == len(seeds) else f"{len(runs)} of {len(seeds)}",
                f"{cost[label] / cost[PLAIN]:.2f}" if PLAIN in cost else "",
                mean_and_spread([sweep.distance(r) for r in runs]),
                f"{math.exp(ratios.mean()):.2f}" if len(ratios) else "",
                f"{p[label]:.2g}" if label in p else "",
                mean_and_spread([_at_time(r, equal / cost[label]) for r in runs]),
            )
        )
    path = outdir / f"{dataset}-rivals-{network.partition(',')[0]}.png"
    shown = {label: [(*_distances(r), cost[label]) for r in runs] for label, runs in group.items()}
    draw_rivals(shown, path)
    columns = (
        "training",
        "runs",
        "time an update, times plain's",
        "final distance",
        "times plain",
        "p",
        "at equal time",
    )
    every = [r for runs in group.values() for r in runs]
    return [
        Heading(f"{network} on {dataset}"),
        Paragraph(options(every)),
        Picture(path, f"Distance to the real data by updates and by time: mean over {counted(len(seeds), 'seed')}"),
        Table(columns, rows),
    ]  # fmt: skip


def _seconds_an_update(runs: Sequence[Result]) -> float:
    taken = [
        (r.stats[-1].get("seconds") or math.nan) / (r.experiment.config.steps * r.experiment.config.n_dis) for r in runs
    ]
    return float(np.nanmedian(taken))


def _distances(r: Result) -> tuple[np.ndarray, np.ndarray]:
    """Discriminator updates, distances."""
    name = sweep.distance_name(r)
    return r.metric(name) if name else (np.zeros(0), np.zeros(0))


def _at_time(r: Result, updates: float) -> float:
    """The distance after so many updates, between two evaluations on a line in logarithms."""
    at, distances = _distances(r)
    known = distances > 0
    return float(np.exp(np.interp(updates, at[known], np.log(distances[known])))) if known.any() else math.nan


# Chosen


def _weights(group: Group) -> Table:
    """Every regulariser's weights, the chosen one marked."""
    tried = [
        o for of_network in sweep.options([r for runs in group.values() for r in runs]).values() for o in of_network
    ]
    rows = []
    for kind in dict.fromkeys(rivals.kind_of(o.variant) for o in tried):
        of_kind = [o for o in tried if rivals.kind_of(o.variant) == kind]
        choice = sweep.simplest(of_kind, lambda o: rivals.weight_of(o.variant))
        rows += [
            (o.variant, str(o.runs), f"{o.overall:.2f}", f"{o.standard_error:.2f}", "chosen" if o is choice else "")
            for o in of_kind
        ]
    return Table(("training", "runs", "times plain", "standard error of its logarithm", ""), rows)
