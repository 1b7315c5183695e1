"""benchmarks/record.py, which writes what a GPU machine reports."""

import json
import sys

import pytest
import torch

import record


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
    assert "other" not in result
    assert [file.name for file in out.parent.iterdir()] == ["result.json"]
    assert result["benchmarks"] == [
        {"name": "a", "min": 1.0, "median": 2.0, "stddev": 0.5, "rounds": 3, "fraction_of_copy": 0.9}
    ]


def test_the_parts_of_a_check_share_an_environment(tmp_path, monkeypatch):
    kept, looks = tmp_path / "environment.json", []
    monkeypatch.setattr(
        record, "environment", lambda: looks.append(1) or {"date": "then", "datgan_fast": "1", "device": "x"}
    )
    for name in "ab":
        record.main(["--out", str(tmp_path / name), "--command", "c", "--environment", str(kept)])
    first, second = (json.loads((tmp_path / name).read_text()) for name in "ab")
    assert len(looks) == 1
    assert first["device"] == second["device"] == "x"
    assert first["date"] == "then" != second["date"]


def test_environment_where_the_package_cannot_be_imported(tmp_path, monkeypatch):
    """It is not kept: the next part may have built it."""
    monkeypatch.setitem(sys.modules, "datgan_fast", None)
    kept = tmp_path / "environment.json"
    found = record.kept_environment(kept)
    assert found["datgan_fast"] is None and "datgan_fast" in found["import_error"]
    assert not kept.exists()
