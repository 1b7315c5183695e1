"""Compares two result files of the same device: exit status 1 if a cell became slower by more than both files' noise.

    python benchmarks/compare.py OLD NEW

A cell's speed is its ratio to something beside it in the same run where there is one (the reference, a copy), which
survives a machine that changes its speed; else its time. Exit status 2 and one sentence: the files cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import record

LEAST = 0.03  # slower by less is never told: a few quiet rounds look quieter than the machine is


class Speed(NamedTuple):
    """More is better; noise is a fraction of it."""

    kind: str
    value: float
    noise: float


class Row(NamedTuple):
    cell: str
    kind: str
    old: float
    new: float
    slower: float  # 0.1: takes 10 % longer
    allowed: float


def speeds(result: dict[str, Any]) -> Iterator[tuple[str, Speed]]:
    for benchmark in result["benchmarks"]:
        name = benchmark["name"]
        for provider, figure in benchmark.get("providers", {}).items():
            if "speedup" in figure:
                speed = Speed("times the reference", figure["speedup"], figure["speedup_noise"])
            else:
                speed = Speed("per second", 1e3 / figure["ms"], figure["ms_noise"])
            yield f"{name} {provider}", speed
        if "providers" not in benchmark:
            noise = benchmark["noise"] if "noise" in benchmark else benchmark["stddev"] / benchmark["median"]
            if "fraction_of_copy" in benchmark:
                yield name, Speed("of a copy", benchmark["fraction_of_copy"], noise)
            else:
                yield name, Speed("per second", 1e6 / benchmark["microseconds"], noise)


def machine(result: dict[str, Any]) -> str:
    return result["device"] if result.get("devices") else f"{result['device']} with {result.get('threads')} threads"


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Row]:
    """A row for every cell that both have. Raises ResultError."""
    if machine(old) != machine(new):
        raise record.ResultError(f"the results are of different devices: {machine(old)} and {machine(new)}")
    try:
        before, after = dict(speeds(old)), dict(speeds(new))
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise record.ResultError(f"a benchmark lacks what benchmarks/record.py writes ({error!r})") from None
    rows = [
        Row(cell, a.kind, a.value, b.value, a.value / b.value - 1, max(LEAST, a.noise + b.noise))
        for cell, a in before.items()
        if (b := after.get(cell)) is not None and a.kind == b.kind
    ]
    if not rows:
        raise record.ResultError("the results have no cell in common")
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(arguments)
    try:
        rows = compare(record.read(options.old), record.read(options.new))
    except record.ResultError as error:
        print(f"compare: {error}", file=sys.stderr)
        raise SystemExit(2) from None

    width = max(len(row.cell) for row in rows)
    print(f"{'cell':{width}}  {'old':>9}  {'new':>9}  {'slower':>8}  {'allowed':>8}")
    for row in sorted(rows, key=lambda row: row.allowed - row.slower):
        verdict = "  SLOWER" if row.slower > row.allowed else ""
        print(
            f"{row.cell:{width}}  {row.old:9.3f}  {row.new:9.3f}  {row.slower:8.1%}  {row.allowed:8.1%}  {row.kind}{verdict}"
        )
    slower = sum(row.slower > row.allowed for row in rows)
    print(f"{slower} of {len(rows)} cells became slower by more than their noise")
    raise SystemExit(1 if slower else 0)


if __name__ == "__main__":
    main()
