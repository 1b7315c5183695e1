"""Ctrl-C, SIGTERM and SIGHUP as a wish that the training loop can grant between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HEARD = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopRequested(BaseException):
    """A signal has come where it ends what is done at once."""


class StopSignals:
    """Signals set `requested`, so that the loop can stop between steps; a second Ctrl-C stops at once. A signal that was ignored
    before, as nohup has it, still is."""

    def __init__(self) -> None:
        self.requested = False
        self._raises = False

    def __enter__(self) -> StopSignals:
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            heard = [s for s in HEARD if signal.getsignal(s) is not signal.SIG_IGN]
            self._handlers = {s: signal.signal(s, self._request) for s in heard}
        return self

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Inside, a signal raises StopRequested wherever it comes, and at the beginning if one has come before."""
        self._raises = True
        try:
            if self.requested:
                raise StopRequested
            yield
        finally:
            self._raises = False

    def _request(self, number: int, frame: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if self._raises:
            raise StopRequested

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
