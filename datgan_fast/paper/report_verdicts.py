"""A report's first page, to be read in minutes: what was run, a table of all verdicts, a picture for each of the paper's claims,
what was not measured, and how it was run. `details` is the page behind it: the same verdicts with all that stands behind them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from . import experiments
from .report_page import Block, Heading, Links, Paragraph, Picture, Table
from .report_pictures import draw_verdicts
from .results import Result, datasets
from .verdicts import CANNOT_TELL, DOES_NOT, ERRORS, HOLDS, NOT_MEASURED, Verdict, counted

Verdicts = dict[str, list[Verdict]]  # of each data set, the claims' in their order

TITLES = {
    "C1": "Is a discriminator that was trained with DAT harder to fool?",
    "C2": "DCGAN",
    "C3": "WGAN",
    "C4": "WGAN-GP",
    "C5": "WGAN-LP",
    "C6": "DAT as an adaptive gradient penalty",
    "C7": "Convergence",
    "Eq. 8, equal weight": "Critics with a penalty, where Equation 8 is read as 0.5 + 0.5",
    "Eq. 8, penalty on both": "Critics with a penalty, which is taken on perturbed images too",
}


def blocks(found: Sequence[Result], verdicts: Verdicts, behind: Sequence[str], outdir: Path) -> list[Block]:
    """behind    the names of the pages behind this one"""
    finished = [r for r in found if r.finished]
    said: list[Block] = [
        Heading("Direct adversarial training, reproduced", 1),
        Paragraph(_what_was_run(found, finished)),
        *([Links("Behind this page", behind)] if behind else []),
    ]
    rows = _rows(verdicts)
    for heading, verdicts_of in (("What could be told", (HOLDS, DOES_NOT)), ("What could not be told", (CANNOT_TELL,))):
        if chosen := [row for row in rows if row[1].verdict in verdicts_of]:
            said += [Heading(heading), _table(chosen)]
    if rows:
        said.append(Paragraph(_rule(verdicts)))
    for number, of_number in groupby(rows, lambda row: row[1].claim.name):
        path = outdir / f"claim-{''.join(filter(str.isalnum, number)).lower()}.png"
        draw_verdicts(list(of_number), path)
        caption = "every seed (mean over its settings), their mean and its interval; the shaded side is the claimed one"
        said += [Heading(f"{number}: {TITLES[number]}"), Picture(path, f"{number}: {caption}")]
    said += how_it_was_run(found)
    if missing := not_measured(verdicts):
        said.append(Paragraph(f"Not measured: {'; '.join(missing)}."))
    return said


def not_measured(verdicts: Verdicts) -> list[str]:
    """What has no verdict, each with its data sets: "C1 (ring)" where nothing of C1 has one, else the claim."""
    where: dict[str, list[str]] = {}
    for dataset, of_dataset in verdicts.items():
        for number, of_number in groupby(of_dataset, lambda v: v.claim.name):
            every = list(of_number)
            missing = [v for v in every if v.verdict == NOT_MEASURED]
            names = [number] if missing == every else [f"{number}, {v.claim.text}" for v in missing]
            for name in names:
                where.setdefault(name, []).append(dataset)
    return [f"{name} ({', '.join(found)})" for name, found in where.items()]


_Row = tuple[str, Verdict]  # data set, verdict


def _rows(verdicts: Verdicts) -> list[_Row]:
    """(data set, verdict) of what was measured, a claim's data sets below each other."""
    return [
        (dataset, v)
        for of_claim in zip(*verdicts.values(), strict=True)
        for dataset, v in zip(verdicts, of_claim, strict=True)
        if v.verdict != NOT_MEASURED
    ]


def _what_was_run(found: Sequence[Result], finished: Sequence[Result]) -> str:
    configs = [r.experiment.config for r in found]
    updates = [c.steps * c.n_dis for c in configs]
    length = f"{min(updates)}" if min(updates) == max(updates) else f"{min(updates)} to {max(updates)}"
    text = (
        f"Li, Xia, Li (2020), Direct Adversarial Training for GANs: {counted(len(finished), 'run')} on "
        f"{', '.join(datasets(found))}, {counted(len({r.experiment.seed for r in finished}), 'seed')}, {length} discriminator "
        "updates each."
    )
    if max(updates) < experiments.FULL.updates:
        text += f" These are shortened runs: at full length a run has {experiments.FULL.updates} updates."
    if missing := [r.experiment.name for r in found if not r.finished]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        text += f" Not finished, and left out: {', '.join(missing[:3])}{more}."
    return text


