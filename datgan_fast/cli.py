"""What the commands share: errors are one sentence on the error stream, never a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from .errors import BackendError, ConfigError, DataError, TrainingStopped


class Parser(argparse.ArgumentParser):
    """Complains in one line and leaves with exit code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see --help", file=sys.stderr)
        raise SystemExit(2)


def run_command(prog: str, command: Callable[[], int]) -> int:
    """The command's exit code: 2 for wrong options, 1 for a failed run, 130 for Ctrl-C."""
    try:
        return command()
    except (ConfigError, DataError, BackendError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except (MemoryError, torch.OutOfMemoryError):
        print(f"{prog}: out of memory; use a smaller --batch-size, --width or --image-size", file=sys.stderr)
        return 1
    except RuntimeError as error:  # the CPU allocator's own kind
        if isinstance(error, TrainingStopped) or "allocate memory" in str(error):
            reason = (
                str(error)
                if isinstance(error, TrainingStopped)
                else "out of memory; use a smaller --batch-size or --width"
            )
            print(f"{prog}: {reason}", file=sys.stderr)
            return 1
        raise
    except OSError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130


def whole_number(option: str, text: str, least: int, most: int) -> int:
    """The option's value. Raises ConfigError if it is no whole number in the range."""
    try:
        number = int(text)
    except ValueError:
        raise ConfigError(f"{option} {text}: must be a whole number") from None
    if not least <= number <= most:
        raise ConfigError(f"{option} {text}: must be from {least} to {most}")
    return number
