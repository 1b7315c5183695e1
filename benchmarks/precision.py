"""Does training in half precision end where float32 does? Baselines with DAT, several seeds of each, on digits.

    python benchmarks/precision.py --out FILE [--steps 2000] [--seeds 3] [--baselines dcgan ...] [--precision bf16]
        [--penalty-precision bf16] [--width 16] [--batch-size 64] [--processes 2]

Writes the sliced Wasserstein distance and the critic's estimate at the end of each run, and for each baseline whether the
means over seeds differ by less than twice the standard error of their difference. With --penalty-precision bf16 the
baselines are those that have a penalty, and r1 (dcgan with it, without BatchNorm); --precision fp32 then judges the penalty
alone. Each process trains with one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

import datgan_fast as dat
import record
from datgan_fast.training.baselines import BASELINES

R1: dict[str, Any] = {"baseline": "dcgan", "batch_norm": False, "r1": 1.0}
CASES: dict[str, dict[str, Any]] = {**{name: {"baseline": name} for name in BASELINES}, "r1": R1}
PENALISED = [*(name for name, row in BASELINES.items() if row.penalty), "r1"]
LAST = 200  # steps whose estimates are averaged


def run(options: dict[str, Any], steps: int) -> dict[str, float]:
    torch.set_num_threads(1)
    trainer = dat.Trainer(dat.TrainConfig(**options))
    for _ in range(steps - LAST):
        trainer.train_step()
    trainer.iteration.statistics.read()
    for _ in range(min(steps, LAST)):
        trainer.train_step()
    if trainer.iteration.statistics.broken()[0]:
        raise SystemExit(f"{options}: diverged")
    means = trainer.iteration.statistics.read()
    measured = {record["metric"]: record["value"] for record in trainer.evaluate()}
    return {**measured, "wasserstein": means["wasserstein"]}


def compared(full: list[float], half: list[float]) -> dict[str, float | bool]:
    error = ((statistics.variance(full) + statistics.variance(half)) / len(full)) ** 0.5
    difference = statistics.fmean(half) - statistics.fmean(full)
    return {
        "fp32": statistics.fmean(full),
        "half": statistics.fmean(half),
        "standard_error": error,
        "within_noise": abs(difference) <= 2 * error,
    }


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--penalty-precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--baselines", nargs="+", choices=list(CASES))
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(given)
    if options.precision == options.penalty_precision == "fp32":
        parser.error("--precision fp32: is what others are compared with; give another, or --penalty-precision bf16")
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: two at least, which show the noise between them")
    options.baselines = options.baselines or (PENALISED if options.penalty_precision != "fp32" else list(BASELINES))
    return options


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    sizes = {"dataset": "digits", "width": options.width, "batch_size": options.batch_size}
    full = {"precision": "fp32"}
    half = {"precision": options.precision, "penalty_precision": options.penalty_precision}
    name = options.precision + (f", {options.penalty_precision} penalty" if options.penalty_precision != "fp32" else "")
    named = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in half.items())
    result: dict[str, Any] = {
        **record.environment(),
        "threads": 1,
        "command": f"python benchmarks/precision.py --steps {options.steps} --seeds {options.seeds} {named} "
        f"--width {options.width} --batch-size {options.batch_size} --processes {options.processes}",
        "sizes": sizes,
        "compared": {"fp32": full, name: half},
        "baselines": {},
    }
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:

        def runs(submit: Callable[..., Future], case: str, precision: dict[str, Any]) -> list[Future]:
            common = {**CASES[case], **sizes, **precision, "device": "cpu"}
            return [submit(run, {**common, "seed": seed}, options.steps) for seed in range(options.seeds)]

        begun = {
            case: {kind: runs(pool.submit, case, chosen) for kind, chosen in (("fp32", full), (name, half))}
            for case in options.baselines
        }
        for case, futures in begun.items():
            ended = {kind: [f.result() for f in of] for kind, of in futures.items()}
            verdict = {
                metric: compared([r[metric] for r in ended["fp32"]], [r[metric] for r in ended[name]])
                for metric in ended["fp32"][0]
            }
            result["baselines"][case] = {"runs": ended, **verdict}
            print(case, json.dumps(verdict), flush=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
