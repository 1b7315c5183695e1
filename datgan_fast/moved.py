"""Modules that are found at the package's door and live inside: public ones, and those that version 0.1 had there, which warn."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = __package__
PUBLIC = {"penalties": "method.penalties", "reference": "method.reference"}
MOVED = {
    "cuda_graph": "training.cuda_graph",
    "dispatch": "method.dispatch",
    "evaluation": "metrics.evaluator",
    "feature_network": "metrics.feature_network",
    "generator_file": "training.checkpoints",
    "independence": "method.independence",
    "iteration": "training.iteration",
    "networks": "training.networks",
    "ops": "method.ops",
    "run_folder": "training.run_folder",
    "step": "method.step",
    "trainer": "training.trainer",
}


class _Finder:
    """Gives a public name its module, and an old name one with the new one's contents."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, module = name.rpartition(".")
        if package != PACKAGE or (module not in MOVED and module not in PUBLIC):
            return None
        return ModuleSpec(name, self)  # type: ignore[arg-type]  # importlib.abc's Loader takes longer to import than all this

    def create_module(self, spec: ModuleSpec) -> None:
        """A module as Python makes it."""

    def exec_module(self, module: ModuleType) -> None:
        old, name = module.__name__, module.__name__.rpartition(".")[2]
        if name in PUBLIC:
            sys.modules[old] = importlib.import_module(f"{PACKAGE}.{PUBLIC[name]}")
            return
        new = f"{PACKAGE}.{MOVED[name]}"
        warnings.warn(f"{old} has moved; import {new}", DeprecationWarning, stacklevel=2)
        contents = vars(importlib.import_module(new))
        vars(module).update({name: value for name, value in contents.items() if not name.startswith("__")})


def find_moved_modules() -> None:
    """From now on, in this process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
