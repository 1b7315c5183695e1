"""The command reproduce: runs the paper's figures with and without DAT and reports what came out.

Writes OUTDIR/runs (a run folder for each run), OUTDIR/results (a line for each finished one), the figures as PNGs, report.md and
report.html. Finished runs are not repeated and interrupted ones are continued, so that the same command can be given again at any
time; with OUTDIR/results alone it goes on elsewhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .cli import Parser, a_path, command_parser, run_command, whole_number
from .commands import spelled
from .data.datasets import DATASETS, load_images
from .errors import ConfigError, did_you_mean
from .metrics import feature_network, inception
from .paper import null_simulation, records, report, report_verdicts
from .paper.experiments import ATTACK, FIGURES, FULL, MEDIUM, PAPER, QUICK, SIZES, Experiment, Size, experiments
from .paper.results import Result
from .paper.runs import cores, remaining, run_all
from .paper.verdicts import NOT_MEASURED
from .training.config import Config
from .training.devices import resolve_device

QUICK_DATASETS = ("digits", "ring")
MOST_SEEDS = 1000
JOBS_ON_A_GPU = 4  # one small network's iterations leave much of a GPU idle


def build_parser() -> Parser:
    parser = command_parser(
        "reproduce",
        "[options]",
        ["--quick", "--dataset cifar10 --download --figure 3,4 --seeds 5"],
        "Writes OUTDIR/runs, OUTDIR/results, the figures as PNGs, report.md and report.html. Finished runs are\n"
        "not repeated and interrupted ones are continued, so that the same command can be given again at any\n"
        "time; with OUTDIR/results alone, a line for each finished run, it goes on elsewhere.",
    )
    parser.add_argument("--figure", default=",".join(PAPER), metavar="LIST", help=f"of {', '.join(FIGURES)}; "
        "default: the paper's and alp. eq8 has other readings of Equation 8 beside a critic's penalty, sweep a grid of DAT's "
        "options over the baselines, rivals other regularisers beside DAT and rivals-sweep their weights")  # fmt: skip
    parser.add_argument(
        "--setting", metavar="NAME", help="only this one of the figures' settings, named as in the report"
    )
    parser.add_argument("--size", metavar="NAME", help=f"of the networks and how long they train: {', '.join(SIZES)}; "
        f"default: full. medium: width 16, images of {MEDIUM.options['image_size']} pixels, {MEDIUM.updates} discriminator "
        "updates, two of figure 3's settings, critics with n_dis 5 only")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small networks and short runs, for a CPU: --size quick")
    parser.add_argument("--report-only", action="store_true", help="report on the runs in --outdir and train nothing")
    parser.add_argument(
        "--null-simulation", metavar="N", help="swap plain and DAT at random in the runs in --outdir, N times, and print in "
        "how many a verdict comes out; trains nothing"
    )  # fmt: skip
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", metavar="LIST", help=f"of {', '.join(DATASETS)}; default: "
        f"{','.join(QUICK_DATASETS)} with --quick, mnist with --size medium, else cifar10")  # fmt: skip
    data.add_argument(
        "--data-dir", type=a_path, default="data", metavar="DIR", help="folder of its files; default: data"
    )
    data.add_argument("--download", action="store_true", help="fetch missing files of the data set into --data-dir")
    data.add_argument("--image-size", metavar="N", help="side in pixels; default: the data set's")
    length = parser.add_argument_group("length")
    length.add_argument("--steps", metavar="N", help="generator steps of each run; default: as many as make "
        f"{FULL.updates} discriminator updates; {QUICK.updates} with --quick, {QUICK.toy_updates} on toy data; "
        f"{MEDIUM.updates} with --size medium")  # fmt: skip
    length.add_argument(
        "--seeds",
        metavar="N|A-B",
        help="runs of each setting: seeds 0 to N-1, or A to B; "
        f"default: {FULL.seeds}, with --quick {QUICK.seeds}, too few for any verdict; 12 are enough",
    )
    speed = parser.add_argument_group("speed")
    speed.add_argument("--jobs", metavar="N", help="runs at a time; default: as many as cores, "
        f"or {JOBS_ON_A_GPU} that share a GPU")  # fmt: skip
    speed.add_argument("--threads", metavar="N", help="of each run; default: the cores' share")
    speed.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or cuda:i; default: auto")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--inception-weights", type=a_path, metavar="FILE", help="measure the Inception Score with these weights"
    )
    output.add_argument(
        "--outdir", type=a_path, default="runs/reproduction", metavar="DIR", help="default: runs/reproduction"
    )
    return parser


def reproduce(arguments: Any) -> int:
    outdir = Path(arguments.outdir)
    if arguments.null_simulation is not None:
        times = whole_number("--null-simulation", arguments.null_simulation, 1, 10**6)
        print(null_simulation.simulate(report.measure(_recorded(outdir, "--null-simulation")), times))
        return 0
    if arguments.report_only:
        _recorded(outdir, "--report-only")
        return _report(outdir, {})

    if outdir.is_file():
        raise ConfigError(f"--outdir {outdir}: must be a folder; it is a file")
    device = resolve_device(arguments.device)
    most = JOBS_ON_A_GPU if device.startswith("cuda") else min(cores(), 256)
    jobs = whole_number("--jobs", arguments.jobs or str(most), 1, 256)
    threads = whole_number("--threads", arguments.threads or str(max(1, cores() // jobs)), 1, 1024)
    if arguments.inception_weights:
        inception.find_weights(arguments.inception_weights)
    every = _asked_for(arguments, device, outdir / "runs")
    todo = remaining(every, outdir)
    for dataset in dict.fromkeys(e.dataset for e in todo):
        _load_data_once(next(e.config for e in todo if e.dataset == dataset))
    _make(outdir / "runs")
    print(f"{outdir}: {len(every)} runs, {len(every) - len(todo)} of them finished, {jobs} at a time", flush=True)
    failures = run_all(todo, outdir, min(jobs, len(todo)), threads) if todo else {}
    return _report(outdir, failures)


def _recorded(outdir: Path, option: str) -> list[Result]:
    if found := records.read(outdir):
        return found
    raise ConfigError(f"--outdir {outdir}: must hold runs of datgan_fast.reproduce for {option}")


def _asked_for(arguments: Any, device: str, folder: Path) -> list[Experiment]:
    """The runs that the options name. Raises ConfigError."""
    figures = _chosen("--figure", arguments.figure, FIGURES)
    size = _size(arguments)
    default = {QUICK.name: ",".join(QUICK_DATASETS), MEDIUM.name: "mnist", FULL.name: "cifar10"}[size.name]
    datasets = _chosen("--dataset", arguments.dataset or default, DATASETS)
    steps = whole_number("--steps", arguments.steps, 1, 10**9) if arguments.steps is not None else None
    shared = {name: getattr(arguments, name) for name in ("data_dir", "download", "inception_weights", "image_size")}
    shared |= {"device": device, "outdir": str(folder)}
    seeds = _seeds(str(size.seeds) if arguments.seeds is None else arguments.seeds)
    every = experiments(datasets, figures, seeds, size, shared, steps)
    if not every:
        raise ConfigError(
            f"--figure {','.join(figures)}: has no runs with --dataset {','.join(datasets)} at --size {size.name}; "
            f"figure {ATTACK} is for images, and {MEDIUM.name} leaves out figures 6 and 8"
        )
    if arguments.setting is None:
        return every
    known = dict.fromkeys(e.setting for e in every)
    if arguments.setting not in known:
        near = did_you_mean(arguments.setting, known)
        raise ConfigError(f"--setting {arguments.setting}: must be one of {'; '.join(known)}{near}")
    return [e for e in every if e.setting == arguments.setting]


def _size(arguments: Any) -> Size:
    if arguments.quick and arguments.size not in (None, QUICK.name):
        raise ConfigError(f"--quick with --size {arguments.size}: is --size {QUICK.name}; leave one out")
    (name,) = _chosen("--size", QUICK.name if arguments.quick else arguments.size or FULL.name, SIZES)
    return SIZES[name]


def _seeds(text: str) -> range:
    """0 to N-1, or A to B."""
    if "-" not in text:
        return range(whole_number("--seeds", text, 1, MOST_SEEDS))
    found = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", text)
    if found is None:
        raise ConfigError(f"--seeds {text}: must be a whole number, or two with a dash between: 3-14")
    first, last = int(found[1]), int(found[2])
    if not 1 <= last - first + 1 <= MOST_SEEDS:
        raise ConfigError(f"--seeds {text}: must be from 1 to {MOST_SEEDS} seeds, the lower one first: 3-14")
    return range(first, last + 1)


def _chosen(option: str, text: str, known: Collection[str]) -> list[str]:
    chosen = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in chosen:
        if name not in known:
            near = did_you_mean(name, known)
            raise ConfigError(f"{option} {name}: must be of {', '.join(known)}, with commas between{near}")
    return chosen


def _load_data_once(config: Config) -> None:
    """Downloads the data and trains their feature network here, before several runs would do it at the same time."""
    c = config
    data = (c.dataset, c.data_dir, c.image_size or None, c.channels or None)
    if DATASETS[c.dataset].read_labels is None:
        load_images(*data, download=c.download)
    else:
        feature_network.load(*data, device=c.device, download=c.download)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--outdir {folder.parent}: must be a folder that can be written ({error.strerror})"
        ) from None


def _report(outdir: Path, failures: dict[str, str]) -> int:
    if found := records.read(outdir):
        verdicts = report.write(found, outdir)
        for dataset, of_dataset in verdicts.items():
            for v in of_dataset:
                if v.verdict != NOT_MEASURED:
                    print(f"{dataset} {v.claim.name} {v.verdict:11s} {v.claim.text}: {v.ours}; {v.certainty}")
        if missing := report_verdicts.not_measured(verdicts):
            print(f"not measured: {'; '.join(missing)}")
        print(f"report: {outdir / 'report.html'}, {outdir / 'report.md'}")
    for name, reason in failures.items():
        print(f"{spelled('reproduce')}: {name} failed: {reason}", file=sys.stderr)
    return 1 if failures else 0


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    return run_command(parser.prog, lambda: reproduce(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
