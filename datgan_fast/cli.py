"""What the commands share: errors are one sentence on the error stream, never a traceback."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch

from .errors import BackendError, ConfigError, DataError, TrainingStopped

a_path = os.path.expanduser  # the type of an argument that names a file or a folder: ~ stands for the home folder


class Parser(argparse.ArgumentParser):
    """Complains in one line and leaves with exit code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see --help", file=sys.stderr)
        raise SystemExit(2)


def run_command(prog: str, command: Callable[[], int]) -> int:
    """The command's exit code: 2 for wrong options, 1 for a failed run, 130 for Ctrl-C."""
    _show_every_name()
    try:
        return command()
    except (ConfigError, DataError, BackendError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except (MemoryError, torch.OutOfMemoryError):
        print(f"{prog}: out of memory; use a smaller --batch-size, --width or --image-size", file=sys.stderr)
        return 1
    except TrainingStopped as stopped:
        print(f"{prog}: {stopped}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # the CPU allocator's own kind
            raise
        print(f"{prog}: out of memory; use a smaller --batch-size or --width", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130


def _show_every_name() -> None:
    """One that the terminal cannot show is shown in escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # it is closed
                stream.reconfigure(errors="backslashreplace")


def whole_number(option: str, text: str, least: int, most: int) -> int:
    """The option's value. Raises ConfigError if it is no whole number in the range."""
    try:
        number = int(text)
    except ValueError:
        raise ConfigError(f"{option} {text}: must be a whole number") from None
    if not least <= number <= most:
        raise ConfigError(f"{option} {text}: must be from {least} to {most}")
    return number


def output_file(option: str, text: str, suffix: str) -> Path:
    """The file that a command will write. Raises ConfigError if it has another ending or no folder to be in."""
    path = Path(text)
    if path.suffix.lower() != suffix:
        raise ConfigError(f"{option} {path}: must be a {suffix} file")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: its folder does not exist; make {path.parent} first")
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a folder; name a {suffix} file")
    return path
