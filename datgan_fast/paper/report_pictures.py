"""The pictures of a reproduction's report: curves over training, samples side by side, and the sweep's heat maps."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .. import files
from .experiments import DAT, PLAIN
from .results import Result, Series
from .statistics import mean, measured
from .sweep import Option
from .verdicts import CANNOT_TELL, DOES_NOT, HOLDS, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {PLAIN: "#4477aa", DAT: "#cc3311"}  # told apart by colour-blind eyes too


def draw_curves(
    found: Sequence[Result],
    panels: Sequence[tuple[str, str]],
    quantities: Mapping[str, Callable[[Result], Series]],
    path: Path,
) -> None:
    """A grid of panels (setting, quantity), two a row: mean lines and their spread, plain and DAT."""
    rows = -(-len(panels) // 2)
    figure, axes = grid_of_panels(rows, 2, (8, 2.6 * rows))
    several = len({setting for setting, _ in panels}) > 1
    for axis, (setting, title) in zip(axes.flat, panels, strict=False):
        for variant, colour in COLOURS.items():
            runs = [r for r in found if (r.experiment.setting, r.experiment.variant) == (setting, variant)]
            series = [quantities[title](r) for r in runs]
            series = [s for s in series if np.isfinite(s[1]).any()]
            if not series or (variant == PLAIN and quantities[title] is Result.penalty_added):
                continue
            updates, mean, spread = over_seeds(series)
            axis.plot(updates, mean, color=colour, label=variant, linewidth=1.4)
            axis.fill_between(updates, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        if several:
            axis.set_title(setting, fontsize=9)
        axis.set_ylabel(_with_unit(title, found[0].experiment.config.points), fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    axes[0, 0].legend(fontsize=8)
    for axis in list(axes.flat)[max(0, len(panels) - 2) : len(panels)]:  # the last of each column
        axis.set_xlabel("discriminator updates", fontsize=8)
    save_figure(figure, path)


VERDICT_COLOURS = {HOLDS: "#2e7d32", DOES_NOT: "#b3261e", CANNOT_TELL: "#757575"}


def draw_verdicts(rows: Sequence[tuple[str, Verdict]], path: Path) -> None:
    """A line of its own axis for each (data set, verdict): every seed's mean over the settings that decide, all seeds' and its
    interval, and what the claim says it is to be above or below."""
    figure, axes = grid_of_panels(len(rows), 1, (9, 0.4 + 0.95 * len(rows)))
    for axis, (dataset, v) in zip(axes.flat, rows, strict=True):
        c, colour = v.claim, VERDICT_COLOURS[v.verdict]
        seeds = np.nanmean(measured(c.deciding), axis=0)
        show = np.exp if c.logarithm else np.asarray
        axis.set_xscale("log" if c.logarithm else "linear")
        axis.scatter(show(seeds), np.zeros(len(seeds)), s=30, color=colour, alpha=0.45, linewidth=0)
        axis.scatter(show([mean(c.deciding)]), [0], s=70, marker="D", color=colour, zorder=3)
        if np.isfinite(v.interval).all():
            axis.plot(show(np.array(v.interval)), [0, 0], color=colour, linewidth=2)
        bound = float(show(np.array(c.bound)))
        axis.axvline(bound, color="black", linewidth=1)
        _shade_the_claimed_side(axis, bound, c.above)
        if c.logarithm:
            plain_ticks(axis)
        axis.set_yticks([])
        axis.tick_params(labelsize=7)
        at = " (where least is told)" if c.every_setting else ""
        axis.set_title(f"{dataset}: {textwrap.shorten(c.text, 135)}{at}", fontsize=7, loc="left", pad=3)
        axis.set_title(v.verdict, fontsize=8, loc="right", color=colour, fontweight="bold", pad=3)
        axis.set_xlabel(re.sub(r"\{.*?\}", "...", c.effect), fontsize=7, labelpad=1)
    save_figure(figure, path)


def _shade_the_claimed_side(axis: Axes, bound: float, above: bool) -> None:
    low, high = axis.get_xlim()
    low, high = min(low, bound), max(high, bound)
    axis.axvspan(*((bound, high) if above else (low, bound)), color="#2e7d32", alpha=0.08, linewidth=0)
    axis.set_xlim(low, high)


def plain_ticks(axis: Axes) -> None:
    """A few round factors in place of powers of ten."""
    from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    low, high = axis.get_xlim()
    locator: Locator = MaxNLocator(6, steps=[1, 2, 5, 10])
    if high > 4 * low:
        locator = LogLocator(subs=(1.0, 2.0, 5.0) if high < 1e4 * low else (1.0,), numticks=12)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))


def _with_unit(title: str, points: bool) -> str:
    units = {
        "Wasserstein estimate": "logits",
        "input-gradient norm of D": f"logits per unit of {'length' if points else 'pixel value'}",
        "penalty that DAT adds": "loss",
    }
    return "\n".join([*textwrap.wrap(title, 30), *([f"({units[title]})"] if title in units else [])])


def over_seeds(series: Sequence[Series]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(updates, mean, standard deviation) over the seeds' series, at the updates that all of them have."""
    updates = sorted(set.intersection(*(set(s[0].tolist()) for s in series)))
    values = np.stack([s[1][np.isin(s[0], updates)] for s in series])
    spread = values.std(0, ddof=1) if len(series) > 1 else np.zeros(values.shape[1])
    return np.array(updates), values.mean(0), spread


