"""The report of a reproduction: what it shows, its figures as PNGs, report.md and report.html."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from . import claims, experiments, files
from .claims import CANNOT_TELL, DOES_NOT, HOLDS, Verdict, counted
from .experiments import DAT, FIGURES, PLAIN, Figure
from .report_page import Block, Code, Heading, Paragraph, Picture, Table, markdown, page
from .results import Result, Series, score_name, settings

COLOURS = {PLAIN: "#4477aa", DAT: "#cc3311"}  # told apart by colour-blind eyes too


def write(found: Sequence[Result], attack_steps: Mapping[str, Mapping[str, float]], outdir: Path) -> list[Verdict]:
    """Judges the claims and writes the figures and both reports into outdir; returns the verdicts."""
    finished = [r for r in found if r.finished]
    verdicts = claims.judge(finished, attack_steps)
    blocks: list[Block] = [
        Heading("Direct adversarial training, reproduced", 1),
        Paragraph(_what_was_run(found, finished)),
        Heading("Claims"),
        Table(
            ("", "claim", "in the paper", "here", "verdict", "measured by"),
            [(v.name, v.claim, v.paper, v.ours, v.verdict, v.test) for v in verdicts],
            prose=True,
        ),
        Paragraph(
            f"{HOLDS}: Student's {claims.LEVEL:.0%} interval for the mean over pairs (the same setting and seed, plain and "
            f"with DAT) lies wholly on the claimed side; {DOES_NOT}: wholly on the other side; {CANNOT_TELL}: neither, or "
            f"fewer than {claims.FEWEST} pairs. Intervals are in brackets. Verdicts are of this report's runs: their data, "
            "networks and lengths are stated below and are not the paper's."
        ),
    ]
    for name, figure in FIGURES.items():
        if of_figure := [r for r in finished if r.experiment.figure == name]:
            blocks += _sweep(figure, of_figure) if name == "sweep" else _figure(name, figure, of_figure, outdir)
    blocks += _how_it_was_run(found)
    files.write_text(outdir / "report.md", markdown(blocks))
    files.write_text(outdir / "report.html", page(blocks))
    return verdicts


# What it says


def _what_was_run(found: Sequence[Result], finished: Sequence[Result]) -> str:
    configs = [r.experiment.config for r in found]
    datasets = ", ".join(sorted({c.dataset for c in configs}))
    updates = [int(c.steps or 0) * int(c.n_dis or 1) for c in configs]
    length = f"{min(updates)}" if min(updates) == max(updates) else f"{min(updates)} to {max(updates)}"
    text = (
        f"Li, Xia, Li (2020), Direct Adversarial Training for GANs: {counted(len(finished), 'run')} on {datasets}, "
        f"{_seeds(finished)}, {length} discriminator updates each."
    )
    if max(updates) < experiments.FULL.updates:
        text += f" These are shortened runs: at full length a run has {experiments.FULL.updates} updates."
    if len(finished) < len(found):
        missing = ", ".join(r.experiment.name for r in found if not r.finished)
        text += f" Not finished, and left out: {missing}."
    return text


def _figure(name: str, figure: Figure, found: Sequence[Result], outdir: Path) -> list[Block]:
    blocks: list[Block] = [Heading(_title(name, figure)), Paragraph(_options(found))]
    score = score_name(found)
    quantities: dict[str, Callable[[Result], Series]] = {
        "Wasserstein estimate": lambda r: r.statistic("wasserstein"),
        "input-gradient norm of D": lambda r: r.statistic("input_grad_norm"),
        "penalty that DAT adds": Result.penalty_added,
    }
    if score:
        quantities = {_SCORE_TITLES[score]: lambda r: r.metric(score), **quantities}
    chosen = settings(found)
    # One picture a quantity where there are many settings, else one picture a setting.
    if len(chosen) > 2:
        pictures = [(title, [(setting, title) for setting in chosen]) for title in quantities]
    else:
        pictures = [(setting, [(setting, title) for title in quantities]) for setting in chosen]
    for number, (caption, panels) in enumerate(pictures, 1):
        path = outdir / f"figure-{name}-{number}.png"
        draw(found, panels, quantities, path)
        blocks.append(Picture(path, f"{caption}: mean over {_seeds(found)}, band of one standard deviation"))
    if len(chosen) <= 2:
        for setting in chosen:
            samples = outdir / f"samples-{_slug(setting)}.png"
            if _draw_samples([r for r in found if r.experiment.setting == setting], samples):
                blocks.append(Picture(samples, f"{setting}: images of the averaged generators, plain left, DAT right"))
    return [*blocks, _final_values(found, "setting", lambda r: r.experiment.setting)]


_SCORE_TITLES = {
    "is": "Inception Score",
    "classifier_score": "classifier score (for the Inception Score)",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "exact_wasserstein": "exact Wasserstein distance",
}


def _title(name: str, figure: Figure) -> str:
    return f"Figure {name}: {figure.title}" if name.isdigit() else figure.title


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).replace("--", "-")


def _seeds(found: Sequence[Result]) -> str:
    return counted(len({r.experiment.seed for r in found}), "seed")


def _options(found: Sequence[Result]) -> str:
    """What these runs have in common, and how their score was measured."""
    names = (
        "dataset", "image_size", "width", "batch_size", "steps", "n_dis", "objective", "optimizer", "lr", "beta1", "beta2",
        "formulation", "eps", "norm", "lambda_clean", "lambda_adv", "ema", "precision",
    )  # fmt: skip
    parts = []
    for name in names:
        of = (
            found if name not in ("formulation", "eps", "lambda_adv") else [r for r in found if r.experiment.config.dat]
        )
        values = {getattr(r.experiment.config, name) for r in of}
        if values:
            parts.append(f"{name} {', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in sorted(values))}")
    text = "; ".join(parts) + "."
    score = score_name(found)
    protocols = {m["protocol"] for r in found[:1] for m in r.metrics if m["metric"] == score}
    return text + "".join(f" {score}: {protocol}." for protocol in sorted(protocols))


def _final_values(found: Sequence[Result], row: str, row_of: Callable[[Result], str]) -> Table:
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


def _sweep(figure: Figure, found: Sequence[Result]) -> list[Block]:
    return [
        Heading(figure.title),
        Paragraph(
            _options(found) + " Values: mean over the last quarter of training, ± standard deviation over seeds."
        ),
        _final_values(found, "baseline", lambda r: r.experiment.setting),
    ]


def _how_it_was_run(found: Sequence[Result]) -> list[Block]:
    environments = [json.loads((r.path / "env.json").read_text()) for r in found if r.path is not None]
    blocks: list[Block] = [
        Heading("How it was run"),
        Paragraph("Choices that the paper leaves open: see datgan_fast/experiments.py."),
    ]
    if environments:
        first = environments[0]
        commands = dict.fromkeys(" ".join(["python -m datgan_fast.reproduce", *e["command"][2:]]) for e in environments)
        seconds = sum(r.stats[-1].get("seconds") or 0.0 for r in found if r.stats)
        devices = ", ".join(sorted({r.experiment.config.device for r in found}))
        blocks += [
            Code("\n".join(commands)),
            Table(
                ("", ""),
                [
                    ("date", first["started"]),
                    ("device", devices + ("".join(f", {gpu}" for gpu in first["gpu"]))),
                    ("platform", f"{first['platform'].partition('-')[0]}, {counted(first['threads'], 'thread')} a run"),
                    ("versions", f"datgan-fast {first['datgan_fast']} ({first['commit'] or 'no commit'}), "
                     f"torch {first['torch']}, Python {first['python']}"),
                    ("training time", f"{seconds / 60:.1f} minutes in all runs together, without evaluations"),
                ],
            ),
        ]  # fmt: skip
    return blocks


# Pictures


def draw(
    found: Sequence[Result],
    panels: Sequence[tuple[str, str]],
    quantities: Mapping[str, Callable[[Result], Series]],
    path: Path,
) -> None:
    """A grid of panels (setting, quantity), two a row: mean lines and their spread, plain and DAT."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(panels) // 2)
    figure, axes = pyplot.subplots(rows, 2, figsize=(8, 2.6 * rows), dpi=90, squeeze=False, layout="constrained")
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
        axis.set_title(setting if several else title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(panels) :]:
        axis.remove()
    axes[0, 0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("discriminator updates", fontsize=8)
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")  # type: ignore[attr-defined]
    pyplot.close(figure)
    _save_small(picture, path)


def over_seeds(series: Sequence[Series]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(updates, mean, standard deviation) over the seeds' series, which stand at the same updates."""
    values = np.stack([s[1] for s in series])
    spread = values.std(0, ddof=1) if len(series) > 1 else np.zeros(values.shape[1])
    return series[0][0], values.mean(0), spread


def _draw_samples(found: Sequence[Result], path: Path) -> bool:
    """The last sample grids of the first seed, plain and DAT side by side; False if they are not there."""
    grids = []
    for variant in (PLAIN, DAT):
        runs = [r for r in found if r.experiment.variant == variant and r.path is not None]
        pictures = sorted((runs[0].path / "samples").glob("step-*.png")) if runs and runs[0].path else []
        if not pictures:
            return False
        with Image.open(pictures[-1]) as image:
            grids.append(image.convert("L" if image.mode == "L" else "RGB"))
    size = grids[0].width // 2  # twice the pixels' own size for small images, which stay sharp and compress well
    both = Image.new("RGB", (2 * size + 20, size), "white")
    for i, grid in enumerate(grids):
        both.paste(grid.resize((size, size), Image.Resampling.NEAREST), (i * (size + 20), 0))
    _save_small(both, path)
    return True


def _save_small(picture: Image.Image, path: Path) -> None:
    with files.atomic(path) as temporary:
        picture.quantize(64).save(temporary, optimize=True)
