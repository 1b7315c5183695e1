"""The paper's figures on one data set: curves over training, samples, the attack's counts, final values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import ConfigError, DataError
from ..metrics.catalogue import METRICS
from ..training.config import Config
from . import claims, figure1, figure1_picture
from .experiments import ATTACK, FIGURES, OTHER_READINGS, Figure, attacked
from .report_page import Block, Heading, Paragraph, Picture, Table
from .report_pictures import draw_curves, draw_samples
from .results import Result, Series, score_name, settings
from .verdicts import counted


def blocks(runs: Sequence[Result], outdir: Path) -> list[Block]:
    """Of one data set's finished runs."""
    said: list[Block] = [Heading(f"The paper's figures on {runs[0].experiment.dataset}", 1)]
    for name, figure in FIGURES.items():
        of_figure = [r for r in runs if r.experiment.figure == name]
        if name == ATTACK:
            if of_attack := [r for r in runs if attacked(r.experiment) and r.attacks]:
                said += [Heading(_title(name, figure)), Paragraph(options(of_attack)), *_figure_1(of_attack, outdir)]
        elif of_figure:
            said += [Heading(_title(name, figure)), Paragraph(options(of_figure)), *_curves(name, of_figure, outdir)]
    return said


def _curves(name: str, found: Sequence[Result], outdir: Path) -> list[Block]:
    said: list[Block] = []
    dataset = found[0].experiment.dataset
    score = score_name(found)
    quantities: dict[str, Callable[[Result], Series]] = {
        "Wasserstein estimate": lambda r: r.statistic("wasserstein"),
        "input-gradient norm of D": lambda r: r.statistic("input_grad_norm"),
        "penalty that DAT adds": Result.penalty_added,
    }
    if score:
        quantities = {METRICS[score].title: lambda r: r.metric(score), **quantities}
    chosen = settings(found)
    # One picture a quantity where there are many settings, else one picture a setting.
    if len(chosen) > 2:
        pictures = [(title, [(setting, title) for setting in chosen]) for title in quantities]
    else:
        pictures = [(setting, [(setting, title) for title in quantities]) for setting in chosen]
    for number, (caption, panels) in enumerate(pictures, 1):
        path = outdir / f"{dataset}-figure-{name}-{number}.png"
        draw_curves(found, panels, quantities, path)
        band = ", band of one standard deviation" if len({r.experiment.seed for r in found}) > 1 else ""
        said.append(Picture(path, f"{caption}: mean over {seeds(found)}{band}"))
    if len(chosen) <= 2:
        said += _samples(found, outdir)
    return [*said, final_values(found, "setting", lambda r: r.experiment.setting)]


def _samples(found: Sequence[Result], outdir: Path) -> list[Block]:
    """Of each setting, where the runs' folders are here."""
    drawn = "points and the critics' contour lines" if found[0].experiment.config.points else "images"
    said: list[Block] = []
    for setting in settings(found):
        path = outdir / f"{found[0].experiment.dataset}-samples-{_slug(setting)}.png"
        if draw_samples([r for r in found if r.experiment.setting == setting], path):
            said.append(Picture(path, f"{setting}: {drawn} of the averaged generators, plain left, DAT right"))
    return said


def _figure_1(found: Sequence[Result], outdir: Path) -> list[Block]:
    """The first seed's images, where its folders are here, and every seed's steps."""
    said: list[Block] = []
    path = outdir / f"{found[0].experiment.dataset}-figure-{ATTACK}.png"
    shown = _first_seed(found)
    if isinstance(shown, str):
        said.append(Paragraph(f"Without a picture of attacked images: {shown.rstrip('.')}."))
    else:
        figure1_picture.draw(shown, path)
        caption = (
            "Images before and after the attack, the steps it took above them; below, how many steps all of them took"
        )
        said.append(Picture(path, f"{caption} (seed {found[0].experiment.seed})"))
    measures: dict[str, Callable[[Sequence[float]], str]] = {
        "median": mean_and_spread,
        "share_reached": lambda v: f"{np.mean(v):.0%}",
        "mean": mean_and_spread,
    }
    rows = []
    for protocol in map(str, figure1.PROTOCOLS):
        for variant in dict.fromkeys(r.experiment.variant for r in found):
            lines = [
                a for r in found if r.experiment.variant == variant for a in r.attacks if a["protocol"] == protocol
            ]
            for side, kind in SIDES.items() if lines else ():
                values = (of([_number(line[f"{side}_{name}"]) for line in lines]) for name, of in measures.items())
                paper = claims.PAPER_STEPS.get((variant, side), "")
                rows.append((protocol, variant, str(len(lines)), kind, *values, paper))
    columns = ("protocol", "training", "runs", "images", "median steps", "arrived", "mean", "paper's mean, MNIST")
    return [
        *said,
        Table(columns, rows),
        Paragraph(
            f"{counted(found[0].attacks[0]['images'], 'image')} of each kind and run. An image that has not arrived after "
            f"{figure1.CHOSEN.cap} steps counts with them in the mean, which misleads: a steep discriminator jumps across the "
            "target. What the paper leaves open of the attack is discussed in docs/reproduction/figure1.md."
        ),
    ]


