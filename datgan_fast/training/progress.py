"""What a run says while it trains: a bar on a terminal, plain lines elsewhere, and all of it in the run's log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from tqdm import tqdm

from .run_folder import RunFolder


class Progress:
    """Of `steps` steps, `done` of which were made before; a context. speaks: or says and logs nothing, for a process of many."""

    def __init__(self, run: RunFolder, steps: int, done: int, speaks: bool = True) -> None:
        self._run, self._speaks = run, speaks
        self.on_terminal = speaks and sys.stderr.isatty()
        self._stream = sys.stderr if self.on_terminal else sys.stdout
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=not self.on_terminal, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def say(self, text: str) -> None:
        if not self._speaks:
            return
        self._run.log(text)
        with _perhaps_unheard(self._stream):
            if self.on_terminal:
                self._bar.write(text, file=self._stream)
            else:
                print(text, flush=True, file=self._stream)

    def step(self) -> None:
        with _perhaps_unheard(self._stream):
            self._bar.update()

    def show_losses(self, line: str, short: str) -> None:
        """The line where there is no bar, which has room for the short form only."""
        if self.on_terminal:
            with _perhaps_unheard(self._stream):
                self._bar.set_postfix_str(short)
        else:
            self.say(line)


@contextmanager
def _perhaps_unheard(stream: TextIO) -> Iterator[None]:
    """A terminal or a reader that is gone does not end the run, whose log has it all."""
    try:
        yield
    except OSError:
        with suppress(OSError, ValueError):  # no file of the system's
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
