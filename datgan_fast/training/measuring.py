"""What a run measures of itself while it trains: means of its scalars, whether all is finite, and time."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from .share import Share


class Statistics:
    """Means of an iteration's scalars and the first step that was not finite, kept on the device and read when asked for.

    Args:
        groups: what is measured together, in the order of an iteration: how many numbers of each name. A name may be in several.
        optional: names whose numbers may be NaN where there was nothing to measure.
        networks: whose parameters are watched, by what they are called.
        scaled: whether each group comes with the scale of its loss, as in float16.
        share: this process's of the run. What is read and saved is of all processes: they do so at the same time. Of a number
            that is optional one process has it, for an image of its own, and the others NaN; every other is the mean of theirs.

    A mean is over all numbers of its name that are finite. Numbers are written as they come into one row of float32, a kernel for
    each group, and looked at together at the iteration's end; what can wait until somebody reads is done then.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, int]],
        optional: Collection[str],
        networks: Mapping[str, nn.Module],
        device: torch.device,
        scaled: bool = False,
        share: Share = Share(),  # noqa: B008  one process's, which nothing changes
    ) -> None:
        self._names = list(dict.fromkeys(name for group in groups for name in group))
        named = [(f"{n} {key}", p) for n, network in networks.items() for key, p in network.named_parameters()]
        self._watched: list[Tensor] = [p for _, p in named]
        self._labels = [*self._names, *(f"weight of the {label}" for label, _ in named)]
        places = [self._names.index(name) for group in groups for name, count in group.items() for _ in range(count)]
        self._count = len(places)
        self._label_of = torch.tensor(
            [*places, *range(len(self._names), len(self._labels))], dtype=torch.int64, device="cpu"
        )
        watched = [label not in optional for label in self._labels]
        self._watches = torch.tensor(watched, dtype=torch.bool, device="cpu")[self._label_of]

        self._share = share
        holders = [
            1 if self._names[i] in optional else share.size for i in places
        ]  # processes that have a number of their own
        self._holders = torch.tensor(holders, dtype=torch.float64, device=device)
        sizes = [sum(group.values()) for group in groups]
        self._row = torch.zeros(len(self._label_of), dtype=torch.float32, device=device)  # this iteration's numbers
        self._groups = list(zip(groups, self._row[: self._count].split(sizes), strict=True))
        self._scales = torch.ones(len(groups), dtype=torch.float32, device=device) if scaled else None
        owners = [i for i, size in enumerate(sizes) for _ in range(size)]
        self._scale_of = torch.tensor(owners, dtype=torch.int64, device=device)

        self.sums = torch.zeros(2, self._count, dtype=torch.float64, device=device)  # of numbers, of how often finite
        self._sound = torch.ones(len(self._row), dtype=torch.bool, device=device)  # finite whenever it counted
        self._last_sound = torch.zeros(len(self._row), dtype=torch.int64, device=device)  # the step until which it was

    def add(self, group: int, scale: Tensor | None = None, **values: Tensor) -> None:
        """The numbers of a group, by name and in its order.

        scale: float32 [], of the loss. Above 1 they may be not finite: its scaler leaves out such a step and lowers it.
        """
        names, row = self._groups[group]
        torch.cat([values[name].detach().reshape(-1) for name in names], out=row)
        if self._scales is not None:
            assert scale is not None
            self._scales[group].copy_(scale)

    @torch.no_grad()
    def watch(self, step: Tensor) -> None:
        """At the end of an iteration, `step` (int64 []): adds it up and notes whether all was finite, weights included."""
        torch.stack(torch._foreach_norm(self._watched), out=self._row[self._count :])
        clean = self._row.nan_to_num(0.0, 0.0, 0.0)
        finite = clean == self._row
        sums, counts = self.sums.unbind()
        sums += clean[: self._count]
        counts += finite[: self._count]
        if self._scales is not None:
            finite[: self._count] |= self._scales[self._scale_of] > 1
        self._sound &= finite
        torch.where(self._sound, step, self._last_sound, out=self._last_sound)

    def read(self) -> dict[str, float]:
        """Means since the last reading; they begin anew. Waits for the device."""
        read = self._everybodys().to("cpu", copy=True)
        self.sums.zero_()
        by_name = read.new_zeros(2, len(self._names)).index_add_(1, self._label_of[: self._count], read)
        totals, counts = by_name.tolist()
        return {
            name: total / count if count else math.nan
            for name, total, count in zip(self._names, totals, counts, strict=True)
        }

    def broken(self) -> tuple[int, list[str]]:
        """The first step in which something was not finite, 0 if all was, and what it was. Waits for the device."""
        steps = self._first_broken().tolist()
        first = min(filter(None, steps), default=0)
        return first, [label for label, step in zip(self._labels, steps, strict=True) if first and step == first]

    def _first_broken(self) -> Tensor:
        """int64, for each label: the step; 0: never."""
        unsound = ~self._sound.cpu() & self._watches
        never = torch.iinfo(torch.int64).max
        steps = torch.where(unsound, self._last_sound.cpu() + 1, never)
        first = torch.full((len(self._labels),), never, dtype=torch.int64, device="cpu")
        first.scatter_reduce_(0, self._label_of, steps, "amin")
        if not self._share.alone:
            first = self._share.least(first.to(self.sums.device)).cpu()
        return first.where(first != never, 0)

    def _everybodys(self) -> Tensor:
        """The sums that one process would have of the whole batches."""
        return self.sums if self._share.alone else self._share.total(self.sums.clone()) / self._holders

    def tensors(self) -> list[Tensor]:
        return [self.sums, self._sound, self._last_sound]

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self._everybodys(), "first_broken": self._first_broken()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        sums, first_broken = state["sums"].to(self.sums), state["first_broken"].cpu()[self._label_of]
        if sums.shape != self.sums.shape:  # before 2026-11-29 there was one sum for each name
            places = [int((self._label_of == i).nonzero()[0]) for i in range(len(self._names))]
            sums = torch.zeros_like(self.sums).index_copy_(
                1, torch.tensor(places, dtype=torch.int64, device=sums.device), sums
            )
        self.sums.copy_(sums)
        if not self._share.alone:  # what all have together
            self.sums.mul_(self._holders if self._share.first else 0)
        self._sound.copy_(first_broken == 0)
        self._last_sound.copy_(first_broken - 1)


class Clock:
    """Training time in seconds, `begun` of them before, without pauses for pictures, evaluations and checkpoints."""

    def __init__(self, device: torch.device, begun: float = 0.0) -> None:
        self.device = device
        self.total = begun
        self._since = self._now()
        self._lap = (0, begun)

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
