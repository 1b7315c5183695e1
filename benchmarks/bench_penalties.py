"""Each penalty alone, as it is used in anybody's loop, beside plain autograd: time and peak memory of value and backward.

    python -m pytest benchmarks/bench_penalties.py --benchmark-only -s

test_penalty: DCGAN's discriminator of width 64 on 64 images of 3x32x32, and a ReLU critic of 512-1000-256-256-1 on 500 rows,
for which 1.2 times plain autograd is aimed at. test_weight_part: the two ways to the weight part of a convolution's double
backward, for each of that discriminator's layers.
"""

import pytest
import torch

import critics
from activity import peak_memory
from measure import DEVICE, interleaved, report

REFERENCE = "plain autograd"
CASES = [("dcgan", name) for name, penalty in critics.PENALTIES.items() if penalty is not None] + [("mlp", "gp")]
LAYERS = {"3-64": (3, 64, 32), "64-128": (64, 128, 16), "128-256": (128, 256, 8)}  # channels in, out, image size


@pytest.mark.parametrize(("network", "name"), CASES, ids=[f"{name}-{network}" for network, name in CASES])
def test_penalty(benchmark, rounds, capsys, network, name):
    build, draw = {"dcgan": (critics.dcgan, critics.images), "mlp": (critics.mlp, critics.rows)}[network]
    critic, (real, fake) = build(), draw()
    penalty = critics.PENALTIES[name]

    def run(function) -> None:
        critic.zero_grad(set_to_none=True)
        function(critic, real, fake).backward()

    runs = {REFERENCE: lambda: run(penalty.as_written), "ours": lambda: run(penalty)}
    for first in runs.values():
        first()
    costs = {provider: {"peak_mib": peak_memory(first) / 2**20} for provider, first in runs.items()}
    samples = interleaved(benchmark, runs, 3 * rounds)
    report(benchmark, capsys, f"{name}, {network}", samples, REFERENCE, costs, network=network, penalty=name)


@pytest.mark.parametrize("layer", LAYERS)
def test_weight_part(benchmark, rounds, capsys, layer):
    """torch's own: a forward convolution with the batch as channels. Ours: convolution_backward for the weight alone."""
    channels, out, size = LAYERS[layer]
    weight = torch.randn(out, channels, 4, 4, device=DEVICE, requires_grad=True)
    x = torch.randn(critics.BATCH, channels, size, size, device=DEVICE)
    grad = torch.randn(critics.BATCH, out, size // 2, size // 2, device=DEVICE)
    geometry = (
        [2, 2],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        1,
    )  # stride, padding, dilation, transposed, output padding, groups

    def torchs() -> torch.Tensor:
        # What torch's convolution_double_backward does: images and channels change places.
        return torch.ops.aten.convolution(
            x.transpose(0, 1), grad.transpose(0, 1), None, [1, 1], [1, 1], [2, 2], False, [0, 0], 1
        )

    def ours() -> torch.Tensor:
        return torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, [False, True, False])[1]

    with torch.no_grad():
        torch.testing.assert_close(torchs().transpose(0, 1), ours(), rtol=1e-3, atol=1e-2)
        samples = interleaved(benchmark, {REFERENCE: torchs, "ours": ours}, rounds)
    report(benchmark, capsys, f"weight part, {layer}", samples, REFERENCE, {}, layer=layer)
