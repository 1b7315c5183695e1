"""The report of a reproduction: a page of verdicts, and behind it pages of what was measured; each as Markdown and as HTML.

report, details    the claims and their verdicts: report_verdicts.py
DATASET            the paper's figures on one data set: report_figures.py
theory             what the paper states beside what was measured: report_theory.py
sweep              DAT's options for each baseline: report_sweep.py
rivals             DAT beside other regularisers: report_rivals.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import files
from . import claims, report_figures, report_rivals, report_sweep, report_theory, report_verdicts
from .experiments import RIVALS, SWEEP
from .report_page import Block, markdown, page
from .report_verdicts import Verdicts
from .results import Result, datasets
from .verdicts import Claim, judge


def write(found: Sequence[Result], outdir: Path) -> Verdicts:
    """Judges the claims and writes all pages and their pictures into outdir; returns the verdicts."""
    verdicts = judge(measure(found))
    behind = {"details": report_verdicts.details(verdicts), **_behind([r for r in found if r.finished], outdir)}
    behind = {name: blocks for name, blocks in behind.items() if blocks}
    for name, blocks in behind.items():
        _write(name, blocks, outdir)
    _write("report", report_verdicts.blocks(found, verdicts, list(behind), outdir), outdir)
    return verdicts


def _behind(finished: Sequence[Result], outdir: Path) -> dict[str, list[Block]]:
    """The pages of what was measured."""
    of_paper = [r for r in finished if _is_of_paper(r)]
    pages = {
        name: report_figures.blocks([r for r in of_paper if r.experiment.dataset == name], outdir)
        for name in datasets(of_paper)
    }
    pages["theory"] = report_theory.blocks(of_paper, outdir)
    for figure, blocks in ((SWEEP, report_sweep.blocks), (RIVALS, report_rivals.blocks)):
        pages[figure] = blocks([r for r in finished if r.experiment.figure == figure], outdir)
    return pages


def measure(found: Sequence[Result]) -> dict[str, list[Claim]]:
    """Each data set's claims, from the finished runs of the paper's figures."""
    of_paper = [r for r in found if r.finished and _is_of_paper(r)]
    return {name: claims.measure([r for r in of_paper if r.experiment.dataset == name]) for name in datasets(of_paper)}


def _is_of_paper(r: Result) -> bool:
    return r.experiment.figure not in (SWEEP, RIVALS)


def _write(name: str, blocks: Sequence[Block], outdir: Path) -> None:
    files.write_text(outdir / f"{name}.md", markdown(blocks))
    files.write_text(outdir / f"{name}.html", page(blocks))
