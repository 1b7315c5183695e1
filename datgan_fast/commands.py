"""The commands: what each is for, and how the user calls them, for help, messages and what to do next.

A new one is a row here and a module of its name with build_parser() and main(argv).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

COMMANDS = {
    "train": "train a GAN, with direct adversarial training or without",
    "sample": "draw images, or points, of a trained generator, or export it",
    "evaluate": "measure a trained generator",
    "compare": "put several runs on one page",
    "attack": "count the attack steps that fool a trained discriminator (Figure 1)",
    "reproduce": "run the paper's figures and report what came out",
    "contours": "draw critics' contour lines on toy data, without and with DAT",
    "doctor": "say what works on this machine and why the rest does not",
}

_prefix: ContextVar[str] = ContextVar("datgan_fast_commands", default="python -m datgan_fast.")


def spelled(command: str) -> str:
    """As the user would type it here: "datgan-fast train" or "python -m datgan_fast.train"."""
    return _prefix.get() + command


@contextmanager
def called_by(prefix: str) -> Iterator[None]:
    """Inside the context commands are spelled with this before their names."""
    token = _prefix.set(prefix)
    try:
        yield
    finally:
        _prefix.reset(token)
