"""benchmarks/record.py, which writes what a GPU machine reports, and the script around it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import record

ROOT = Path(__file__).resolve().parent.parent


def test_environment_names_device_versions_and_commit(monkeypatch):
    monkeypatch.setenv("DATGAN_FAST_COMMIT", "0123abcd")
    environment = json.loads(json.dumps(record.environment()))
    assert environment["commit"] == "0123abcd"
    assert environment["torch"] == torch.__version__
    assert environment["date"].endswith("+00:00")
    assert environment["device"]
    assert set(environment["backends"]) == {"reference", "cpu", "cuda", "triton"}
    assert environment.keys() >= {"triton", "cuda", "driver", "nvcc", "python", "threads", "modified"}


def test_environment_without_git(monkeypatch):
    monkeypatch.delenv("DATGAN_FAST_COMMIT", raising=False)
    monkeypatch.setattr(record, "_output", lambda *command: None)
    environment = record.environment()
    assert environment["commit"] is None
    assert environment["modified"] is None
    assert environment["nvcc"] is None


@pytest.mark.parametrize(("codes", "passed"), [((0, 0), True), ((0, 1), False), ((), None)])
def test_result_file(tmp_path, codes, passed):
    stats = {"min": 1.0, "median": 2.0, "stddev": 0.5, "rounds": 3, "data": [1.0, 2.0, 3.0]}
    report = {"benchmarks": [{"name": "a", "stats": stats, "extra_info": {"fraction_of_copy": 0.9}}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    out = tmp_path / "new" / "result.json"
    sections = [
        "--section",
        f"benchmarks={tmp_path / 'report.json'}",
        "--section",
        f"other={tmp_path / 'absent'}",
    ]
    statuses = [item for i, code in enumerate(codes) for item in ("--status", f"part{i}={code}")]
    record.main(["--out", str(out), "--command", "the command", *sections, *statuses])
    result = json.loads(out.read_text())
    assert result["command"] == "the command"
    assert result["passed"] is passed
    assert result["status"] == {f"part{i}": code for i, code in enumerate(codes)}
    assert result["other"] is None
    assert result["benchmarks"] == [
        {"name": "a", "min": 1.0, "median": 2.0, "stddev": 0.5, "rounds": 3, "fraction_of_copy": 0.9}
    ]


def test_script_records_a_part_that_failed(tmp_path):
    """The sanitizer has no GPU kernels to look at here, or no tool; every other part is left out."""
    run = subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu_check.sh", tmp_path],
        env=os.environ
        | {
            "PYTHON": sys.executable,
            "DATGAN_FAST_CHECK_SKIP": "build tests benchmarks",
            "CUDA_HOME": str(tmp_path / "no-toolkit"),
            "PATH": os.pathsep.join(
                p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "compute-sanitizer").exists()
            ),
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    [file] = tmp_path.glob("gpu-check-*.json")
    result = json.loads(file.read_text())
    assert result["status"] == {"sanitizer": 127}
    assert not result["passed"]
    assert "compute-sanitizer was not found" in run.stdout
