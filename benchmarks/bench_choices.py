"""What the library chooses by size on a CPU, beside what it did not choose: the figures of docs/performance.md, "what was tried".

    python -m pytest benchmarks/bench_choices.py --benchmark-only -s

test_one_batch: real and generated images through DCGAN's discriminator as one batch, and one batch after the other.
test_weight_gradient: oneDNN's weight gradient in bfloat16, and the same as a forward convolution.
"""

from unittest.mock import patch

import pytest
import torch

import critics
import datgan_fast as dat
from activity import peak_memory
from datgan_fast.method import batches, weight_gradients
from measure import DEVICE, bf16_is_native, interleaved, report

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU has no such choice")
PRECISIONS = ["float32"] + ["bf16"] * bf16_is_native()
LAYERS = {"64-128": (64, 128, 16, 64), "128-256": (128, 256, 8, 64), "256-512": (256, 512, 8, 32)}  # the last: images


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [16, 64, 256])
def test_one_batch(benchmark, rounds, capsys, size, precision):
    network = critics.dcgan()
    x = [torch.rand(size, 3, 32, 32) * 2 - 1 for _ in range(2)]

    def step(merge: bool) -> None:
        network.zero_grad(set_to_none=True)
        with (
            patch.object(batches, "merging_is_faster", lambda *x: merge),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        ):
            dat.discriminator_step(network, *x, eps=1.0)

    runs = {"two": lambda: step(False), "one": lambda: step(True)}
    for run in runs.values():
        run()
    costs = {name: {"peak_mib": peak_memory(run) / 2**20} for name, run in runs.items()}
    samples = interleaved(benchmark, runs, 3 * rounds)
    title = f"2 x {size} images as two batches and as one, {precision}"
    report(benchmark, capsys, title, samples, "two", costs, size=size, precision=precision)


@pytest.mark.skipif(not bf16_is_native(), reason="bfloat16 is not this processor's own")
@pytest.mark.parametrize("layer", LAYERS)
def test_weight_gradient(benchmark, rounds, capsys, layer):
    channels, out, size, count = LAYERS[layer]
    weight, x, grad = (
        torch.randn(shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        for shape in ((out, channels, 4, 4), (count, channels, size, size), (count, out, size // 2, size // 2))
    )
    how = ([2, 2], [1, 1], [1, 1], False, [0, 0], 1)

    def gradient(least: int) -> torch.Tensor:
        with patch.object(weight_gradients, "LARGE", least):
            return weight_gradients.weight_gradient(grad, x, weight, how)

    runs = {"oneDNN": lambda: gradient(2**40), "as a convolution": lambda: gradient(0)}
    for run in runs.values():
        run()
    samples = interleaved(benchmark, runs, 3 * rounds)
    report(benchmark, capsys, f"weight gradient in bf16, {layer}", samples, "oneDNN", {}, layer=layer)
