"""The speed this project aims at, checked against result files: each target, what was measured, and whether it is met.

    python benchmarks/targets.py RESULT...

Exit status 1 if a target is missed; 2 and one sentence where the file does not serve.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import record

NORMS = ("none", "l2", "linf", "clamp")
LARGE_IMAGES = "341x3x256x256"
OF_A_COPY = "fraction_of_own_copy"


class Target(NamedTuple):
    what: str
    least: float  # of a ratio, for which more is better
    measured: float

    @property
    def met(self) -> bool:
        return self.measured >= self.least


def together(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One result with the benchmarks of all. Raises ResultError."""
    devices = {result["device"] for result in results}
    if len(devices) > 1:
        raise record.ResultError(f"the results are of different devices: {', '.join(sorted(devices))}")
    return {**results[0], "benchmarks": [b for result in results for b in result["benchmarks"]]}


def cells(result: dict[str, Any], test: str) -> Iterator[dict[str, Any]]:
    return (b for b in result["benchmarks"] if b["name"].startswith(test + "["))


STEPS = {"none": 1.3, "gp": 1.35, "lp": 1.35, "r1": 1.5, "r1+r2": 1.7, "alp": 1.5}  # by penalty
ITERATIONS = {"dcgan": 1.19, "wgan": 1.34, "wgan-gp": 1.38, "wgan-lp": 1.38, "wgan-alp": 1.45}
HALF_ITERATIONS = {"wgan-gp": 2.3, "wgan-alp": 2.1}  # where bfloat16 is the device's own
MEMORY_OF_A_PENALISED_STEP = ("r1", "alp")


def cpu_targets(result: dict[str, Any]) -> Iterator[Target]:
    """Of a penalty alone, of a discriminator step and of an iteration with DAT, on two cores."""
    for cell in cells(result, "test_penalty"):
        if cell["network"] == "mlp":
            yield Target(
                f"{cell['penalty']} of an MLP, times plain autograd", 1.2, cell["providers"]["ours"]["speedup"]
            )
    for cell in cells(result, "test_discriminator_step"):
        yield from step_targets(cell)
    for cell in cells(result, "test_iteration"):
        if not cell["dat"]:
            continue
        what, named, baseline = f"{cell['baseline']} + DAT", cell["providers"], cell["baseline"]
        yield Target(f"{what}, times the reference", ITERATIONS[baseline], named["fused"]["speedup"])
        half = named.get("fused bf16, bf16 penalty")
        if half and baseline in HALF_ITERATIONS:
            least = HALF_ITERATIONS[baseline]
            yield Target(f"{what} with all in bf16, times the float32 reference", least, half["speedup"])


def step_targets(cell: dict[str, Any]) -> Iterator[Target]:
    named, reference, penalty = cell["providers"], cell["providers"]["reference"], cell["penalty"]
    if cell["batch_norm"]:
        yield Target("step with BatchNorm, times the reference", 1.1, named["fused"]["speedup"])
        return
    what = "step" if penalty == "none" else f"step with {penalty}"
    yield Target(f"{what}, times the reference", STEPS[penalty], named["fused"]["speedup"])
    memory = reference["peak_mib"] / named["fused"]["peak_mib"]
    if penalty == "none":
        if "fused bf16" in named:
            yield Target("step in bf16, times the float32 reference", 1.9, named["fused bf16"]["speedup"])
        yield Target("the reference's peak memory, times the step's", 1 / 0.65, memory)
    elif penalty in MEMORY_OF_A_PENALISED_STEP:
        yield Target(f"the reference's peak memory with {penalty}, times the step's", 1, memory)


def gpu_targets(result: dict[str, Any]) -> Iterator[Target]:
    """Of an iteration with DAT, by the fastest recorded one, and of the kernels beside a copy of their size."""
    grid = {(cell["baseline"], cell["dat"]): cell["providers"] for cell in cells(result, "test_iteration")}
    for (baseline, dat), named in grid.items():
        if not dat:
            continue
        best = min(figure["ms"] for name, figure in named.items() if name.startswith("fused graph"))
        if baseline in ("dcgan", "wgan-gp"):
            yield Target(f"{baseline} + DAT, times the float32 reference", 4, named["reference"]["ms"] / best)
        compiled = min(figure["ms"] for name, figure in named.items() if name.startswith("compiled"))
        yield Target(f"{baseline} + DAT, times the compiled reference", 2.5, compiled / best)
        if (baseline, False) in grid:
            plain = grid[baseline, False]["reference"]["ms"]
            yield Target(f"{baseline} + DAT, times the float32 reference without DAT", 2, plain / best)
    for cell in cells(result, "test_growth"):
        if cell["batch_size"] == 1024:
            rate = max(f["fraction_of_floor_rate"] for n, f in cell["providers"].items() if n.startswith("fused"))
            yield Target(f"{cell['baseline']} at batch 1024, of the floor's rate", 0.5, rate)
    for op in ("perturb", "attack_step"):
        for norm in NORMS:
            for cell in cells(result, "test_kernel"):
                if cell["name"] == f"test_kernel[{op}-{LARGE_IMAGES}-float32-{norm}-cuda-graph]":
                    least = 0.85 if norm == "l2" else 0.95  # the norm of an image is known after its last element
                    yield Target(f"{op}, norm {norm}, 256 MiB of 256x256 images, of a copy", least, cell[OF_A_COPY])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="RESULT", type=Path, help="parts of one run on one device")
    options = parser.parse_args(arguments)
    names = ", ".join(map(str, options.results))
    try:
        result = together([record.read(path) for path in options.results])
        targets = list((gpu_targets if result["devices"] else cpu_targets)(result))
        if not targets:
            raise record.ResultError(f"{names} has none of the benchmarks that targets are set for")
    except (record.ResultError, KeyError, ValueError) as error:
        reason = error if isinstance(error, record.ResultError) else f"{names} lacks a benchmark ({error!r})"
        print(f"targets: {reason}", file=sys.stderr)
        raise SystemExit(2) from None
    width = max(len(t.what) for t in targets)
    for t in targets:
        print(f"{t.what:{width}}  at least {t.least:5.2f}  measured {t.measured:6.2f}  {'met' if t.met else 'MISSED'}")
    raise SystemExit(0 if all(t.met for t in targets) else 1)


if __name__ == "__main__":
    main()
