"""The machine of every pytest-benchmark report, as record.py describes it."""

import pytest

import record


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info):
    machine_info |= record.environment()
