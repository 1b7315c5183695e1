"""Files that are either whole or not there: written beside their place, flushed to the disk, then renamed into it."""

from __future__ import annotations

import json
import os
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


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """One object per line; NaN and infinity, which JSON does not have, become null."""
    clean = {k: None if isinstance(v, float) and v - v != 0 else v for k, v in record.items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(clean) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
