"""What the commands share: errors are one sentence on the error stream, never a traceback."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from .commands import COMMANDS, spelled
from .errors import BackendError, ConfigError, DataError, TrainingStopped, did_you_mean

a_path = os.path.expanduser  # the type of an argument that names a file or a folder: ~ stands for the home folder


class _Layout(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=30, **options)


class Parser(argparse.ArgumentParser):
    """Complains in one line, which names the nearest option, and leaves with exit code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Layout, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments, surplus = self.parse_known_args(args, namespace)
        if not surplus:
            return arguments
        option = next((text.partition("=")[0] for text in surplus if text.startswith("-")), None)
        if option is None:
            self.error(f"{surplus[0]}: is one argument too many")
        self.error(f"unknown option {option}{did_you_mean(option, self._option_string_actions)}")

    def error(self, message: str) -> NoReturn:
        more = "" if message.endswith("?") else "; see --help"
        print(f"{self.prog}: {message}{more}", file=sys.stderr)
        raise SystemExit(2)


def command_parser(command: str, arguments: str, examples: Sequence[str], more: str = "") -> Parser:
    """A command's, without its options: its usage, what it is for (`more` says more of that), and examples of its arguments."""
    prog = spelled(command)
    purpose = COMMANDS[command]
    return Parser(
        prog=prog,
        usage=f"{prog} {arguments}",
        description=f"{purpose[0].upper()}{purpose[1:]}.{more and chr(10)}{more}",
        epilog="\n  ".join(["examples:", *(f"{prog} {example}".rstrip() for example in examples)]),
    )


def run_command(prog: str, command: Callable[[], int]) -> int:
    """The command's exit code: 2 for wrong options, 1 for a failed run, 130 for Ctrl-C."""
    _show_every_name()
    with _warnings_in_one_line(prog):
        try:
            return command()
        except (ConfigError, DataError, BackendError) as error:
            print(f"{prog}: {error}", file=sys.stderr)
            return 2
        except (OSError, TrainingStopped) as error:
            print(f"{prog}: {error}", file=sys.stderr)
            return 1
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            print(f"{prog}: out of memory; use a smaller --batch-size, --width or --image-size", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"{prog}: interrupted", file=sys.stderr)
            return 130


def _is_out_of_memory(error: Exception) -> bool:
    """Python's, the CPU allocator's or the GPU's, without importing torch to ask."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )


@contextmanager
def _warnings_in_one_line(prog: str) -> Iterator[None]:
    """The package's own, which are for the user, without the line of source that Python shows; others as they were."""
    before = warnings.showwarning

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        if _is_ours(sys._getframe(1)):
            print(f"{prog}: warning: {' '.join(str(message).split())}", file=file or sys.stderr)
        else:
            before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _is_ours(frame: FrameType | None) -> bool:
    """Whether this package called warnings.warn, on whomever the warning puts the blame."""
    while frame is not None and frame.f_globals.get("__name__") in ("warnings", "_py_warnings"):
        frame = frame.f_back
    folders = tuple(f"{folder}{os.sep}" for folder in sys.modules[__package__].__path__)
    return frame is not None and frame.f_code.co_filename.startswith(folders)


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
