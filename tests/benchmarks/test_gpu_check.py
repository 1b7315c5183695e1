"""benchmarks/gpu_check.sh from beginning to end, with stand-ins for a GPU, for nvidia-smi, pip and compute-sanitizer.

pytest is the real one, which only collects: a part that selects no test fails. What a part's command leaves is what the stand-in
writes in its place.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import paths
import preflight

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # of this session
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
FIRST = ["build", "paths", "kernels", "capture", "iterations", "bandwidth"]
LATER = ["triton", "tests", "sanitizer", "benchmarks"]

# Python patches torch.cuda as soon as it is imported.
DEVICE = """
import importlib.machinery, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "torch.cuda":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def patched(module):
            execute(module)
            module.is_available = lambda: True
            module.device_count = lambda: 1
            module.current_device = lambda: 0
            module.get_device_name = lambda device=None: "Stand-in GPU"
            module.get_device_capability = lambda device=None: (9, 0)
            module.is_bf16_supported = lambda *args: True
        spec.loader.exec_module = patched
        return spec

sys.meta_path.insert(0, Finder())
"""

PYTHON = """#!/usr/bin/env bash
# python of the machine with the GPU
echo "python $*" >> "$STANDIN/calls"
text="$*"
cells=""
for argument in "$@"; do
    [[ $previous == --cells || $previous == --out && $text == *paths.py* ]] && cells=$argument
    previous=$argument
done
if [[ -n $cells && $text != *record.py* ]]; then
    stats='{"min": 1, "median": 1, "stddev": 0, "rounds": 1}'
    echo '{"benchmarks": [{"name": "test_a", "extra_info": {}, "stats": '"$stats"'}]}' > "$cells"
fi
if [[ -n ${STANDIN_BLOCKS:-} && $text == *$STANDIN_BLOCKS* ]]; then
    echo reached > "$STANDIN/reached"
    read -r < "$STANDIN/released"
fi
case $text in
    "-m pip"*) exit "${STANDIN_PIP:-0}" ;;
    *preflight.py*) exit "${STANDIN_PREFLIGHT:-0}" ;;
    *paths.py*) echo '{"dcgan": {"path": "separate"}}' > "$cells" ;;
    -) cat > /dev/null ;;  # are the kernels there?
    "-c import xdist") exit 1 ;;
    "-m pytest"*" -k "*) PYTHONPATH=$STANDIN exec "$REAL" "$@" --collect-only ;;
    "-m pytest"*) ;;
    *) PYTHONPATH=$STANDIN exec "$REAL" "$@" ;;
