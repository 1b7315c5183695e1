"""One batch spread over processes: what they tell each other in a step, so that it is the whole batch's.

Each process sends its own images through its own replica. What it must know of the others' is a few numbers: how many images
there are, and the sums whose means the attack aims at. They are gathered once, when the clean scores are there, and no gradient
flows through them. Gradients and losses are a process's part times the number of processes, so that their plain mean over
the processes, which is what DDP computes, is the whole batch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist

from . import waiting
from .arguments import SIDES, Attack, Pair
from .formulas import as_float
from .reference_operations import Aims, compared, towards_means
from .scores import ScoredSides, Scores

Over = Literal["real", "fake", "pairs", "both"]  # the images that a penalty is a mean over
OVER: tuple[Over, ...] = ("real", "fake", "pairs", "both")


def of_group(group: Any, m: int, n: int, device: torch.device) -> Processes | None:
    """The processes of a torch.distributed group; None for one without others. Raises TypeError for no group, ValueError for one
    that this process is not in."""
    if group is None:
        return None
    if not isinstance(group, dist.ProcessGroup):
        if group is dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError(
                "group must be one that this process is in; got torch.distributed.GroupMember.NON_GROUP_MEMBER"
            )
        raise TypeError(f"group must be a torch.distributed process group; got {type(group).__name__}")
    return None if dist.get_world_size(group) == 1 else Processes(group, m, n, device)


class Processes:
    """Those that share the batch of one step.

    Attributes:
        size: their number.
        own: this one's numbers of real and of generated images.
    """

    def __init__(self, group: Any, m: int, n: int, device: torch.device) -> None:
        self.size, self.own = dist.get_world_size(group), (m, n)
        self._group, self._device = group, device
        self._aims: dict[int, list[Aims]] = {}
        self._images: Tensor | None = None  # of each process, as OVER counts them

    def aims(self, scores: ScoredSides, attack: Attack, when: int = 0) -> list[Aims]:
        """Of each scale, over the images of all processes. `when`: how far the images have come, 0 for clean ones; each is told
        once, whoever asks first."""
        if when not in self._aims:
            self._aims[when] = self._exchanged(scores, attack)
        return self._aims[when]

    def _exchanged(self, scores: ScoredSides, attack: Attack) -> list[Aims]:
        m, n = self.own
        numbers: list[int | Tensor] = [m, n, min(m, n), m + n]
        scales = list(zip(*(side.split() for side in scores), strict=True))
        for logits in scales:
            for t in compared((logits[0].detach(), logits[1].detach()), attack.objective, attack.formulation):
                numbers += [len(t), as_float(t).sum(dtype=torch.float64)]
        told = self._gathered(torch.stack([self._number(x) for x in numbers]))
        self._images = told[:, : len(OVER)]
        counts, sums = told[:, len(OVER) :].sum(0).view(-1, 2, 2).unbind(2)
        if not waiting.looking_waits(self._device) and bool((counts == 0).any()):
            raise ValueError("a step needs at least one real and one generated image in all its processes together")
        dtype = as_float(scores[0].logits).dtype
        means = (sums / counts).to(dtype)
        return [
            towards_means((mean[0], mean[1]), (count[0], count[1]), attack.objective, attack.formulation)
            for mean, count in zip(means.unbind(), counts.unbind(), strict=True)
        ]

    def _number(self, x: int | Tensor) -> Tensor:
        if isinstance(x, Tensor):
            return x
        return torch.full((), x, dtype=torch.float64, device=self._device)  # no copy from the host, which would wait

    def _gathered(self, numbers: Tensor) -> Tensor:
        """[processes, ...] of what each has: the same bits everywhere, which a sum on the way need not be."""
        told = numbers.new_empty(self.size, len(numbers))
        dist.all_gather(list(told.unbind()), numbers, group=self._group)
        return told

    def share(self, over: Over) -> Tensor:
        """0-d: by which a mean over this process's images becomes its part of the mean over all."""
        assert self._images is not None  # somebody has asked for the aims
        column = OVER.index(over)
        return (self._counted(over) * self.size) / self._images[:, column].sum()

    def counts(self, over: Over) -> bool:
        """Whether this process has any of those images."""
        return self._counted(over) > 0

    def _counted(self, over: Over) -> int:
        m, n = self.own
        return {"real": m, "fake": n, "pairs": min(m, n), "both": m + n}[over]

    def part(self, over: Over, mean: Tensor) -> Tensor:
        """This process's part of the mean over all, of its own mean."""
        return mean * self.share(over).to(mean.dtype)

    def part_of_loss(self, loss: Tensor) -> Tensor:
        """One that this process has computed of all scores: its own value, and the gradient's part of this one."""
        return loss + (self.size - 1) * (loss - loss.detach())

    def everybodys(self, scores: ScoredSides) -> ScoredSides:
        """The scores of all processes, one process's behind another's; through this one's own a gradient flows.

        Waits for the device: messages are as long as the largest batch.
        """
        assert self._images is not None
        sizes = self._images[:, :2].long().tolist()
        most = [max(side) for side in zip(*sizes, strict=True)]
        widths = [sum(side.widths) for side in scores]
        padded = [
            torch.cat([t.flatten(), t.new_zeros(largest * width - t.numel())])
            for t, largest, width in zip((as_float(s.logits.detach()) for s in scores), most, widths, strict=True)
        ]
        told = self._gathered(torch.cat(padded)).split([len(t) for t in padded], 1)
        rank = dist.get_rank(self._group)
        return tuple(  # type: ignore[return-value]
            self._with_own(side, told[k], [size[k] for size in sizes], rank) for k, side in enumerate(scores)
        )

    def _with_own(self, own: Scores, told: Tensor, sizes: Sequence[int], rank: int) -> Scores:
        shape = own.logits.shape[1:]
        width = sum(own.widths)
        parts = [row[: size * width].view(size, *shape) for row, size in zip(told, sizes, strict=True)]
        parts[rank] = as_float(own.logits)
        return own._replace(logits=torch.cat(parts))

    def own_rows(self, tensors: Pair) -> Pair:
        """Of what has a row for every score of `everybodys` those of this process."""
        assert self._images is not None
        before = self._images[: dist.get_rank(self._group), :2].sum(0).long().tolist()
        real, fake = (t[start : start + count] for t, start, count in zip(tensors, before, self.own, strict=True))
        return real, fake


def difference_of_means(real: Tensor, fake: Tensor, processes: Processes | None) -> Tensor:
    """mean r - mean f, 0-d: the Wasserstein estimate, of several processes this one's part."""
    if processes is None:
        return real.mean() - fake.mean()
    parts = [
        sign * processes.part(side, t.mean())
        for side, t, sign in zip(SIDES, (real, fake), (1, -1), strict=True)
        if processes.counts(side)
    ]
    return torch.stack(parts).sum()
