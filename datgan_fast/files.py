"""Files that are either whole or not there: written beside their place, flushed to the disk, then renamed into it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def expanded(path: str | Path) -> Path:
    """With ~ and ~user as a shell has them; as it stands where nobody's home is known."""
    return Path(os.path.expanduser(path))


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path with the same ending; on success it becomes `path`, on failure it is removed."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself must survive a crash too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def flush(path: Path) -> None:
    """What was written to the file, if there is one, is on the disk."""
    if path.exists():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """One object per line; NaN and infinity, which JSON does not have, become null."""
    clean = {k: None if isinstance(v, float) and v - v != 0 else v for k, v in record.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(clean) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file. Lines that hold none are left out with a warning."""
    lines = json_lines(path)
    if unread := sum(record is None for _, record in lines):
        warnings.warn(f"{path}: {unread} of its lines cannot be read and are left out", RuntimeWarning, stacklevel=2)
    return [record for _, record in lines if record is not None]


def json_lines(path: Path) -> list[tuple[str, dict[str, Any] | None]]:
    """Every line of a JSONL file that is not blank, and its record; None where it holds none. A last line without an end is what
    a crash left of one, and no line."""
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [(line, _record(line)) for line in lines if line.strip()]


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
