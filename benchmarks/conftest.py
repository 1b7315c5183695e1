"""The machine of every pytest-benchmark report, as record.py describes it, and how many rounds to measure."""

import pytest

import record


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info):
    machine_info |= record.environment()


@pytest.fixture
def rounds(request) -> int:
    """Of functions measured side by side: pytest-benchmark's own --benchmark-min-rounds, 5 unless given."""
    return request.config.getoption("--benchmark-min-rounds")
