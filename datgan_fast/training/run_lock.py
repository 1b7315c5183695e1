"""One writer for a run folder: a lock that its process holds and the system takes back, however the process ends."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TextIO

from ..errors import ConfigError


class RunLock:
    """Of the run folder `path`, kept in its file `.lock`, which names the process that has it."""

    def __init__(self, path: Path) -> None:
        self._path = path / ".lock"
        self._file: TextIO | None = None

    def hold(self) -> None:
        """Until `release`. Raises ConfigError where another process has it, or where nothing can be written."""
        if self._file is not None:
            return
        try:
            import fcntl
        except ImportError:  # not a Unix: nothing is locked
            return
        try:
            file = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{self._path.parent}: cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ConfigError(f"{self._path.parent}: {holder} is training this run; wait for it, or stop it") from None
        except OSError:  # a file system without locks
            pass
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
