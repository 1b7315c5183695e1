"""discriminator_step, fused and reference, interleaved in one process: a busy machine slows both.

python -m pytest benchmarks/bench_step.py --benchmark-only -s
"""

import statistics
import time

import pytest
import torch

import datgan_fast as dat
from datgan_fast.networks import build_discriminator

BATCH, IMAGE = 64, (3, 32, 32)
ROUNDS = 25


class SavedBytes:
    """The most that autograd holds for backward at any moment, parameters included."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def pack(self, tensor: torch.Tensor) -> "Held":
        return Held(self, tensor)


class Held:
    def __init__(self, count: SavedBytes, tensor: torch.Tensor) -> None:
        self.count, self.tensor = count, tensor
        count.live += tensor.nbytes
        count.peak = max(count.peak, count.live)

    def __del__(self) -> None:
        self.count.live -= self.tensor.nbytes


@pytest.mark.parametrize("batch_norm", [False, True], ids=["conv", "conv-batchnorm"])
def test_discriminator_step(benchmark, capsys, batch_norm):
    torch.manual_seed(0)
    network = build_discriminator("dcgan", image_size=32, channels=3, width=64, batch_norm=batch_norm)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.0)  # 0: every round does the same work
    x_real, x_fake = (2 * torch.rand(BATCH, *IMAGE) - 1 for _ in range(2))
    seconds: dict[bool, list[float]] = {True: [], False: []}

    def step(fused: bool) -> dat.DiscriminatorStep:
        optimiser.zero_grad(set_to_none=True)
        return dat.discriminator_step(network, x_real, x_fake, eps=1.0, fused=fused)

    def reference_beside() -> None:
        """Runs before every timed fused step."""
        start = time.perf_counter()
        step(False)
        seconds[False].append(time.perf_counter() - start)

    def fused() -> None:
        start = time.perf_counter()
        step(True)
        seconds[True].append(time.perf_counter() - start)

    path = step(True).path
    benchmark.pedantic(fused, setup=reference_beside, rounds=ROUNDS, warmup_rounds=2)

    peak = {}
    for which in (True, False):
        saved = SavedBytes()
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda held: held.tensor):
            step(which)
        peak[which] = saved.peak
    medians = {which: statistics.median(times[-ROUNDS:]) for which, times in seconds.items()}
    info = {
        "path": path,
        "fused_ms": round(1e3 * medians[True], 1),
        "reference_ms": round(1e3 * medians[False], 1),
        # of neighbours in time, so that a machine that changes its speed changes both
        "ratio": round(
            statistics.median(r / f for r, f in zip(seconds[False][-ROUNDS:], seconds[True][-ROUNDS:], strict=True)), 3
        ),
        "saved_peak_mib_fused": round(peak[True] / 2**20, 1),
        "saved_peak_mib_reference": round(peak[False] / 2**20, 1),
    }
    benchmark.extra_info.update(info)
    with capsys.disabled():
        print(f"\n{'BatchNorm' if batch_norm else 'no BatchNorm'}: {info}")
