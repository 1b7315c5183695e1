"""Does training in half precision end where float32 does? Every baseline with DAT, several seeds of each, on digits.

    python benchmarks/precision.py --out FILE [--steps 2000] [--seeds 3] [--baselines dcgan ...] [--precision bf16]

Writes the sliced Wasserstein distance and the critic's estimate at the end of each run, and for each baseline whether the
means over seeds differ by less than twice the standard error of their difference.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import datgan_fast as dat
import record
from datgan_fast.training.baselines import BASELINES

SIZES: dict[str, Any] = {"dataset": "digits", "width": 16, "batch_size": 64}


def run(baseline: str, precision: str, seed: int, steps: int) -> dict[str, float]:
    trainer = dat.Trainer(dat.TrainConfig(baseline=baseline, precision=precision, seed=seed, **SIZES))
    for _ in range(steps - 200):
        trainer.train_step()
    trainer.iteration.statistics.read()
    for _ in range(200):
        trainer.train_step()
    if trainer.iteration.statistics.broken()[0]:
        raise SystemExit(f"{baseline} in {precision}, seed {seed}: diverged")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp16"))
    parser.add_argument("--baselines", nargs="+", default=list(BASELINES), choices=list(BASELINES))
    options = parser.parse_args()
    result: dict[str, Any] = {
        **record.environment(),
        "command": f"python benchmarks/precision.py --steps {options.steps} --seeds {options.seeds}",
        "sizes": SIZES,
        "baselines": {},
    }
    for baseline in options.baselines:
        runs = {
            precision: [run(baseline, precision, seed, options.steps) for seed in range(options.seeds)]
            for precision in ("fp32", options.precision)
        }
        verdict = {
            metric: compared([r[metric] for r in runs["fp32"]], [r[metric] for r in runs[options.precision]])
            for metric in runs["fp32"][0]
        }
        result["baselines"][baseline] = {"runs": runs, **verdict}
        print(baseline, json.dumps(verdict), flush=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
