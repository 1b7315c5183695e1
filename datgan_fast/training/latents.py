"""Latents and classes of the picture that is asked of a generator: any images, a way from one to another, each class."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Asked(NamedTuple):
    latents: Tensor  # float32 [n, z_dim] on the CPU
    labels: Tensor | None  # int64 [n] on the CPU, for a generator with classes
    columns: int | None  # of the grid; None: it is square


def drawn(n: int, z_dim: int, random: torch.Generator) -> Tensor:
    return torch.randn(n, z_dim, generator=random, dtype=torch.float32, device="cpu")


def interpolated(rows: int, columns: int, z_dim: int, random: torch.Generator) -> Tensor:
    """[rows * columns, z_dim]: in each row the way from one latent to another.

    cos(t) a + sin(t) b with t from 0 to a right angle, for a and b drawn from N(0, I): every latent on it is distributed as
    those that the generator was trained with. On the straight line the middle ones are shorter by the square root of two, which
    it has never seen (White 2016, "Sampling Generative Networks"); White's slerp is this way where a and b are at right angles,
    as independent latents of many dimensions nearly are.
    """
    a, b = drawn(2 * rows, z_dim, random).view(2, rows, 1, z_dim)
    t = torch.linspace(0, math.pi / 2, columns, dtype=torch.float32, device="cpu")[:, None]
    way = t.cos() * a + t.sin() * b
    way[:, -1:] = b  # for which cos is not quite 0
    return way.flatten(0, 1)


def each_class(classes: int, columns: int, z_dim: int, random: torch.Generator) -> Asked:
    """A row for each class, and in every row the same latents: a column shows what the class alone changes."""
    latents = drawn(columns, z_dim, random).repeat(classes, 1)
    return Asked(latents, rows_of_classes(range(classes), columns), columns)


def rows_of_classes(of_rows: range | list[int], columns: int) -> Tensor:
    return torch.tensor(list(of_rows), dtype=torch.int64, device="cpu").repeat_interleave(columns)
