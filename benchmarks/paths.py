"""Which path and which kernels a discriminator step takes: for every baseline, plain and with DAT, in every precision.

    python benchmarks/paths.py [--out FILE]

Exit status 1 if one leaves its path or the kernels that are best for this device, or cannot step.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch

import datgan_fast as dat
import record
from datgan_fast.method import dispatch
from datgan_fast.training import iteration
from datgan_fast.training.baselines import BASELINES
from measure import DEVICE

OPTIONS: dict[str, Any] = {"dataset": "digits", "channels": 3, "image_size": 32, "width": 64, "batch_size": 64}
PRECISIONS = ("fp32", "bf16", "fp16") if DEVICE == "cuda" else ("fp32", "bf16")
BEST = DEVICE  # the backend that has the device's name


def step(baseline: str, use_dat: bool, precision: str) -> dict[str, Any]:
    """One iteration's path, backend and warnings, or its error."""
    seen: list[dat.DiscriminatorStep] = []
    plain = iteration.discriminator_step

    def watched(*args: Any, **options: Any) -> dat.DiscriminatorStep:
        seen.append(plain(*args, **options))
        return seen[-1]

    iteration.discriminator_step = watched
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            config = dat.TrainConfig(**OPTIONS, baseline=baseline, dat=use_dat, precision=precision, device=DEVICE)
            config.cuda_graph = False
            dat.Trainer(config).train_step()
    except Exception as error:  # one that fails must not hide the others
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())}
    finally:
        iteration.discriminator_step = plain
    return {
        "path": seen[-1].path,
        "reason": seen[-1].reason,
        "expected_path": "separate" if config.resolved().batch_norm else "shared",
        "backend": dispatch.resolve(torch.device(DEVICE)),
        "finite": bool(seen[-1].loss.isfinite()),
        "warnings": [str(w.message) for w in said],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table here as JSON, a row at a time")
    options = parser.parse_args(arguments)
    table: dict[str, dict[str, Any]] = {}
    for baseline in BASELINES:
        for use_dat in (True, False):
            for precision in PRECISIONS:
                name = f"{baseline}{' + DAT' if use_dat else ''}, {precision}"
                row = table[name] = step(baseline, use_dat, precision)
                print(f"{name:22}", ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                if options.out:
                    record.write_whole(options.out, json.dumps(table))
    raise SystemExit(0 if all(map(good, table.values())) else 1)


def good(row: dict[str, Any]) -> bool:
    return "error" not in row and row["path"] == row["expected_path"] and row["backend"] == BEST and row["finite"]


if __name__ == "__main__":
    main()
