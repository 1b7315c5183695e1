"""One discriminator step with DAT and each penalty, the reference and the fast one side by side: time, memory at its peak,
memory held for backward.

    python -m pytest benchmarks/bench_step.py --benchmark-only -s

What is aimed at on two CPU cores is in targets.py.
"""

import pytest
import torch

import critics
import datgan_fast as dat
from activity import peak_memory
from measure import DEVICE, bf16_is_native, figures, interleaved

REFERENCE = "reference"
PROVIDERS = {REFERENCE: (False, None), "fused": (True, None)}  # name -> (fused, autocast)
if bf16_is_native():
    PROVIDERS["fused bf16"] = (True, torch.bfloat16)


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


CASES = [(False, name) for name in critics.PENALTIES] + [(True, "none")]


IDS = ["conv-batchnorm" if batch_norm else "conv" + f"-{name}".removesuffix("-none") for batch_norm, name in CASES]


@pytest.mark.parametrize(("batch_norm", "penalty"), CASES, ids=IDS)
def test_discriminator_step(benchmark, rounds, capsys, batch_norm, penalty):
    network, (x_real, x_fake) = critics.dcgan(batch_norm), critics.images()
    # What goes with a penalty; the other cells are as they were before there were penalties here.
    objective = "vanilla" if penalty == "none" else "wasserstein"

    def step(provider: str) -> dat.DiscriminatorStep:
        fused, dtype = PROVIDERS[provider]
        network.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype=dtype, enabled=dtype is not None):
            return dat.discriminator_step(
                network, x_real, x_fake, eps=1.0, objective=objective, penalty=critics.PENALTIES[penalty], fused=fused
            )

    runs = {name: lambda name=name: step(name) for name in PROVIDERS}
    costs = {}
    for name, run in runs.items():
        path = run().path  # also warms up
        saved = SavedBytes()
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda held: held.tensor):
            run()
        costs[name] = {"path": path, "peak_mib": peak_memory(run) / 2**20, "saved_peak_mib": saved.peak / 2**20}
    samples = interleaved(benchmark, runs, 3 * rounds)  # a step is short
    if benchmark.stats is None:  # --benchmark-disable
        return
    results = {name: figure | costs[name] for name, figure in figures(samples, REFERENCE).items()}
    for result in results.values():
        result["peak_of_reference"] = result["peak_mib"] / results[REFERENCE]["peak_mib"]
    benchmark.extra_info |= {"batch_norm": batch_norm, "penalty": penalty, "providers": results}
    with capsys.disabled():
        print(f"\n{'BatchNorm' if batch_norm else 'no BatchNorm'}, penalty: {penalty}")
        for name, result in results.items():
            print(f"  {name:12}", {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()})
