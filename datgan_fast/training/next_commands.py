"""What one would do with a run that has come to its end: commands with its path, as the user would type them."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..commands import spelled
from ..data.datasets import OWN
from .config import Config


def next_commands(run: Path, config: Config, processes: int) -> list[str]:
    """A line each; none for what needs networks or images that were handed over in Python. processes: of torchrun's."""
    if config.architecture == OWN:
        return []
    path = shlex.quote(str(run))
    lines = [f"draw more: {spelled('sample')} {path}"]
    if config.dataset != OWN:
        train = f"torchrun --nproc-per-node {processes} -m datgan_fast.train" if processes > 1 else spelled("train")
        lines += [
            f"measure: {spelled('evaluate')} {path}",
            f"go on: {train} --resume {path} --steps {2 * config.steps}",
        ]
    return lines
