"""Every public name has an example in its docstring, and every example runs and gives what it says."""

import doctest
import inspect
import re

import pytest
import torch
from torch import nn

import datgan_fast as dat
import layers

MODULES = {"dat": dat, "dat.penalties": dat.penalties, "dat.reference": dat.reference}
NAMES = {f"{place}.{name}": getattr(module, name) for place, module in MODULES.items() for name in module.__all__}


def examples(name: str, thing: object) -> list[doctest.DocTest]:
    """Of its docstring, and of a class's methods'."""
    found = doctest.DocTestFinder(exclude_empty=False).find(
        thing, name, module=False, globs={"torch": torch, "nn": nn, "dat": dat}
    )
    if inspect.ismodule(thing):  # its members have names of their own here
        found = [test for test in found if test.name == name]
    return [test for test in found if test.examples]


def carries_docstring(thing: object) -> bool:
    return inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isfunction(thing)


@pytest.mark.parametrize("name", [name for name, thing in NAMES.items() if carries_docstring(thing)])
def test_example(name, one_thread, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tests = examples(name, NAMES[name])
    assert tests and tests[0].name == name, f"{name} has no example in its docstring"
    for test in tests:
        torch.manual_seed(0)
        report = []
        failed, _ = doctest.DocTestRunner().run(test, out=report.append)
        assert not failed, "".join(report)


def test_the_api_page_has_every_name():
    page, listed = (layers.ROOT / "docs/api.md").read_text(encoding="utf-8"), set()
    for directive, name in re.findall(r"^\.\. (\w+):: ([\w.]+)", page, re.M):
        if directive in ("currentmodule", "automodule"):
            place = name.replace("datgan_fast", "dat")
        listed.add(place if "module" in directive else f"{place}.{name}")
    shared = {"dat.reference.AttackStep", "dat.reference.DiscriminatorStep"}  # the library's own
    assert {name for name, thing in NAMES.items() if carries_docstring(thing)} - shared <= listed


def test_constants_stand_in_their_modules_example():
    """Tables and types, which have no docstring of their own."""
    for name in (name for name, thing in NAMES.items() if not carries_docstring(thing)):
        place = name.rpartition(".")[0]
        assert any(name in example.source for test in examples(place, MODULES[place]) for example in test.examples), (
            name
        )


def test_an_example_that_is_wrong_is_found():
    def twice(x):
        """
        >>> 2 * 2
        5
        """

    (test,) = examples("twice", twice)
    assert doctest.DocTestRunner().run(test, out=lambda line: None).failed == 1
