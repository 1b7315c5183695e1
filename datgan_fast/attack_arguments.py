"""What an attack step is told and given, put together once and handed down from step.py and ops.py to the backends."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Pair = tuple[Tensor, Tensor]  # (real, fake)
OptionalPair = tuple[Tensor | None, Tensor | None]


class Attack(NamedTuple):
    """How images are attacked; the fields are the arguments of `datgan_fast.attack_step`, in the operation's order."""

    eps: float
    objective: str
    formulation: str
    norm: str
    clip_min: float | None
    clip_max: float | None


class AttackInputs(NamedTuple):
    """The tensors an attack step reads."""

    x: Pair  # images
    v: Pair  # the discriminator's input gradients
    logits: Pair
    references: Pair  # the logits whose means are the targets
    weights: OptionalPair = (None, None)  # factors in the rows of v; None: 1
