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
        # A path that is no text in the process's encoding comes as surrogates, and goes back to the bytes that it was.
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def append_json_lines(path: Path, *records: dict[str, Any]) -> None:
    """One object per line; NaN and infinity, which JSON does not have, become null. The lines are written at once: a process that
    is ended leaves all of them or none."""
    clean = [{k: None if isinstance(v, float) and v - v != 0 else v for k, v in record.items()} for record in records]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in clean))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file, each with its whole-numbered "step". Lines that are none are left out with a warning."""
    lines = json_lines(path)
    if others := [number for number, (_, record) in enumerate(lines, 1) if record is None]:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        named = ", ".join(map(str, others[:3]))
        warnings.warn(f"{path}: left out what is no record in line {named}{more}.", stacklevel=2)
    return [record for _, record in lines if record is not None]


def json_lines(path: Path) -> list[tuple[str, dict[str, Any] | None]]:
    """Every line of a JSONL file, and its record; None where it holds none. A last line without an end is what a crash left of
    one, and no line."""
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [(line, _record(line)) for line in lines]


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    whole = isinstance(step, int) and not isinstance(step, bool)
    return record if whole and not any(isinstance(value, (dict, list)) for value in record.values()) else None
