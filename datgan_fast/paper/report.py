"""The report of a reproduction: what it shows of which runs. Writes its figures as PNGs, report.md and report.html."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from .. import files
from ..metrics.catalogue import METRICS
from ..training.run_folder import RunFolder
from . import claims, experiments, figure1_picture, sweep
from .experiments import ATTACK, FIGURES, SWEEP, Figure
from .figure1 import Measurement
from .report_page import Block, Code, Heading, Paragraph, Picture, Table, markdown, page
from .report_pictures import draw_curves, draw_samples, draw_sweep
from .results import Result, Series, datasets, score_name, settings
from .verdicts import CANNOT_TELL, DOES_NOT, ERRORS, HOLDS, NOT_MEASURED, Claim, Verdict, counted, judge

Verdicts = dict[str, list[Verdict]]  # of each data set, the claims' in their order


def write(found: Sequence[Result], attacks: Mapping[str, Measurement], outdir: Path) -> Verdicts:
    """Judges the claims and writes the figures and both reports into outdir; returns the verdicts.

    attacks    name of a run of figure 1 -> its discriminator under attack
    """
    finished = [r for r in found if r.finished]
    of_paper = [r for r in finished if r.experiment.figure != SWEEP]
    of_sweep = [r for r in finished if r.experiment.figure == SWEEP]
    by_dataset = {name: [r for r in of_paper if r.experiment.dataset == name] for name in datasets(of_paper)}
    verdicts = judge(measure(found, attacks))
    blocks: list[Block] = [
        Heading("Direct adversarial training, reproduced", 1),
        Paragraph(_what_was_run(found, finished)),
    ]
    if verdicts:
        blocks += _claims(verdicts)
    for dataset, runs in by_dataset.items():
        blocks += [Heading(f"On {dataset}"), *_figures(runs, attacks, outdir)]
    if of_sweep:
        blocks += _sweep(of_sweep, outdir)
    blocks += _how_it_was_run(found)
    if missing := not_measured(verdicts):
        blocks.append(Paragraph(f"Not measured: {'; '.join(missing)}."))
    files.write_text(outdir / "report.md", markdown(blocks))
    files.write_text(outdir / "report.html", page(blocks))
    return verdicts


def measure(found: Sequence[Result], attacks: Mapping[str, Measurement]) -> dict[str, list[Claim]]:
    """Each data set's claims, from the finished runs of the paper's figures; `attacks` as for write."""
    of_paper = [r for r in found if r.finished and r.experiment.figure != SWEEP]
    return {
        name: claims.measure([r for r in of_paper if r.experiment.dataset == name], _mean_steps(attacks))
        for name in datasets(of_paper)
    }


def not_measured(verdicts: Verdicts) -> list[str]:
    """The claims that have no verdict, each with its data sets."""
    where: dict[tuple[str, str], list[str]] = {}
    for dataset, of_dataset in verdicts.items():
        for v in of_dataset:
            if v.verdict == NOT_MEASURED:
                where.setdefault((v.claim.name, v.claim.text), []).append(dataset)
    return [f"{name}, {text} ({', '.join(found)})" for (name, text), found in where.items()]


def _figures(runs: Sequence[Result], attacks: Mapping[str, Measurement], outdir: Path) -> list[Block]:
    """Of one data set."""
    blocks: list[Block] = []
    for name, figure in FIGURES.items():
        if of_figure := [r for r in runs if r.experiment.figure == name]:
            blocks += [Heading(_title(name, figure), 3), Paragraph(_options(of_figure))]
            blocks += _attacked(of_figure, attacks, outdir) if name == ATTACK else _curves(name, of_figure, outdir)
    return blocks


# What it says


def _what_was_run(found: Sequence[Result], finished: Sequence[Result]) -> str:
    configs = [r.experiment.config for r in found]
    updates = [c.steps * c.n_dis for c in configs]
    length = f"{min(updates)}" if min(updates) == max(updates) else f"{min(updates)} to {max(updates)}"
    text = (
        f"Li, Xia, Li (2020), Direct Adversarial Training for GANs: {counted(len(finished), 'run')} on "
        f"{', '.join(datasets(found))}, {_seeds(finished)}, {length} discriminator updates each."
    )
    if max(updates) < experiments.FULL.updates:
        text += f" These are shortened runs: at full length a run has {experiments.FULL.updates} updates."
    if len(finished) < len(found):
        missing = ", ".join(r.experiment.name for r in found if not r.finished)
        text += f" Not finished, and left out: {missing}."
    return text


def _claims(verdicts: Verdicts) -> list[Block]:
    """One table, a claim's verdicts on the data sets below each other."""
    columns = (
        "",
        "claim",
        "in the paper",
        "data",
        "seeds",
        "here",
        "corrected p",
        "could be seen",
        "verdict",
        "measured by",
    )
    rows = []
    for of_claim in zip(*verdicts.values(), strict=True):
        said: tuple[str, ...] = ()
        for dataset, v in zip(verdicts, of_claim, strict=True):
            if v.verdict == NOT_MEASURED:
                continue
            c = v.claim
            head = (c.name, c.text, c.paper, c.measured_by)
            *once, test = ("" if part in said else part for part in head)
            figures = (str(c.seeds), v.ours, f"{v.corrected_p:.2g}", v.detectable, v.verdict)
            rows.append((*once, dataset, *figures, test))
            said = head
    return [
        Heading("Claims"),
        Table(columns, rows, prose=True),
        Paragraph(
            f"{HOLDS}: the mean over pairs (the same setting and seed, plain and with DAT) is on the claimed side, by a "
            "permutation test that swaps plain and DAT in all of a seed's pairs together, and by a bootstrap interval (BCa) "
            f"that resamples seeds and settings, both corrected for the {len(rows)} verdicts of this table (Holm) so that "
            f"the chance of any false one is at most {ERRORS:.0%}; {DOES_NOT}: it is on the other side by both; {CANNOT_TELL}: "
            "otherwise. Intervals, in brackets, are at the corrected level. Could be seen: the "
            "smallest effect that both would have told, with the same spread; none where these seeds could not have been "
            "enough for any. Verdicts are of this report's runs: their data, "
            "networks and lengths are stated below and are not the paper's."
        ),
    ]


