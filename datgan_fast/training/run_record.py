"""A run as its pages tell it: what distinguishes its options, what it measured, and where it stands."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..metrics.catalogue import METRICS
from .config import Config
from .option_values import flag
from .options import GENERAL, Options
from .run_folder import RunFolder

# Options from which others follow, and those that follow from these and decide others in turn.
_FIRST = ("baseline", "dat", "dataset", "norm")
_NEXT = ("formulation", "eps", "steps_attack", "batch_size", "lr")
_OF_THE_MACHINE = ("precision", "cuda_graph", "device")  # env.json has what they came to
_COUNTED = ("classes",)  # in the data


class Chosen(NamedTuple):
    """An option that is not what the others would make it."""

    name: str
    value: Any
    default: Any

    @property
    def flag(self) -> str:
        return flag(self.name)


class Value(NamedTuple):
    step: int
    value: float


@dataclass(frozen=True)
class Measured:
    """The values of one metric that were measured in one way, in the order of their steps."""

    metric: str
    protocol: str
    values: list[Value]

    @property
    def title(self) -> str:
        return METRICS[self.metric].title if self.metric in METRICS else self.metric

    @property
    def better(self) -> str:
        return "higher" if self._higher else "lower"

    @property
    def _higher(self) -> bool:
        return self.metric in METRICS and METRICS[self.metric].higher_is_better

    @property
    def last(self) -> Value:
        return self.values[-1]

    @property
    def best(self) -> Value:
        return best(self.values, self._higher)

    def best_of(self, values: Iterable[Value]) -> Value:
        return best(values, self._higher)


def best(values: Iterable[Value], higher: bool) -> Value:
    """The first of those that are best."""
    return (max if higher else min)(values, key=lambda v: v.value)


def chosen_options(config: Config) -> list[Chosen]:
    """What is not as its baseline and data set have it, beside these themselves; of what the machine decides, nothing."""
    values, general = config.typed(), GENERAL
    same = {name: values[name] for name in _OF_THE_MACHINE}
    first = Options(**{name: values[name] for name in _FIRST}, **same).recorded().typed()
    then = {name: values[name] for name in _NEXT if values[name] != first[name]}
    base = Options(**{name: values[name] for name in _FIRST}, **same, **then).recorded().typed()
    defaults = base | {name: first[name] for name in _NEXT} | {name: general[name] for name in _FIRST}
    different = (name for name in values if values[name] != defaults[name] and name not in _COUNTED)
    return [Chosen(name, values[name], defaults[name]) for name in different]


def measured(run: RunFolder) -> list[Measured]:
    """Each metric in the catalogue's order, once for each protocol. Records that are none are left out."""
    found: dict[tuple[str, str], list[Value]] = {}
    for record in run.records("metrics"):
        metric, value, protocol = (record.get(key) for key in ("metric", "value", "protocol"))
        if isinstance(metric, str) and isinstance(value, (int, float)) and math.isfinite(value):
            found.setdefault((metric, str(protocol)), []).append(Value(record["step"], float(value)))
    order = list(METRICS)
    rows = [Measured(metric, protocol, values) for (metric, protocol), values in found.items()]
    return sorted(rows, key=lambda m: order.index(m.metric) if m.metric in order else len(order))


def environment(run: RunFolder) -> list[tuple[str, str]]:
    """What it was made with, in words."""
    found = run.environment()
    if isinstance(command := found.get("command"), list):
        found["command"] = _as_typed([str(word) for word in command])
    return [(name.replace("_", " "), text) for name, value in found.items() if (text := _in_words(value))]


def _as_typed(command: list[str]) -> str:
    """A module that was run is known by its name, wherever it lies."""
    python, *arguments = command
    if arguments and (module := Path(arguments[0])).parent.name == "datgan_fast":
        arguments[0:1] = ["-m", f"datgan_fast.{module.stem}"]
    return shlex.join([python, *arguments])


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {'yes' if of is None else of}" for name, of in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def last_step(run: RunFolder) -> int:
    """As far as it has logged or drawn."""
    steps = [*(r["step"] for r in run.records("stats")), *(step for step, _ in run.samples())]
    return max(steps, default=0)


def options(config: Config) -> list[tuple[str, Any]]:
    """All of them, as they are typed."""
    values = config.typed()
    return [(flag(f.name), values[f.name]) for f in dataclasses.fields(config)]
