"""The machine of every pytest-benchmark report, as record.py describes it, how many rounds to measure, and --cells.

pytest-benchmark writes its report when the session ends, so a session that is killed leaves none. `--cells FILE` writes the
cells that have ended after each of them, in the report's layout.
"""

import json
from pathlib import Path

import pytest

import record

_CELLS = pytest.StashKey[list]()


def pytest_addoption(parser):
    parser.addoption("--cells", type=Path, metavar="FILE", help="write every benchmark here as soon as it has ended")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    file, benchmark = item.config.getoption("--cells"), item.funcargs.get("benchmark")
    if file is None or benchmark is None or benchmark.stats is None or benchmark.has_error:
        return
    statistics = benchmark.stats.stats
    figures = {name: getattr(statistics, name) for name in ("min", "median", "stddev", "rounds")}
    cells = item.config.stash.setdefault(_CELLS, [])
    cells.append({"name": item.name, "stats": figures, "extra_info": dict(benchmark.extra_info)})
    record.write_whole(file, json.dumps({"benchmarks": cells}))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info):
    machine_info |= record.environment()


@pytest.fixture
def rounds(request) -> int:
    """Of functions measured side by side: pytest-benchmark's own --benchmark-min-rounds, 5 unless given."""
    return request.config.getoption("--benchmark-min-rounds")