def _curves(name: str, found: Sequence[Result], outdir: Path) -> list[Block]:
    blocks: list[Block] = []
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
        blocks.append(Picture(path, f"{caption}: mean over {_seeds(found)}, band of one standard deviation"))
    drawn = "points and the critics' contour lines" if found[0].experiment.config.points else "images"
    if len(chosen) <= 2:
        for setting in chosen:
            samples = outdir / f"{dataset}-samples-{_slug(setting)}.png"
            if draw_samples([r for r in found if r.experiment.setting == setting], samples):
                blocks.append(Picture(samples, f"{setting}: {drawn} of the averaged generators, plain left, DAT right"))
    return [*blocks, _final_values(found, "setting", lambda r: r.experiment.setting)]


def _attacked(found: Sequence[Result], attacks: Mapping[str, Measurement], outdir: Path) -> list[Block]:
    """The first seed's images and every seed's steps."""
    shown = [attacks[r.experiment.name] for r in found if r.experiment.seed == found[0].experiment.seed]
    path = outdir / f"{found[0].experiment.dataset}-figure-{ATTACK}.png"
    figure1_picture.draw(shown, path)
    measures = {"mean": mean_and_spread, "median": mean_and_spread, "share_reached": lambda v: f"{np.mean(v):.0%}"}
    rows = []
    for variant in dict.fromkeys(r.experiment.variant for r in found):
        records = [attacks[r.experiment.name].record() for r in found if r.experiment.variant == variant]
        for side, kind in SIDES.items():
            values = (of([record[side][name] for record in records]) for name, of in measures.items())
            rows.append((variant, str(len(records)), kind, *values, claims.PAPER_STEPS[variant, side]))
    caption = "Images before and after the attack, the steps it took above them; below, how many steps all of them took"
    return [
        Picture(path, f"{caption} (seed {found[0].experiment.seed})"),
        Table(("training", "runs", "images", "mean steps", "median", "arrived", "paper's mean, MNIST"), rows),
        Paragraph(
            f"An image that has not arrived after {shown[0].protocol.cap} steps counts with them: a steep discriminator jumps "
            "across the target. What the paper leaves open of the attack is discussed in docs/reproduction/figure1.md."
        ),
    ]


