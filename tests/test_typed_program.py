"""The program whose types mypy checks runs, and it names all that is public."""

import math
from pathlib import Path

import torch
from torch import nn

import datgan_fast as dat
import typed_program


def test_the_program_runs():
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.LeakyReLU(), nn.Linear(8, 1), nn.Flatten(0))
    real, fake = torch.rand(2, 4, 3, 2, 2)
    losses = typed_program.program(discriminator, real, fake)
    assert all(map(math.isfinite, losses.values())) and len(losses) == 5
    assert typed_program.problems().keys() == dat.backends().keys()


def test_every_public_name_is_in_it():
    text = Path(typed_program.__file__).read_text(encoding="utf-8")
    assert [name for name in dat.__all__ if f"dat.{name}" not in text] == []