def _table(rows: Sequence[_Row]) -> Table:
    """No verdict without its seeds, effect, corrected p, and what could have been seen."""
    lines = []
    for (dataset, v), name in _named_once(rows):
        seen = v.detectable.partition(":")[0]
        lines.append((*name, dataset, str(v.claim.seeds), v.effect, f"{v.corrected_p:.2g}", seen, v.verdict))
    columns = ("", "claim", "data", "seeds", "here", "corrected p", "could be seen", "verdict")
    return Table(columns, lines, prose=True)


def _named_once(rows: Sequence[_Row]) -> list[tuple[_Row, tuple[str, str]]]:
    """The rows, each with its claim's number and text where these are not those of the row above."""
    above = [None, *(v.claim.text for _, v in rows)]
    return [
        (row, ("", "") if row[1].claim.text == last else (row[1].claim.name, row[1].claim.text))
        for row, last in zip(rows, above, strict=False)
    ]


def details(verdicts: Verdicts) -> list[Block]:
    """Of each claim what the paper has, how it was measured, and everything of its verdicts."""
    if not verdicts:
        return []
    said: list[Block] = [Heading("The verdicts in detail", 1), Paragraph(_rule(verdicts))]
    for number, of_number in groupby(_named_once(_rows(verdicts)), lambda row: row[0][1].claim.name):
        lines = []
        measured_by: dict[str, None] = {}
        for (dataset, v), (_, text) in of_number:
            measured_by[v.claim.measured_by] = None
            paper = v.claim.paper if text else ""
            lines.append(
                (text, paper, dataset, str(v.claim.seeds), v.ours, f"{v.corrected_p:.2g}", v.detectable, v.verdict)
            )
        columns = ("claim", "in the paper", "data", "seeds", "here", "corrected p", "could be seen", "verdict")
        said += [
            Heading(f"{number}: {TITLES[number]}"),
            Table(columns, lines, prose=True),
            Paragraph(f"Measured by: {'; '.join(measured_by)}."),
        ]
    return said


def _rule(verdicts: Verdicts) -> str:
    return (
        f"{HOLDS}: the mean over pairs (the same setting and seed, plain and with DAT) is on the claimed side, by a permutation "
        "test that swaps plain and DAT in all of a seed's pairs together, and by a bootstrap interval (BCa) that resamples seeds "
        f"and settings, both corrected for the {len(_rows(verdicts))} verdicts of this report (Holm) so that the chance of any "
        f"false one is at most {ERRORS:.0%}; {DOES_NOT}: it is on the other side by both; {CANNOT_TELL}: otherwise. A claim "
        "about every setting is decided by the one at which it is told least. Intervals, in brackets, are at the corrected "
        "level. Could be seen: the smallest effect that both would have told, with the same spread; none where these seeds "
        "could not have been enough for any. Verdicts are of this report's runs: their data, "
        "networks and lengths are stated behind this page and are not the paper's."
    )


# How it was run

_RECORDED = {
    "started": str,
    "platform": str,
    "datgan_fast": str,
    "torch": str,
    "python": str,
    "threads": int,
    "gpu": list,
}


def how_it_was_run(found: Sequence[Result]) -> list[Block]:
    known = [r.environment for r in found]
    environments = [e for e in known if all(isinstance(e.get(key), kind) for key, kind in _RECORDED.items())]
    said: list[Block] = [
        Heading("How it was run"),
        Paragraph("Choices that the paper leaves open: see datgan_fast/paper/experiments.py."),
    ]
    if not environments:
        return said
    days = sorted({e["started"].partition("T")[0] for e in environments})
    versions = dict.fromkeys(
        f"datgan-fast {e['datgan_fast']}{_commit(e)}, torch {e['torch']}, Python {e['python']}" for e in environments
    )
    platforms = dict.fromkeys(
        f"{e['platform']}, {counted(e['threads'], 'thread')} a run, kernels {e.get('kernels')}" for e in environments
    )
    gpus = dict.fromkeys(str(gpu) for e in environments for gpu in e["gpu"])
    seconds = sum(r.stats[-1].get("seconds") or 0.0 for r in found if r.stats)
    rows = [
        ("date", days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"),
        ("device", ", ".join([*sorted({r.experiment.config.device for r in found}), *gpus])),
        ("platform", "; ".join(platforms)),
        ("versions", "; ".join(versions)),
        ("training time", f"{seconds / 60:.1f} minutes in all runs together, without evaluations"),
    ]
    return [*said, Table(("", ""), rows)]


def _commit(environment: dict[str, object]) -> str:
    commit = environment.get("commit")
    return f" ({str(commit)[:9]})" if commit else ""