SIDES = {"fake": "generated", "real": "real"}


def _mean_steps(attacks: Mapping[str, Measurement]) -> dict[str, dict[str, float]]:
    return {name: {side: m.record()[side]["mean"] for side in SIDES} for name, m in attacks.items()}


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


def _sweep(found: Sequence[Result], outdir: Path) -> list[Block]:
    blocks: list[Block] = [Heading(FIGURES[SWEEP].title), Paragraph(sweep.EXPLANATION)]
    # Points have distances of their own, and other sizes of perturbation suit them.
    for kind, toy in (("images", False), ("points", True)):
        of_kind = [r for r in found if r.experiment.config.points == toy]
        if not (options := sweep.options(of_kind)):
            continue
        chosen = {baseline: sweep.choose(of_baseline) for baseline, of_baseline in options.items()}
        path = outdir / f"sweep-{kind}.png"
        draw_sweep(options, chosen, datasets(of_kind), path)
        caption = (
            f"Distance with DAT, times that of plain training with the same seed: geometric mean over {_seeds(of_kind)}; "
            "below 1 (blue) DAT is better; the chosen option in bold"
        )
        blocks += [Heading(f"Options for {kind}", 3), Picture(path, caption), _chosen_options(options, chosen)]
    for name in datasets(found):
        of_dataset = [r for r in found if r.experiment.dataset == name]
        measured = "Final values: mean over the last quarter of training, ± standard deviation over seeds."
        blocks += [
            Heading(f"Final values on {name}", 3),
            Paragraph(f"{_options(of_dataset)} {measured}"),
            _final_values(of_dataset, "baseline", lambda r: r.experiment.setting),
        ]
    return blocks


def _chosen_options(options: Mapping[str, Sequence[sweep.Option]], chosen: Mapping[str, sweep.Option]) -> Table:
    rows = []
    for baseline, of_baseline in options.items():
        best, choice = sweep.best(of_baseline), chosen[baseline]
        lowest = (best.variant, f"{best.overall:.2f}", f"{best.standard_error:.2f}")
        rows.append((baseline, *lowest, choice.variant, f"{choice.overall:.2f}"))
    columns = ("lowest distance", "times plain", "standard error of its logarithm", "chosen", "times plain")
    return Table(("baseline", *columns), rows)


# What is told of a run's env.json.
_RECORDED = {"started": str, "platform": str, "datgan_fast": str, "torch": str, "python": str, "threads": int}
_RECORDED |= {"command": list, "gpu": list}


def _how_it_was_run(found: Sequence[Result]) -> list[Block]:
    recorded = [RunFolder(r.path).environment() for r in found if r.path is not None]
    environments = [e for e in recorded if all(isinstance(e.get(key), kind) for key, kind in _RECORDED.items())]
    blocks: list[Block] = [
        Heading("How it was run"),
        Paragraph("Choices that the paper leaves open: see datgan_fast/paper/experiments.py."),
    ]
    if environments:
        first = environments[0]
        # by the name of all commands or by its own
        typed = (shlex.join(map(str, e["command"][2:])).removeprefix("reproduce") for e in environments)
        commands = dict.fromkeys(f"python -m datgan_fast.reproduce {options.strip()}" for options in typed)
        versions = dict.fromkeys(
            f"datgan-fast {e['datgan_fast']} ({e.get('commit') or 'no commit'}), torch {e['torch']}, Python {e['python']}"
            for e in environments
        )
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
                    ("versions", "; ".join(versions)),
                    ("training time", f"{seconds / 60:.1f} minutes in all runs together, without evaluations"),
                ],
            ),
        ]  # fmt: skip
    return blocks
