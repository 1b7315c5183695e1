"""Times several functions side by side: every round runs all of them, so that a machine that changes its speed changes all.

DATGAN_FAST_BENCH_FULL=1 asks every suite for all of its cells; on a GPU that is the default.
"""

import math
import os
import statistics
import time
from collections.abc import Callable

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FULL = os.environ.get("DATGAN_FAST_BENCH_FULL") == "1"
# A sample lasts at least so long: on a GPU, or the clock and the launches ahead would show; on a CPU, because a function's
# first call after another's finds the other's data in the caches.
LEAST_SECONDS = 0.03 if DEVICE == "cuda" else 0.4
DEVICE_SECONDS = 0.03  # the same of a sample of device_time, which nothing interrupts


def synchronise() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def bf16_is_native() -> bool:
    """Whether this device computes in bfloat16, rather than by conversion."""
    return torch.cuda.is_bf16_supported() if DEVICE == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()


def seconds(run: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of one call, the mean of `repeats`."""
    synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronise()
    return (time.perf_counter() - start) / repeats


def device_time(run: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of one call in each round, without the host's part: many calls a round, between two events on a GPU."""
    run()
    repeats = max(1, math.ceil(DEVICE_SECONDS / seconds(run)))
    return [_events(run, repeats) if DEVICE == "cuda" else seconds(run, repeats) for _ in range(rounds)]


def _events(run: Callable[[], object], repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    synchronise()
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def interleaved(benchmark, runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round; pytest-benchmark's own figure is a whole round."""
    repeats = {name: max(1, math.ceil(LEAST_SECONDS / seconds(run))) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}

    def one_round() -> None:
        for name, run in runs.items():
            samples[name].append(seconds(run, repeats[name]))

    benchmark.pedantic(one_round, rounds=rounds)
    return samples


def spread(values: list[float]) -> float:
    """The interquartile range as a fraction of the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def figures(samples: dict[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Per function: median milliseconds and their noise; of all but the reference also how many times faster it is.

    A speedup is the median over rounds of the ratio of neighbours in time, and its noise those ratios' spread.
    """
    result = {}
    for name, times in samples.items():
        result[name] = {"ms": 1e3 * statistics.median(times), "ms_noise": spread(times)}
        if name != reference and reference in samples:
            ratios = [r / t for r, t in zip(samples[reference], times, strict=True)]
            result[name] |= {"speedup": statistics.median(ratios), "speedup_noise": spread(ratios)}
    return result


def report(benchmark, capsys, title: str, samples, reference: str, costs: dict[str, dict[str, float]], **cell) -> None:
    """Puts the figures of a cell, with what each function costs beside time, into the result file and on the screen."""
    if benchmark.stats is None:  # --benchmark-disable
        return
    results = {name: figure | costs.get(name, {}) for name, figure in figures(samples, reference).items()}
    benchmark.extra_info |= {**cell, "providers": results}
    with capsys.disabled():
        print(f"\n{title}")
        for name, result in results.items():
            print(f"  {name:16}", {k: round(v, 3) for k, v in result.items()})
