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

_CHOICE = "Chosen is the smallest of the weights whose mean is within one standard error of the lowest."

Group = dict[str, list[Result]]  # label -> its runs, in the order of the seeds


def blocks(found: Sequence[Result], outdir: Path) -> list[Block]:
    if not found:
        return []
    said: list[Block] = [
        Heading("DAT beside its rivals, at equal cost", 1),
        Paragraph(
            "Each regulariser with the weight that figure rivals-sweep chose on digits (seeds 0 to 2), on other seeds. Distances "
            "to the real data are those of the sweep, smaller is better. Equal time is the time after which the quickest of the "
            "trainings has made all of its updates; a training's time is its updates times the median over its runs of seconds "
            "an update, as they were recorded, without evaluations. Times plain: the geometric mean over seeds. p: a sign-flip "
            "test over seeds against plain training, corrected for all comparisons of the page (Holm). Runs that diverged are "
            "left out, which favours their training."
        ),
    ]
    compared = [(d, n, g) for d, n, g in _groups(found, choosing=False) if len(g) > 1]
    p = iter(_corrected([ratios for _, _, group in compared for ratios in (_final(group), _at_equal_time(group))]))
    for dataset, network, group in compared:
        said += _compared(dataset, network, group, (next(p), next(p)), outdir)
    for dataset, network, group in _groups(found, choosing=True):
        if set(group) == set(SETTINGS[network].variants):
            said += [Heading(f"Weights: {network} on {dataset}"), Paragraph(_CHOICE), _weights(group)]
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


Distances = dict[str, dict[int, float]]  # label -> seed -> distance


def _final(group: Group) -> Distances:
    return {label: {r.experiment.seed: sweep.distance(r) for r in runs} for label, runs in group.items()}


def _at_equal_time(group: Group) -> Distances:
    cost = {label: _seconds_an_update(runs) for label, runs in group.items()}
    updates = {
        label: runs[0].experiment.config.steps * runs[0].experiment.config.n_dis for label, runs in group.items()
    }
    equal = min(cost[label] * updates[label] for label in group)
    return {label: {r.experiment.seed: _after(r, equal / cost[label]) for r in runs} for label, runs in group.items()}


def _log_ratios(distances: Distances, label: str) -> np.ndarray:
    """Regulariser over plain, of each seed that both have."""
    plain = distances.get(PLAIN, {})
    pairs = [(d, plain[seed]) for seed, d in distances[label].items() if seed in plain]
    return np.array([math.log(a / b) for a, b in pairs if a > 0 and b > 0 and math.isfinite(a / b)])


def _corrected(compared: Sequence[Distances]) -> list[dict[str, float]]:
    """Of each its labels' p, against plain training, corrected over all of them together."""
    keys = [(i, label) for i, d in enumerate(compared) for label in d if label != PLAIN and PLAIN in d]
    found = [statistics.permutation_p(_log_ratios(compared[i], label)[None]) for i, label in keys]
    p: list[dict[str, float]] = [{} for _ in compared]
    for (i, label), value in zip(keys, statistics.holm(np.array(found)), strict=True):
        p[i][label] = float(value)
    return p


def _compared(dataset: str, network: str, group: Group, p: Sequence[dict[str, float]], outdir: Path) -> list[Block]:
    cost = {label: _seconds_an_update(runs) for label, runs in group.items()}
    seeds = {r.experiment.seed for runs in group.values() for r in runs}
    measured = [(_final(group), p[0]), (_at_equal_time(group), p[1])]
    rows = [
        (
            label,
            str(len(runs)) if len(runs) == len(seeds) else f"{len(runs)} of {len(seeds)}",
            f"{cost[label] / cost[PLAIN]:.2f}" if PLAIN in cost else "",
            *(cell for distances, of_label in measured for cell in _beside_plain(distances, of_label, label)),
        )
        for label, runs in group.items()
    ]
    path = outdir / f"{dataset}-rivals-{network.partition(',')[0]}.png"
    shown = {label: [(*_distances(r), cost[label]) for r in runs] for label, runs in group.items()}
    draw_rivals(shown, path)
    columns = (
        "training", "runs", "time an update, times plain's", "final distance", "times plain", "p", "distance at equal time",
        "times plain", "p",
    )  # fmt: skip
    every = [r for runs in group.values() for r in runs]
    return [
        Heading(f"{network} on {dataset}"),
        Paragraph(options(every)),
        Picture(path, f"Distance to the real data by updates and by time: mean over {counted(len(seeds), 'seed')}"),
        Table(columns, rows),
    ]


def _beside_plain(distances: Distances, p: dict[str, float], label: str) -> tuple[str, str, str]:
    """The label's distance, times plain training's, and p."""
    ratios = _log_ratios(distances, label) if label in p else np.zeros(0)
    times = f"{math.exp(ratios.mean()):.2f}" if len(ratios) else ""
    return mean_and_spread(list(distances[label].values())), times, f"{p[label]:.2g}" if label in p else ""


def _seconds_an_update(runs: Sequence[Result]) -> float:
    taken = [
        (r.stats[-1].get("seconds") or math.nan) / (r.experiment.config.steps * r.experiment.config.n_dis) for r in runs
    ]
    return float(np.nanmedian(taken))


def _distances(r: Result) -> tuple[np.ndarray, np.ndarray]:
    """Discriminator updates, distances."""
    name = sweep.distance_name(r)
    return r.metric(name) if name else (np.zeros(0), np.zeros(0))


def _after(r: Result, updates: float) -> float:
    """The distance after so many updates, between two evaluations on a line in logarithms."""
    at, distances = _distances(r)
    known = distances > 0
    return float(np.exp(np.interp(updates, at[known], np.log(distances[known])))) if known.any() else math.nan


# Chosen


def smallest(option: sweep.Option) -> float:
    """By which the first of the weights that are as good is chosen."""
    return rivals.weight_of(option.variant)


def _weights(group: Group) -> Table:
    """Every regulariser's weights, the chosen one marked, also where it is the first or the last that was tried."""
    tried = [
        o for of_network in sweep.options([r for runs in group.values() for r in runs]).values() for o in of_network
    ]
    rows = []
    for kind in dict.fromkeys(rivals.kind_of(o.variant) for o in tried):
        of_kind = sorted(
            (o for o in tried if rivals.kind_of(o.variant) == kind), key=lambda o: rivals.weight_of(o.variant)
        )
        choice = sweep.simplest(of_kind, smallest)
        edge = {of_kind[0].variant: ", the smallest tried", of_kind[-1].variant: ", the largest tried"}
        marked = "chosen" + (edge.get(choice.variant, "") if len(of_kind) > 1 else "")
        rows += [
            (o.variant, str(o.runs), f"{o.overall:.2f}", f"{o.standard_error:.2f}", marked if o is choice else "")
            for o in of_kind
        ]
    return Table(("training", "runs", "times plain", "standard error of its logarithm", ""), rows)
