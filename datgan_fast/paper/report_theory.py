"""The page of the theory: what the paper states beside what was measured, for every setting, and pictures of a few."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .experiments import PLAIN, USUAL
from .report_page import Block, Heading, Paragraph, Picture, Table
from .results import Result, datasets, pairs, settings
from .theory_pictures import draw_movement, draw_slopes, draw_terms
from .theory_records import Runs
from .theory_statements import DIFFER, ENOUGH, OTHERWISE, SO, Row, statements
from .verdicts import counted

DRAWN = (USUAL, "wgan, n_dis 5", "wgan-gp, n_dis 5")  # a discriminator of each kind


def blocks(found: Sequence[Result], outdir: Path) -> list[Block]:
    """Of finished runs of the paper's figures; none where nothing of the theory was recorded."""
    measured = [(p, d) for p, d in pairs(found) if p.theory and d.theory]
    if not measured:
        return []
    said: list[Block] = [
        Heading("The paper's theory, measured", 1),
        Paragraph(
            "To first order in eps, perturbing an image adds eps s |g' h'| ||grad D||^2 to its part of the loss: a "
            "zero-centred gradient penalty where s >= 0, that is where D is ahead, and its opposite where s < 0 (Equations 11 "
            f"to 15); Equation 16 bounds the generator's movement by D's slope. {SO.capitalize()}, or otherwise: in at least "
            f"{ENOUGH:.0%} of the seeds, each by the rule in the tables below; else the {DIFFER}. These are descriptions of the "
            "runs that were made and not tests."
        ),
    ]
    for dataset in datasets(p for p, _ in measured):
        of_dataset = [pair for pair in measured if pair[0].experiment.dataset == dataset]
        said += [Heading(f"On {dataset}"), _at_a_glance(of_dataset)]
        for setting in settings(p for p, _ in of_dataset):
            if setting in DRAWN:
                said += _setting([pair for pair in of_dataset if pair[0].experiment.setting == setting], outdir)
    return said


def _runs(paired: Sequence[tuple[Result, Result]]) -> Runs:
    return {PLAIN: [p.theory for p, _ in paired], paired[0][1].experiment.variant: [d.theory for _, d in paired]}


def _at_a_glance(paired: Sequence[tuple[Result, Result]]) -> Table:
    """A row for each statement; a column for each setting, or for all of a baseline that has more than two."""
    columns: dict[str, list[list[Row]]] = {}
    for baseline in dict.fromkeys(p.experiment.config.baseline for p, _ in paired):
        of_baseline = [pair for pair in paired if pair[0].experiment.config.baseline == baseline]
        of_settings = {
            setting: statements(_runs([pair for pair in of_baseline if pair[0].experiment.setting == setting]))
            for setting in settings(p for p, _ in of_baseline)
        }
        if len(of_settings) > 2:
            columns[f"{baseline}, {len(of_settings)} settings"] = list(of_settings.values())
        else:
            columns |= {setting: [rows] for setting, rows in of_settings.items()}
    (first, *_), *_ = columns.values()
    rows = [
        (row.statement, *(_in_short([rows[i].judged for rows in chosen]) for chosen in columns.values()))
        for i, row in enumerate(first)
    ]
    return Table(("statement", *columns), rows, prose=True)


def _in_short(judged: Sequence[str]) -> str:
    """Of a statement at some settings."""
    names = {SO: "so", OTHERWISE: "otherwise", DIFFER: DIFFER}
    counts = {name: judged.count(j) for j, name in names.items() if j in judged}
    if len(counts) < 2:
        return next(iter(counts), "-")
    return ", ".join(f"{name} in {count}" for name, count in counts.items())


def _setting(paired: Sequence[tuple[Result, Result]], outdir: Path) -> list[Block]:
    e, runs = paired[0][0].experiment, _runs(paired)
    seeds = counted(len(paired), "seed")
    band = ", band of one standard deviation" if len(paired) > 1 else ""
    said: list[Block] = [Heading(f"{e.dataset}: {e.setting} ({seeds})", 3)]
    stem = f"{e.dataset}-theory-{DRAWN.index(e.setting) + 1}"
    terms, slopes, movement = (outdir / f"{stem}-{what}.png" for what in ("terms", "slopes", "movement"))
    if draw_terms(runs, e.config.n_dis, terms):
        said.append(
            Picture(terms, f"What DAT adds to the loss, its first order and the penalty: mean over {seeds}{band}")
        )
    if draw_slopes(runs, e.config.n_dis, e.config.points, slopes):
        said.append(Picture(slopes, f"How steep the discriminator is: mean over {seeds}{band}"))
    if draw_movement(runs, e.config.n_dis, movement):
        said.append(Picture(movement, f"How far an update moves the generator: mean over {seeds}{band}"))
    rows = [(row.statement, row.measured_by, row.outcome, row.judged) for row in statements(runs)]
    return [*said, Table(("statement", "measured by", "what came out", "judged"), rows, prose=True)]
