"""Archives (zip, as torch.save writes them), sealed with a digest of their bytes, which stands in the archive's comment."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

_END, _END_BYTES = b"PK\x05\x06", 22  # of a zip file without a comment, whose last two bytes are the comment's length
_SEAL = re.compile(rb"sha256:[0-9a-f]{64}")
_SEAL_BYTES = 71


class _Watched:
    """A file that remembers why it could not be written: torch's writer says only where."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def save(state: Any, path: Path) -> None:
    """torch.save, and its seal. Raises OSError for what keeps the file from being written."""
    with path.open("wb") as file:
        watched = _Watched(file)
        try:
            torch.save(state, cast(IO[bytes], watched))  # which asks no more of a file
        except RuntimeError:
            if watched.error is None:
                raise
            raise watched.error from None
    seal(path)


def seal(path: Path) -> None:
    """Adds the digest of a zip file's bytes to it, as its comment, which every reader of zip files skips."""
    with path.open("rb+") as file:
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", _SEAL_BYTES))
        file.seek(0)
        digest = _digest(file, path.stat().st_size)
        file.seek(0, os.SEEK_END)
        file.write(digest)


def check_archive(path: Path) -> None:
    """Raises ValueError for a zip file that is not what was written or would unpack to more bytes than it has; OSError.

    One without a seal is taken as it is.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _SEAL_BYTES - _END_BYTES))
        tail = file.read()
        if _SEAL.fullmatch(tail[-_SEAL_BYTES:]):
            file.seek(0)
            if _digest(file, size - _SEAL_BYTES) != tail[-_SEAL_BYTES:]:
                raise ValueError("its bytes are not those that were written")
        elif not (tail[-_END_BYTES:].startswith(_END) and tail.endswith(bytes(2))):
            raise ValueError("it has no end")
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > size:
            raise ValueError("it would unpack to more than it is")


def _digest(file: BinaryIO, size: int) -> bytes:
    """Of the next `size` bytes, as it stands in a seal."""
    digest = hashlib.sha256()
    while size and (part := file.read(min(size, 1 << 20))):
        digest.update(part)
        size -= len(part)
    return b"sha256:" + digest.hexdigest().encode()
