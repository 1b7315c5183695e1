"""A discriminator's scores: one logit per image, a map or tokens with many, or several such at different scales.

Whatever they are, they travel as one tensor, so that one backward serves them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import Pair


class Scores(NamedTuple):
    """What D thinks of a batch."""

    logits: Tensor  # [n], one per image; or [n, positions], scale after scale
    widths: tuple[int, ...] = (1,)  # positions of each scale

    @property
    def single(self) -> bool:
        """Whether each image has one logit."""
        return self.logits.dim() == 1

    def detach(self) -> Scores:
        return self._replace(logits=self.logits.detach())

    def rows(self, where: slice) -> Scores:
        return self._replace(logits=self.logits[where])

    def split(self, like: Tensor | None = None) -> list[Tensor]:
        """Of each scale the logits, or what belongs to them, of all images and positions in one row."""
        t = self.logits if like is None else like
        return [t] if self.single else [part.reshape(-1) for part in t.split(self.widths, 1)]

    def scales(self) -> list[Tensor]:
        """Of each scale the logits, [n] or [n, positions]."""
        return [self.logits] if self.single else list(self.logits.split(self.widths, 1))

    def join(self, parts: list[Tensor]) -> Tensor:
        """What `split` has taken apart."""
        if self.single:
            return parts[0]
        return torch.cat([part.view(-1, width) for part, width in zip(parts, self.widths, strict=True)], 1)

    def shares(self) -> Tensor:
        """Of each logit in its image's score."""
        if self.single:
            return torch.ones_like(self.logits)
        t = self.logits
        parts = [torch.full((width,), 1 / width, dtype=t.dtype, device=t.device) for width in self.widths]
        return torch.cat(parts).expand_as(t)

    def by_image(self) -> Tensor:
        """[n]: the mean over an image's positions, summed over the scales."""
        if self.single:
            return self.logits
        return torch.stack([part.mean(1) for part in self.logits.split(self.widths, 1)]).sum(0)

    def summed(self) -> Tensor:
        """[n]: the sum of an image's logits at all positions and scales, whose gradient zero-centred penalties take."""
        return self.logits if self.single else self.logits.sum(1)

    def weights_by_image(self, weights: Tensor, alike: bool) -> Tensor:
        """[n]: by which factor the gradient of the weighted logits is that of each image's score. NaN where there is none, unless
        an objective's weights are alike at all positions of a scale."""
        if self.single:
            return weights
        return weights[:, 0] * self.widths[0] if alike else torch.full_like(weights[:, 0], torch.nan)


ScoredSides = tuple[Scores, Scores]  # real, fake


def by_scale(scores: ScoredSides, target: ScoredSides) -> Iterator[tuple[Pair, Pair, tuple[int, int]]]:
    """Of each scale both sides' logits, in one row each, those that are their targets, and their numbers of positions."""
    check_scales(*scores)
    for r, f, target_r, target_f, k_r, k_f in zip(
        *(t.split() for t in (*scores, *target)), *(t.widths for t in scores), strict=True
    ):
        yield (r, f), (target_r, target_f), (k_r, k_f)


def check_scales(real: Scores, fake: Scores) -> None:
    if len(real.widths) != len(fake.widths):
        raise ValueError(
            "real and generated images must have scores at the same number of scales; "
            f"got {len(real.widths)} and {len(fake.widths)}"
        )


def scores_in(output: Any, count: int) -> Scores:
    """The scores of `count` images. Raises ValueError where they are none."""
    scales = output if isinstance(output, list) else [output]
    if not scales or not all(_fits(t, count) for t in scales):
        raise ValueError(
            f"the discriminator must give one logit per image: {count} images gave {_shown(output)}; {_hint(output, count)}"
        )
    widths = tuple(t.numel() // count if count else math.prod(t.shape[1:]) for t in scales)
    if widths == (1,):
        return Scores(scales[0].reshape(-1))
    rows = [t.reshape(count, width) for t, width in zip(scales, widths, strict=True)]
    return Scores(rows[0] if len(rows) == 1 else torch.cat(rows, 1), widths)


def _fits(t: Any, count: int) -> bool:
    if not isinstance(t, Tensor):
        return False
    if t.numel() == count:
        return True
    rows = t.dim() > 1 and t.shape[0] == count and t.numel() > 0
    return rows and (t.dim() == 2 or t.shape[1] == 1 or (t.dim() == 3 and t.shape[2] == 1))


def _shown(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    name = type(output).__name__
    if isinstance(output, (list, tuple)):
        return f"{name} of {', '.join(map(_shown, output)) or 'nothing'}"
    return f"{name} with {', '.join(map(str, output))}" if isinstance(output, dict) else name


def _hint(output: Any, count: int) -> str:
    """What could be done about it."""
    kinds = f"scores may also be a map [{count}, 1, ...], tokens [{count}, t] or a list of such"
    if isinstance(output, dict) and output:
        out = f"out[{next(iter(output))!r}]"
    elif isinstance(output, (list, tuple)) and output:
        out = "out[0]"
    elif isinstance(output, Tensor) and output.dim() > 2 and len(output) == count:
        out = "out.flatten(1)"
    else:
        return kinds
    return f"{kinds}, and scores=lambda out: {out} would take them out of that"
