"""The page of the sweep: how far each of DAT's options brings the images, and which of them is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from . import sweep
from .experiments import FIGURES, SWEEP
from .report_figures import final_values, options, seeds
from .report_page import Block, Heading, Paragraph, Picture, Table
from .report_pictures import draw_sweep
from .results import Result, datasets


def blocks(found: Sequence[Result], outdir: Path) -> list[Block]:
    if not found:
        return []
    said: list[Block] = [Heading(FIGURES[SWEEP].title, 1), Paragraph(sweep.EXPLANATION)]
    # Points have distances of their own, and other sizes of perturbation suit them.
    for kind, toy in (("images", False), ("points", True)):
        of_kind = [r for r in found if r.experiment.config.points == toy]
        if not (tried := sweep.options(of_kind)):
            continue
        chosen = {baseline: sweep.choose(of_baseline) for baseline, of_baseline in tried.items()}
        path = outdir / f"sweep-{kind}.png"
        draw_sweep(tried, chosen, datasets(of_kind), path)
        caption = (
            f"Distance with DAT, times that of plain training with the same seed: geometric mean over {seeds(of_kind)}; "
            "below 1 (blue) DAT is better; the chosen option in bold"
        )
        said += [Heading(f"Options for {kind}"), Picture(path, caption), _chosen_options(tried, chosen)]
    for name in datasets(found):
        of_dataset = [r for r in found if r.experiment.dataset == name]
        measured = "Final values: mean over the last quarter of training, ± standard deviation over seeds."
        said += [
            Heading(f"Final values on {name}"),
            Paragraph(f"{options(of_dataset)} {measured}"),
            final_values(of_dataset, "baseline", lambda r: r.experiment.setting),
        ]
    return said


def _chosen_options(options: Mapping[str, Sequence[sweep.Option]], chosen: Mapping[str, sweep.Option]) -> Table:
    rows = []
    for baseline, of_baseline in options.items():
        best, choice = sweep.best(of_baseline), chosen[baseline]
        lowest = (best.variant, f"{best.overall:.2f}", f"{best.standard_error:.2f}")
        rows.append((baseline, *lowest, choice.variant, f"{choice.overall:.2f}"))
    columns = ("lowest distance", "times plain", "standard error of its logarithm", "chosen", "times plain")
    return Table(("baseline", *columns), rows)
