"""What runs have recorded of the theory, as series: the lines of their theory.jsonl, by variant and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Records = Sequence[
    Mapping[str, Any]
]  # a run's lines: its step, and measure()'s numbers, None where they were not finite
Runs = Mapping[str, Sequence[Records]]  # by variant, "plain" and "DAT"; each has the same seeds in the same order


def values(records: Records, name: str) -> np.ndarray:
    """float64 [lines], NaN where there is no number."""
    return np.array([np.nan if r.get(name) is None else r[name] for r in records], dtype=np.float64)


def together(runs: Sequence[Records], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps that all these runs recorded, and what they have there, [runs, steps]."""
    steps = sorted(set.intersection(*({r["step"] for r in records} for records in runs))) if runs else []
    rows = []
    for records in runs:
        by_step = {r["step"]: r for r in records}
        rows.append(values([by_step[step] for step in steps], name))
    return np.array(steps), np.array(rows, dtype=np.float64).reshape(len(runs), len(steps))
