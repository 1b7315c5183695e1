"""The pictures of the theory: what DAT adds to the loss, how steep the discriminator is, and how far the generator moves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .experiments import DAT
from .report_pictures import COLOURS, grid_of_panels, save_figure
from .theory_records import Records, Runs, together

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIGNS = {"ahead": "s >= 0: the discriminator is ahead", "behind": "s < 0: it is behind"}
_TERMS = {  # colour, line
    "exact": ("what DAT adds", "#222222", "-"),
    "first_order": ("first order in eps", "#ee7733", "--"),
    "penalty": ("zero-centred penalty", "#009988", ":"),
}
_SLOPES = {
    "gradient_norm": "mean input-gradient norm",
    "lipschitz_local": "steepest place near images",
    "lipschitz_bound": "upper bound of the constant",
}
_GENERATOR = {
    "generator_movement": "the generator's movement per update (length of the weights' change)",
    "generator_gradient": "the generator's gradient norm (loss per unit of weight)",
}


def draw_terms(runs: Runs, n_dis: int, path: Path) -> bool:
    """What DAT adds, its first order and the penalty, in runs with DAT, apart for both signs; False if there is none.

    n_dis: discriminator updates in a step.
    """
    found = runs.get(DAT, ())
    if not _anything(found, [f"{term}_{sign}" for term in _TERMS for sign in _SIGNS]):
        return False
    figure, axes = grid_of_panels(1, 2, (8, 3))
    for axis, (sign, title) in zip(axes[0], _SIGNS.items(), strict=True):
        if _there_are(found, sign):
            for term, (label, colour, line) in _TERMS.items():
                _line(axis, found, f"{term}_{sign}", n_dis, colour, label, line)
        else:
            axis.text(0.5, 0.5, "there was no such image", ha="center", fontsize=8, transform=axis.transAxes)
            axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=9)
        if _spreads(axis):
            axis.set_yscale("symlog", linthresh=_least(axis))
        _finish(axis, "added to the discriminator's loss")
    for axis in axes[0]:
        if axis.get_lines():
            axis.legend(fontsize=8)
            break
    save_figure(figure, path)
    return True


def draw_slopes(runs: Runs, n_dis: int, points: bool, path: Path) -> bool:
    """How steep the discriminator is, with and without DAT; False if nothing is known.

    points: whether it sees points in the plane rather than images.
    """
    unit = f"logits per unit of {'length' if points else 'pixel value'}"
    return _draw_variants(runs, n_dis, {name: f"{title}\n({unit})" for name, title in _SLOPES.items()}, path)


def draw_movement(runs: Runs, n_dis: int, path: Path) -> bool:
    """How far an update moves the generator, and its gradient, with and without DAT; False if nothing is known."""
    titles = {name: title.replace(" (", "\n(") for name, title in _GENERATOR.items()}
    return _draw_variants(runs, n_dis, titles, path)


def _draw_variants(runs: Runs, n_dis: int, titles: dict[str, str], path: Path) -> bool:
    """A panel for each quantity that is known, in logarithms."""
    every = [records for found in runs.values() for records in found]
    known = [name for name in titles if _anything(every, [name])]
    if not known:
        return False
    figure, axes = grid_of_panels(1, len(known), (max(4.5, 3 * len(known)), 3))
    for axis, name in zip(axes[0], known, strict=True):
        for variant, colour in COLOURS.items():
            _line(axis, runs.get(variant, ()), name, n_dis, colour, variant, logarithm=True)
        axis.set_yscale("log")
        _finish(axis, titles[name])
    axes[0, 0].legend(fontsize=8)
    save_figure(figure, path)
    return True


def _line(
    axis: Axes,
    found: Sequence[Records],
    name: str,
    n_dis: int,
    colour: str,
    label: str,
    line: str = "-",
    logarithm: bool = False,
) -> None:
    """The mean over seeds, and of several a band of one standard deviation to each side; of logarithms where asked for."""
    steps, rows = together(found, name)
    if logarithm:
        rows = np.log(np.where(rows > 0, rows, np.nan))
    known = np.isfinite(rows).all(0) if len(rows) else np.zeros(0, dtype=bool)
    if not known.any():
        return
    updates, rows = steps[known] * n_dis, rows[:, known]
    back = np.exp if logarithm else np.positive
    mean = rows.mean(0)
    axis.plot(updates, back(mean), line, color=colour, label=label, linewidth=1.4)
    if len(rows) > 1:
        spread = rows.std(0, ddof=1)
        axis.fill_between(updates, back(mean - spread), back(mean + spread), color=colour, alpha=0.2, linewidth=0)


def _there_are(found: Sequence[Records], sign: str) -> bool:
    """Whether any image had this sign: their squared gradients add up to more than nothing."""
    return any((r.get(f"square_{sign}") or 0) > 0 for records in found for r in records)


def _anything(found: Sequence[Records], names: Sequence[str]) -> bool:
    return any(r.get(name) is not None for records in found for r in records for name in names)


def _sizes(axis: Axes) -> np.ndarray:
    drawn = [np.abs(np.asarray(line.get_ydata(), dtype=float)) for line in axis.get_lines()]
    sizes = np.concatenate(drawn) if drawn else np.zeros(0)
    return sizes[sizes > 0]


def _spreads(axis: Axes) -> bool:
    """Whether a linear axis would hide the smaller values."""
    sizes = _sizes(axis)
    return sizes.size > 0 and bool(sizes.max() > 30 * np.median(sizes))


def _least(axis: Axes) -> float:
    """Up to which a symlog axis is linear."""
    return float(max(np.quantile(_sizes(axis), 0.1), 1e-4 * _sizes(axis).max()))


def _finish(axis: Axes, label: str) -> None:
    axis.set_xlabel("discriminator updates", fontsize=8)
    axis.set_ylabel(label, fontsize=8)
    axis.tick_params(which="both", labelsize=7)
    axis.grid(alpha=0.3)
