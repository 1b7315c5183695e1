"""An option's value, from a command line or a config file: as its type, checked, or one sentence that says why not."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, not_one_of


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# Branches: one for each kind.
def convert(name: str, value: Any, kind: type) -> Any:
    """One option's value as its kind: bool, int, float or str; of a Path a str too, in which ~ is the home folder."""
    try:
        if kind is bool and isinstance(value, bool):
            return value
        if kind is int and not isinstance(value, bool):
            number = int(value)
            if isinstance(value, str) or number == value:
                return number
        if kind is float and not isinstance(value, bool):
            real = float(value)
            if math.isfinite(real):
                return real
        if kind in (str, Path) and isinstance(value, (str, Path, int, float)) and not isinstance(value, bool):
            return os.path.expanduser(str(value)) if kind is Path else str(value)
    except (TypeError, ValueError, OverflowError):
        pass
    wanted = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text", Path: "a path"}
    # A file may hold a value of any depth and length.
    said = value if isinstance(value, str) else reprlib.repr(value)
    raise ConfigError(f"{flag(name)} {' '.join(said[:200].split())}: must be {wanted[kind]}")


def check_value(name: str, value: Any, check: Mapping[str, Any]) -> None:
    """Raises ConfigError where a value breaks its field's check."""
    if value is None:
        return
    if "choices" in check and value not in check["choices"]:
        raise not_one_of(flag(name), value, check["choices"])
    bounds: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
        "at_least": (lambda v, b: v >= b, "at least"),
        "more_than": (lambda v, b: v > b, "more than"),
        "at_most": (lambda v, b: v <= b, "at most"),
        "less_than": (lambda v, b: v < b, "less than"),
    }
    broken = any(key in check and not holds(value, check[key]) for key, (holds, _) in bounds.items())
    if broken:
        wanted = " and ".join(f"{words} {check[key]}" for key, (_, words) in bounds.items() if key in check)
        raise ConfigError(f"{flag(name)} {value}: must be {wanted}")
