"""What a run measures of itself while it trains: means of its scalars, and time."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor


class Averages:
    """Means of per-step scalars, summed on the device and read once per log interval; NaN entries are left out."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            pair = torch.stack([torch.nan_to_num(value.detach().float(), nan=0.0), (~value.isnan()).float()])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def read(self) -> dict[str, float]:
        if not self.sums:
            return {}
        rows = torch.stack(list(self.sums.values())).tolist()
        means = {
            name: total / count if count else math.nan for name, (total, count) in zip(self.sums, rows, strict=True)
        }
        self.sums = {}
        return means


class Clock:
    """Training time, without pauses for pictures, evaluations and checkpoints."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.total = 0.0
        self._since = self._now()
        self._lap = (0, 0.0)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def lap(self, step: int) -> tuple[int, float]:
        """(steps, seconds) since the last lap."""
        now = self._now()
        self.total += now - self._since
        self._since = now
        last_step, last_total = self._lap
        self._lap = (step, self.total)
        return step - last_step, self.total - last_total

    def paused(self) -> Clock:
        return self

    def __enter__(self) -> None:
        self._paused_at = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._since += time.perf_counter() - self._paused_at
