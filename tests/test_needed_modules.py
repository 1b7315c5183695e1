"""Tests that need a module or a command which may be missing are left out, but not where it must be there."""

from types import SimpleNamespace

import pytest

from conftest import pytest_runtest_setup


def item(*modules):
    return SimpleNamespace(iter_markers=lambda name: [SimpleNamespace(args=modules)] if name == "needs" else [])


def test_a_missing_module_is_named(monkeypatch):
    monkeypatch.delenv("DATGAN_FAST_TESTS_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no_such_module is not installed"):
        pytest_runtest_setup(item("torch", "no_such_module"))


def test_a_module_that_must_be_there(monkeypatch):
    monkeypatch.setenv("DATGAN_FAST_TESTS_REQUIRE", "torch,no_such_module")
    with pytest.raises(pytest.fail.Exception, match="no_such_module is not installed, and DATGAN_FAST_TESTS_REQUIRE"):
        pytest_runtest_setup(item("no_such_module"))


def test_a_module_that_is_there():
    pytest_runtest_setup(item("torch"))
    pytest_runtest_setup(item())


def test_a_command_that_is_there():
    pytest_runtest_setup(item("sh"))