esac
"""


@pytest.fixture
def check(tmp_path):
    """check(*arguments, **environment): the running script; its results are in `check.results`."""
    standin = tmp_path / "standin"
    standin.mkdir()
    (standin / "sitecustomize.py").write_text(DEVICE)
    programs = {
        "python": PYTHON,
        "nvidia-smi": "#!/bin/sh\ncase $1 in *compute_cap*) echo 9.0 ;; *) echo 570.1 ;; esac\n",
        "compute-sanitizer": '#!/bin/sh\necho "compute-sanitizer $*" >> "$STANDIN/calls"\n',
    }
    for name, text in programs.items():
        (standin / name).write_text(text)
        (standin / name).chmod(0o755)
    for name in ("reached", "released"):
        os.mkfifo(standin / name)

    def run(*arguments, path=f"{standin}{os.pathsep}{os.environ['PATH']}", **environment):
        values = {"PATH": path, "PYTHON": str(standin / "python"), "STANDIN": str(standin), "REAL": sys.executable}
        kept = {name: value for name, value in OUTSIDE.items() if not name.startswith("DATGAN_FAST_") and name != "OUT"}
        return subprocess.Popen(
            ["bash", SCRIPT, "--out", run.results, *arguments],
            env=kept | values | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    run.results = tmp_path / "results"
    run.standin = standin
    # until the stand-in has reached what STANDIN_BLOCKS names
    run.wait = lambda: subprocess.run(
        ["timeout", "60", "cat", standin / "reached"], check=True, stdout=subprocess.DEVNULL
    )
    run.calls = lambda: (standin / "calls").read_text()
    return run


def records(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_all_parts(check):
    process = check()
    output, _ = process.communicate()
    assert process.returncode == 0, output
    found = records(check.results)
    assert sorted(found) == sorted(FIRST + LATER)
    for name, record in found.items():
        assert record["status"] == {name: 0}, (check.results / f"{name}.log").read_text()
        assert record["passed"] is True
        assert record["device"] == "Stand-in GPU"
        assert record["driver"] == "570.1"
        assert (check.results / f"{name}.log").is_file()
    assert [name for name, record in found.items() if "benchmarks" in record] == [
        name for name in found if name in ("iterations", "bandwidth", "benchmarks")
    ]
    assert found["paths"]["paths"] == {"dcgan": {"path": "separate"}}
    for tool in ("memcheck", "racecheck"):
        assert f"compute-sanitizer --tool {tool} --error-exitcode 99 {check.standin}/python" in check.calls()


def limits():
    """Seconds of each part, as its own header says and as its code has."""
    said = dict.fromkeys(FIRST + LATER)
    for line in SCRIPT.read_text().splitlines():
        words = line.split()
        if len(words) > 3 and words[0] == "#" and words[1] in said and words[3] == "s":
            said[words[1]] = int(words[2])
    return said


def test_the_first_parts_take_less_than_eight_minutes():
    said = limits()
    assert sum(said[name] for name in FIRST) + 30 < 8 * 60  # half a minute for the records
    for name, seconds in said.items():
        assert f"[{name}]={seconds}" in SCRIPT.read_text()


def test_a_check_that_is_killed_loses_the_part_it_was_in(check):
    check.results.mkdir()
    (check.results / "kernels.json").write_text('{"an": "older check\'s"}')
    process = check("build", "sanitizer", "kernels", "paths", STANDIN_BLOCKS="test_kernels_on_gpu")
    check.wait()
    process.send_signal(signal.SIGKILL)
    process.wait()
    (check.standin / "released").write_text("go on\n")
    found = records(check.results)
    assert {name: record["passed"] for name, record in found.items()} == {"build": True, "sanitizer": True}


def test_a_part_that_runs_out_of_time_keeps_its_cells(check):
    process = check("iterations", "paths", STANDIN_BLOCKS="bench_iteration", DATGAN_FAST_CHECK_SECONDS="2")
    check.wait()
    output, _ = process.communicate()
    assert process.returncode == 1
    found = records(check.results)
    assert found["iterations"]["status"] == {"iterations": 124}
    assert found["iterations"]["passed"] is False
    assert [cell["name"] for cell in found["iterations"]["benchmarks"]] == ["test_a"]
    assert found["paths"]["passed"] is True
    assert "out of time" in output


def test_a_part_that_fails_is_recorded(check, tmp_path):
    """And an older record does not stand in for it."""
    check.results.mkdir()
    (check.results / "sanitizer.json").write_text("old")
    no_toolkit = os.pathsep.join(
        [str(tmp_path / "bin")]
        + [p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "compute-sanitizer").exists()]
    )
    process = check("build", "sanitizer", path=no_toolkit, CUDA_HOME=str(tmp_path / "no-toolkit"), STANDIN_PIP="3")
    process.communicate()
    assert process.returncode == 1
    found = records(check.results)
    assert found["build"]["status"] == {"build": 127}  # no nvidia-smi either
    assert found["sanitizer"]["status"] == {"sanitizer": 127}
    assert "compute-sanitizer was not found" in (check.results / "sanitizer.log").read_text()


def test_what_is_missing_ends_the_check_at_once(check):
    process = check("build", STANDIN_PREFLIGHT="2")
    process.communicate()
    assert process.returncode == 2
    assert not records(check.results)


def test_wheels_are_installed_but_for_the_machines_own(check, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    own = ("torch-2.11", "numpy-2", "nvidia_cublas-13", "triton-3")
    for name in (*own, "tqdm-4", "torch_fidelity-0.4"):
        (wheels / f"{name}-py3-none-any.whl").touch()
    check("paths", DATGAN_FAST_WHEELS=str(wheels)).communicate()
    (line,) = (line for line in check.calls().splitlines() if "pip" in line)
    assert "--no-index --no-deps" in line
    installed = {Path(word).name.partition("-")[0] for word in line.split() if word.endswith(".whl")}
    assert installed == {"torch_fidelity", "tqdm"}


# What is missing


def test_missing_packages_are_found_behind_those_that_are_there():
    there = {
        "a": ["b>=2; python_version > '3'", "c; extra == 'x'", "d; python_version < '3'"],
        "b": ["e"],
        "torch": ["f"],
    }

    def requires(name):
        if name in there:
            return there[name]
        raise preflight.metadata.PackageNotFoundError(name)

    assert preflight.missing(["a", "torch>=2", "b_b"], requires) == ["b-b", "e"]


def test_the_header_says_how_to_fetch_what_the_machine_may_lack():
    header = SCRIPT.read_text().partition("\nset -u")[0]
    own = {"torch", "torchvision", "numpy", "pillow", "tomli"}  # the machine's, or Python's since 3.11
    assert {preflight.name_of(r) for r in preflight.needed()} - own <= {w.strip("\\") for w in header.split()}


def test_needed_packages_are_the_projects():
    names = {preflight.name_of(requirement) for requirement in preflight.needed()}
    assert names >= {
        "torch",
        "torchvision",
        "scikit-learn",
        "tqdm",
        "pytest-benchmark",
        "pybind11",
        "cmake",
        "scikit-build-core",
    }


@pytest.mark.parametrize(
    ("absent", "device", "sentence", "status"),
    [
        ([], None, "preflight: nothing is missing", None),
        (["torch-fidelity"], None, "preflight: this machine lacks torch-fidelity (its tests are left out); ", 0),
        (["tqdm", "triton"], None, "preflight: this machine lacks tqdm, triton (its kernels cannot run); ", 2),
        ([], "a device", "preflight: this machine lacks a device; ", 2),
    ],
)
def test_one_sentence_says_what_is_missing(monkeypatch, capsys, absent, device, sentence, status):
    monkeypatch.setattr(preflight, "missing", lambda requirements: [] if requirements == ["packaging"] else absent)
    monkeypatch.setattr(preflight, "device_problem", lambda: device)
    if status is None:
        preflight.main()
    else:
        with pytest.raises(SystemExit) as stop:
            preflight.main()
        assert stop.value.code == status
    output = capsys.readouterr().out
    assert output.startswith(sentence) and output.count("\n") == 1


# The first part's table


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(paths, "OPTIONS", {"width": 4, "batch_size": 4, "n_dis": 1})
    monkeypatch.setattr(paths, "PRECISIONS", ("fp32",))


def test_paths_of_every_baseline(small, tmp_path):
    with pytest.raises(SystemExit) as stop:
        paths.main(["--out", str(tmp_path / "paths.json")])
    table = json.loads((tmp_path / "paths.json").read_text())
    assert len(table) == 10
    assert table["dcgan + DAT, fp32"]["path"] == "separate" and table["wgan-gp, fp32"]["path"] == "shared"
    assert stop.value.code == 0, table


def test_a_path_that_is_left_fails():
    row = {"path": "separate", "expected_path": "shared", "backend": paths.BEST, "finite": True}
    assert not paths.good(row)
    assert paths.good({**row, "path": "shared"})
    assert not paths.good({**row, "path": "shared", "backend": "reference"})
    assert not paths.good({"error": "ValueError: x"})


# Cells that are written as they end

SUITE = """
import os, signal
import pytest

@pytest.mark.parametrize("cell", range(3))
def test_cell(benchmark, cell):
    benchmark.extra_info["cell"] = cell
    benchmark.pedantic(lambda: os.kill(os.getpid(), signal.SIGKILL) if cell == 2 else None, rounds=2)
"""


def test_cells_survive_a_session_that_is_killed(tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "benchmarks" / "conftest.py").read_text())
    (tmp_path / "test_suite.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--cells", "cells.json", "test_suite.py"]
    environment = OUTSIDE | {"PYTHONPATH": str(ROOT / "benchmarks")}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert run.returncode == -signal.SIGKILL
    cells = json.loads((tmp_path / "cells.json").read_text())["benchmarks"]
    assert [cell["extra_info"] for cell in cells] == [{"cell": 0}, {"cell": 1}]
    assert all(cell["stats"]["rounds"] == 2 for cell in cells)