def draw_samples(found: Sequence[Result], path: Path) -> bool:
    """The last sample grids of the first seed, plain and DAT side by side; False if they are not there."""
    grids = []
    for variant in (PLAIN, DAT):
        runs = [r for r in found if r.experiment.variant == variant and r.path is not None]
        pictures = sorted((runs[0].path / "samples").glob("step-*.png")) if runs and runs[0].path else []
        if not pictures:
            return False
        with Image.open(pictures[-1]) as image:
            grids.append(image.convert("RGB"))
    size = grids[0].width // 2  # twice the pixels' own size for small images, which stay sharp and compress well
    both = Image.new("RGB", (2 * size + 20, size), "white")
    for i, grid in enumerate(grids):
        both.paste(grid.resize((size, size), Image.Resampling.NEAREST), (i * (size + 20), 0))
    _save_small(both, path, colours=64)
    return True


def draw_sweep(
    found: Mapping[str, Sequence[Option]], chosen: Mapping[str, Option], datasets: Sequence[str], path: Path
) -> None:
    """A heat map a baseline: its options' distances relative to plain training, on each data set it ran on and over all."""
    figure, axes = grid_of_panels(-(-len(found) // 2), 2, (10, 3.6 * -(-len(found) // 2)))
    for axis, (baseline, options) in zip(axes.flat, found.items(), strict=False):
        ran_on = [name for name in datasets if any(name in o.log_ratios for o in options)]
        columns = [*ran_on, "all"] if len(ran_on) > 1 else ran_on
        ratios = np.array([[*(o.ratio(name) for name in ran_on), o.overall][: len(columns)] for o in options])
        axis.imshow(np.log(ratios), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        _write_ratios(axis, ratios)
        axis.set_title(baseline, fontsize=9)
        axis.set_xlabel("distance, times plain training's", fontsize=8)
        axis.set_ylabel("DAT's options", fontsize=8)
        axis.set_xticks(range(len(columns)), [name.replace("-", "-\n") for name in columns], fontsize=8)
        axis.set_yticks(range(len(options)), [o.variant for o in options], fontsize=7)
        for label, option in zip(axis.get_yticklabels(), options, strict=True):
            if option is chosen.get(baseline):
                label.set_fontweight("bold")
    for axis in list(axes.flat)[len(found) :]:
        axis.remove()
    save_figure(figure, path, colours=128)  # shades have a meaning


def _write_ratios(axis: Axes, ratios: np.ndarray) -> None:
    """Each in its cell."""
    for row, column in zip(*np.nonzero(np.isfinite(ratios)), strict=True):
        ratio = ratios[row, column]
        text = f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0e}"
        colour = "white" if abs(np.log(ratio)) > 0.7 else "black"
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)


RIVALS = {
    "plain": "#222222", "DAT": "#cc3311", "R1": "#4477aa", "approximate R1": "#66ccee", "gradient penalty": "#228833",
    "spectral norm": "#aa3377",
}  # fmt: skip


def draw_rivals(found: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray, float]]], path: Path) -> None:
    """Of each training its runs' (updates, distances, seconds an update): geometric means by updates and by time."""
    figure, axes = grid_of_panels(1, 2, (9, 3.4))
    for label, runs in found.items():
        finite = [(at, np.log(d)) for at, d, _ in runs if len(at) and (d > 0).all()]
        if not finite:
            continue
        updates, mean, _ = over_seeds(finite)
        for axis, x in zip(axes.flat, (updates, updates * runs[0][2]), strict=True):
            axis.plot(x, np.exp(mean), color=RIVALS[label.partition(",")[0]], label=label, linewidth=1.4)
    for axis, spent in zip(axes.flat, ("discriminator updates", "training time (seconds)"), strict=True):
        axis.set_xlabel(spent, fontsize=8)
        axis.set_ylabel("distance to the real data", fontsize=8)
        axis.set_yscale("log")
        axis.tick_params(which="both", labelsize=7)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=7)
    save_figure(figure, path)


def grid_of_panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=90, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: Path, colours: int = 32) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    _save_small(picture, path, colours)


def _save_small(picture: Image.Image, path: Path, colours: int) -> None:
    """With few colours, and few greys: differences that no eye sees would take most of the bytes."""
    pixels = np.asarray(picture)
    if (pixels == pixels[..., :1]).all():
        picture = picture.convert("L").point(lambda grey: round(grey / 17) * 17)
    with files.atomic(path) as temporary:
        picture.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(temporary, optimize=True)
