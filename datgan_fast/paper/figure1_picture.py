"""Figure 1 drawn and tabled: images before and after the attack with their steps, histograms, protocols side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..training.pictures import save
from .figure1 import Attacked, Measurement

SHOWN = 8  # images of a kind and run
COLOURS = {"generated": "#d95f02", "real": "#1b6ca8"}


def draw(measurements: Sequence[Measurement], path: Path) -> None:
    """A PNG with a column for each run: clean and attacked images above, how many steps they took below."""
    runs = len(measurements)
    figure = Figure(figsize=(max(6.4, 4.6 * runs), 5.6), layout="constrained")
    axes = figure.subplots(2, runs, height_ratios=(2.2, 1), squeeze=False)
    for column, m in enumerate(measurements):
        if column:
            axes[1, column].sharey(axes[1, 0])
        _images(axes[0, column], m, first=column == 0)
        _histogram(axes[1, column], m, first=column == 0)
    figure.suptitle(str(measurements[0].protocol), fontsize=9)
    save(figure, path, dpi=110)


def _images(axis: Axes, m: Measurement, first: bool) -> None:
    rows = {
        "generated": m.fake.clean,
        "attacked": m.fake.attacked,
        "real": m.real.clean,
        "attacked ": m.real.attacked,
    }
    count, size = min(SHOWN, len(m.fake.clean)), m.fake.clean.shape[-1]
    gap = size // 3  # room for the steps above the attacked images
    pitch = size + gap
    canvas = np.ones((gap + len(rows) * pitch, count * (size + 2), 3))
    for row, images in enumerate(rows.values()):
        for i in range(count):
            top, left = gap + row * pitch, i * (size + 2)
            canvas[top : top + size, left : left + size] = _pixels(images[i])
    axis.imshow(canvas, interpolation="nearest")
    for row, side in ((1, m.fake), (3, m.real)):
        for i in range(count):
            text = str(int(side.steps[i])) if side.reached[i] else f">{int(side.steps[i])}"
            axis.text(i * (size + 2) + size / 2, gap + row * pitch - 2, text, ha="center", va="bottom", fontsize=7)
    axis.set_title(m.subject.label, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([gap + row * pitch + size / 2 for row in range(len(rows))], list(rows) if first else [])
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _pixels(image: Tensor) -> np.ndarray:
    """[H, W, 3] in [0, 1]."""
    return np.broadcast_to(((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy(), (*image.shape[1:], 3))


def _histogram(axis: Axes, m: Measurement, first: bool) -> None:
    """Shares of the images in bins that double: 0, 1, 2, 3-4, 5-8, ..., and those that never arrived."""
    cap = m.protocol.cap
    edges = [0, 1]
    while edges[-1] < cap:
        edges.append(min(2 * edges[-1], cap))
    names = ["0", *(f"{a + 1}-{b}" if b > a + 1 else str(b) for a, b in zip(edges, edges[1:], strict=False)), "never"]
    for shift, (kind, side) in zip((-0.2, 0.2), (("generated", m.fake), ("real", m.real)), strict=True):
        bins = np.searchsorted(edges, np.where(side.reached, side.steps, cap + 1))
        shares = np.bincount(bins, minlength=len(names)) / len(bins)
        axis.bar(
            np.arange(len(names)) + shift, shares, 0.4, color=COLOURS[kind], label=f"{kind}: {_mean_and_median(side)}"
        )
    axis.set_xticks(range(len(names)), names, fontsize=7, rotation=45)
    axis.set_xlabel(f"attack steps until fooled (never: not in {cap})", fontsize=8)
    if first:
        axis.set_ylabel("share of images", fontsize=8)
    axis.tick_params(axis="y", labelsize=7)
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 0.98), labelspacing=0.2, frameon=False)


def _mean_and_median(side: Attacked) -> str:
    record = side.record()
    more = "" if record["share_reached"] == 1 else "at least "
    return f"mean {more}{record['mean']:.1f}, median {record['median']:g}"


def table(measurements: Sequence[Measurement]) -> str:
    """Markdown: a row for each protocol, for each run the mean steps and the share that arrived."""
    runs = list(dict.fromkeys(m.subject.label for m in measurements))
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for m in measurements:
        p = m.protocol
        key = (p.rule, f"{p.step_size:g}", p.target, p.batch_norm)
        rows.setdefault(key, {})[m.subject.label] = f"{_mean_and_share(m.fake)} / {_mean_and_share(m.real)}"
    p = measurements[0].protocol
    return "\n".join(
        [
            f"Mean steps until the score is within {p.tolerance:g} of the target, generated / real images; in brackets the "
            f"share that got there in {p.cap} steps, where it is not all (the others count with {p.cap}).",
            "",
            _row(["step", "size", "target", "BatchNorm", *runs]),
            _row(["---"] * (4 + len(runs))),
            *(_row([*key, *(cells[run] for run in runs)]) for key, cells in rows.items()),
            "",
        ]
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mean_and_share(side: Attacked) -> str:
    share = side.reached.double().mean().item()
    return f"{side.steps.double().mean().item():.1f}" + ("" if share == 1 else f" ({share:.2f})")
