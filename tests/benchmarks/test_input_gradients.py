"""The comparison of regularisers gives each the same work, and reads the norms that it says."""

import json

import pytest
import torch
from torch import nn

import input_gradients

pytestmark = pytest.mark.usefixtures("one_thread")
UNITS = {"none": 3, "dat": 6, "r1_approximate": 6, "r1": 5}  # of an update


@pytest.mark.trains
def test_each_has_the_same_work(tmp_path):
    out = tmp_path / "result.json"
    arguments = ["--dataset", "digits", "--units", "60", "--seeds", "2", "--batch-size", "4", "--out"]
    input_gradients.main([*arguments, str(out)])
    result = json.loads(out.read_text())
    assert set(result["runs"]) == set(UNITS)
    for method, runs in result["runs"].items():
        assert len(runs) == 2 and runs["0"]["readings"] != runs["1"]["readings"]
        for run in runs.values():
            assert run["units_per_update"] == pytest.approx(UNITS[method], rel=0.02)
            assert run["paths"] == ["shared"]
            work = [reading["units"] for reading in run["readings"]]
            assert len(work) == 5 and work[-1] == pytest.approx(60, abs=4)
            assert work[0] == pytest.approx(12, abs=7)


def test_readings():
    """Of a linear D the norm is its weight's, wherever it is read."""
    run = input_gradients.Run("none", 0, torch.zeros(4, 1, 28, 28, dtype=torch.uint8), 2)
    run.D = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 1))
    found = run.reading(2 * torch.rand(6, 1, 28, 28) - 1)
    for name in ("norm_real", "norm_generated"):
        assert found[name] == pytest.approx(run.D[1].weight.norm().item(), rel=1e-5)