SIDES = {"fake": "generated", "real": "real"}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _first_seed(found: Sequence[Result]) -> list[figure1.Measurement] | str:
    """Attacked again, for the images; or why they cannot be."""
    measured = []
    for r in found:
        if r.experiment.seed != found[0].experiment.seed:
            continue
        if r.path is None:
            return f"the folder of {r.experiment.name} is not here"
        try:
            subject = figure1.load_subject(r.path, label=r.experiment.variant, n=figure1.ATTACKED)
        except (ConfigError, DataError) as error:
            return str(error)
        measured.append(figure1.measure(subject, figure1.CHOSEN))
    return measured


def _title(name: str, figure: Figure) -> str:
    return f"Figure {name}: {figure.title}" if name.isdigit() else figure.title


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).replace("--", "-")


def seeds(found: Sequence[Result]) -> str:
    return counted(len({r.experiment.seed for r in found}), "seed")


_OF_DAT = ("formulation", "eps", "norm", "lambda_clean", "lambda_adv")  # which plain runs do not use


def options(found: Sequence[Result]) -> str:
    """What these runs have in common, where Equation 8 is read otherwise, and how their score was measured."""
    names = (
        "dataset", "image_size", "width", "batch_size", "steps", "n_dis", "objective", "optimizer", "lr", "beta1", "beta2",
        *_OF_DAT, "penalty_on", "ema", "precision",
    )  # fmt: skip
    as_read = [r.experiment.config for r in found if r.experiment.variant not in OTHER_READINGS]
    text = "; ".join(filter(None, (_option(name, as_read) for name in names))) + "."
    for variant, chosen in OTHER_READINGS.items():
        if any(r.experiment.variant == variant for r in found):
            text += f" {variant}: {'; '.join(f'{name} {value}' for name, value in chosen.items() if name != 'dat')}."
    score = score_name(found)
    protocols = {m["protocol"] for r in found[:1] for m in r.metrics if m["metric"] == score}
    return text + "".join(f" {score}: {protocol}." for protocol in sorted(protocols))


def _option(name: str, configs: Sequence[Config]) -> str:
    """With all of its values: "lr 0.0002, 0.001"."""
    values = {getattr(c, name) for c in configs if c.dat or name not in _OF_DAT}
    if name == "image_size":
        values.discard(0)  # points have none
    return f"{name} {', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in sorted(values))}" if values else ""


def final_values(found: Sequence[Result], row: str, row_of: Callable[[Result], str]) -> Table:
    """Final values of each row and variant: mean and standard deviation over its seeds."""
    names = dict.fromkeys(m["metric"] for r in found for m in r.metrics)
    measures: dict[str, Callable[[Result], Series]] = {
        **{name: partial(Result.metric, name=name) for name in names},
        "Wasserstein estimate": lambda r: r.statistic("wasserstein"),
        "gradient norm": lambda r: r.statistic("input_grad_norm"),
    }
    groups: dict[tuple[str, str], list[Result]] = {}
    for r in found:
        groups.setdefault((row_of(r), r.experiment.variant), []).append(r)
    rows = []
    for (label, variant), members in groups.items():
        values = ([claims.final(measure(r)) for r in members] for measure in measures.values())
        rows.append([label, variant, str(len(members)), *(mean_and_spread(v) for v in values)])
    return Table((row, "training", "runs", *measures), rows)


def mean_and_spread(values: Sequence[float]) -> str:
    x = np.asarray(values)
    x = x[np.isfinite(x)]
    if not len(x):
        return "not finite"
    return f"{x.mean():.3g}" + (f" ± {x.std(ddof=1):.2g}" if len(x) > 1 else "")
