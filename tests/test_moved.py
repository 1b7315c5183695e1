"""Modules are found under the paths they had before they were sorted into packages, with a warning."""

import importlib

import pytest

import datgan_fast
from datgan_fast.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_the_old_path_has_the_new_ones_names(old):
    with pytest.warns(DeprecationWarning, match=rf"datgan_fast\.{old} has moved; import datgan_fast\.{MOVED[old]}"):
        importlib.reload(importlib.import_module(f"datgan_fast.{old}"))
    before, now = importlib.import_module(f"datgan_fast.{old}"), importlib.import_module(f"datgan_fast.{MOVED[old]}")
    names = [name for name, value in vars(now).items() if getattr(value, "__module__", None) == now.__name__]
    assert names and all(getattr(before, name) is getattr(now, name) for name in names if not name.startswith("__"))


def test_public_modules_are_importable_by_their_public_names():
    import datgan_fast.penalties as penalties
    import datgan_fast.reference as reference

    assert penalties is datgan_fast.penalties and reference is datgan_fast.reference
    assert penalties.r1 and reference.attack_loss


def test_other_names_are_still_missing():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("datgan_fast.no_such_module")
