"""What a run measures of itself while it trains: means of its scalars, whether all is finite, and time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Statistics:
    """Means of an iteration's scalars and the first step that was not finite, kept on the device and read when asked for.

    Args:
        names: the scalars.
        optional: those of them that may be NaN where there was nothing to measure, which is left out of the mean.
        networks: whose parameters are watched, by what they are called.
    """

    def __init__(
        self, names: Sequence[str], optional: Sequence[str], networks: Mapping[str, nn.Module], device: torch.device
    ) -> None:
        self._places = {name: i for i, name in enumerate(names)}
        named = [(f"{n} {key}", p) for n, network in networks.items() for key, p in network.named_parameters()]
        self._watched: list[Tensor] = [p for _, p in named]
        self._labels = [*names, *(f"weight of the {label}" for label, _ in named)]
        self.sums = torch.zeros(2, len(names), dtype=torch.float64, device=device)  # of values, of their counts
        self._required = torch.tensor([name not in optional for name in names], device=device, dtype=torch.bool)
        self._broken = torch.zeros(len(names), dtype=torch.bool, device=device)  # in this iteration
        self.first_broken = torch.zeros(len(self._labels), dtype=torch.int64, device=device)  # step; 0: never

    def add(self, overflow_expected: Tensor | None = None, **values: Tensor) -> None:
        """0-d tensors of scalars that stand next to each other in `names`.

        overflow_expected: bool [], where true they may be not finite, as in a float16 step that its scaler leaves out.
        """
        start = self._places[next(iter(values))]
        columns = slice(start, start + len(values))
        row = torch.stack([value.detach().float() for value in values.values()])
        finite = row.isfinite()
        self.sums[0, columns] += torch.where(finite, row, 0.0)
        self.sums[1, columns] += finite
        broken = ~finite & self._required[columns]
        self._broken[columns] |= broken if overflow_expected is None else broken & ~overflow_expected

    @torch.no_grad()
    def watch(self, step: Tensor) -> None:
        """At an iteration's end: notes its step (int64 []) for each scalar and weight that was not finite for the first time."""
        norms = torch.stack([norm.float() for norm in torch._foreach_norm(self._watched)])
        broken = torch.cat([self._broken, ~norms.isfinite()])
        self.first_broken.copy_(torch.where((self.first_broken == 0) & broken, step, self.first_broken))
        self._broken.zero_()

    def read(self) -> dict[str, float]:
        """Means since the last reading; they begin anew. Waits for the device."""
        totals, counts = self.sums.tolist()
        self.sums.zero_()
        return {name: totals[i] / counts[i] if counts[i] else math.nan for name, i in self._places.items()}

    def broken(self) -> tuple[int, list[str]]:
        """The first step in which something was not finite, 0 if all was, and what it was. Waits for the device."""
        steps = self.first_broken.tolist()
        first = min(filter(None, steps), default=0)
        return first, [label for label, step in zip(self._labels, steps, strict=True) if first and step == first]

    def tensors(self) -> list[Tensor]:
        return [self.sums, self.first_broken, self._broken]

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums, "first_broken": self.first_broken}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.sums.copy_(state["sums"])
        self.first_broken.copy_(state["first_broken"])


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
        self._paused_at = self._now()

    def __exit__(self, *error: object) -> None:
        self._since += time.perf_counter() - self._paused_at
