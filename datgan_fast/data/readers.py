"""Readers of the data sets: find their files, download them if asked, check and decode them.

Every reader raises `DataError` for what is missing or malformed. `datgan_fast.data` is the interface.
"""

from __future__ import annotations

import gzip
import math
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

DEFAULT_DATA_DIR = "data"
_SMALL = 1 << 26  # bytes that a .gz may unpack to, however small it is
_MOST_PACKED = 100  # times its own size that a bigger one may: images shrink to a fifth, zeros to a thousandth
_CIFAR_RECORD = 1 + 3 * 32 * 32  # one label byte, then the image in CHW order


class Request(NamedTuple):
    """What a data set is asked for: the arguments of `load_images`, decided."""

    data_dir: str | Path | None = None
    train: bool = True
    download: bool = False
    image_size: int = 0  # of the images that will be made, like channels; 0 for points and labels
    channels: int = 0
    progress: bool = False
    background: str = "white"  # colour under transparent images of a folder
    strict: bool = False  # an image of a folder that cannot be read is an error


def _not_found(dataset: str, folder: Path, name: str, places: tuple[Path, ...]) -> DataError:
    return DataError(
        f"--data-dir {folder}: {dataset} should have {name} in one of {', '.join(map(str, places))}; "
        "pass --download to fetch it or point --data-dir to a folder that has it."
    )


def _torchvision_dataset(name: str, dataset: str, folder: Path, train: bool, download: bool) -> Any:
    """torchvision's data set of that class name."""
    # Imported only here, so that a torchvision that does not match torch breaks nothing else.
    try:
        from torchvision import datasets  # type: ignore[import-untyped]

        return getattr(datasets, name)(str(folder), train=train, download=download)
    except Exception as error:  # import, network, checksum, disk or unpickling
        option = "--download" if download else f"--data-dir {folder}"
        reason = " ".join(str(error).split())
        raise DataError(f"{option}: torchvision should provide {dataset} in {folder} but failed: {reason}") from error


def read_digits() -> tuple[Tensor, Tensor]:
    """The 1797 handwritten digits of scikit-learn: float32 [N, 1, 8, 8] in 0..255 and int64 [N]."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError("--dataset digits: needs the package scikit-learn to be installed.") from error
    digits = _loaded(load_digits)
    images = torch.tensor(digits.images, dtype=torch.float32, device="cpu").unsqueeze(1) * (255 / 16)
    return images, torch.tensor(digits.target, dtype=torch.int64, device="cpu")


@lru_cache(maxsize=1)
def _loaded(load: Callable[[], Any]) -> Any:
    """Once, because it reads text, and a run asks ten times."""
    return load()


def read_mnist(dataset: str, torchvision_name: str, kind: str, item_shape: tuple[int, ...], request: Request) -> Tensor:
    """Find (or download) and read one idx file of a data set that has MNIST's layout: uint8 [N, *item_shape].

    kind    as in the file's name: "images-idx3-ubyte" or "labels-idx1-ubyte"
    """
    folder = Path(request.data_dir or DEFAULT_DATA_DIR).expanduser()
    name = f"{'train' if request.train else 't10k'}-{kind}"
    # The folder itself comes last: it may hold the equally named files of the other data set.
    places = (folder / torchvision_name / "raw", folder / dataset, folder)
    candidates = [place / (name + suffix) for place in places for suffix in ("", ".gz")]
    path = next(filter(Path.is_file, candidates), None)
    if path is None and request.download:
        _torchvision_dataset(torchvision_name, dataset, folder, request.train, download=True)
        path = next(filter(Path.is_file, candidates), None)
    if path is None:
        raise _not_found(dataset, folder, f"{name} or {name}.gz", places)
    return _read_idx(path, item_shape)


def _read_idx(path: Path, item_shape: tuple[int, ...]) -> Tensor:
    """Read an idx file of bytes, plain or .gz: uint8 [N, *item_shape]."""
    ndim = 1 + len(item_shape)
    header = 4 + 4 * ndim
    with _opened(path) as file:
        start = file.read(header)
        if len(start) < header or start[:4] != bytes((0, 0, 8, ndim)):
            raise DataError(f"--data-dir: {path} should be an idx file of bytes with {ndim} dimension(s).")
        shape = np.frombuffer(start, dtype=">u4", offset=4, count=ndim).tolist()
        if shape[0] == 0 or tuple(shape[1:]) != item_shape:
            raise DataError(f"--data-dir: {path} has shape {shape} but should have {['N', *item_shape]}, N > 0.")
        needed = math.prod(shape)
        _check_size(path, header, needed, f"shape {shape}")
        raw = bytearray(needed)  # writable, as torch.frombuffer wants
        held = _fill(file, raw) + len(file.read(1))
        if held != needed:
            held_in_words = f"more than {header + needed}" if held > needed else str(header + held)
            raise DataError(
                f"--data-dir: {path} holds {held_in_words} bytes but shape {shape} needs {header + needed}."
            )
    return torch.frombuffer(raw, dtype=torch.uint8).view(shape)


def _check_size(path: Path, header: int, needed: int, what: str) -> None:
    """Raises DataError where a file cannot hold what it says it does, before memory is taken for that."""
    size = path.stat().st_size
    if path.suffix != ".gz":
        if size != header + needed:
            raise DataError(f"--data-dir: {path} holds {size} bytes but {what} needs {header + needed}.")
    elif needed > max(_SMALL, _MOST_PACKED * size):
        raise DataError(
            f"--data-dir: {path} has {size} bytes but {what} needs {header + needed}, over {_MOST_PACKED} times as many; "
            "unpack it if it is what you want."
        )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Plain or .gz. Raises DataError for what goes wrong while it is read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"--data-dir: {path} should be a readable, complete file: {error}") from error


def _fill(file: BinaryIO, target: bytearray) -> int:
    """Reads as many bytes, or those that there are, and says how many they were."""
    count, view = 0, memoryview(target)
    while part := file.readinto(view[count:]):  # type: ignore[attr-defined]
        count += part
    return count


def read_cifar10(request: Request) -> tuple[Tensor, Tensor]:
    """Read CIFAR-10 in its binary or its Python layout: uint8 [N, 3, 32, 32] and int64 [N].

    A training set that lacks some of its binary files is used with a warning, unless download is set.
    """
    folder = Path(request.data_dir or DEFAULT_DATA_DIR).expanduser()
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if request.train else ["test_batch.bin"]
    places = (folder / "cifar-10-batches-bin", folder)
    found: list[Path] = []
    for place in places:
        found = found or [place / name for name in names if (place / name).is_file()]

    if len(found) < len(names):
        if request.download or (folder / "cifar-10-batches-py").is_dir():
            dataset = _torchvision_dataset("CIFAR10", "cifar10", folder, request.train, request.download)
            labels = torch.tensor(dataset.targets, dtype=torch.int64, device="cpu")
            return torch.from_numpy(dataset.data).permute(0, 3, 1, 2), labels
        if not found:
            raise _not_found("cifar10", folder, f"{names[0]} (or cifar-10-batches-py)", places)
        missing = ", ".join(sorted(set(names) - {path.name for path in found}))
        warnings.warn(f"cifar10: using {len(found)} of {len(names)} files, without {missing}.", stacklevel=4)

    records = torch.cat([_read_cifar_file(path) for path in found])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def _read_cifar_file(path: Path) -> Tensor:
    with _opened(path) as file:
        size = path.stat().st_size
        if size == 0 or size % _CIFAR_RECORD:
            raise DataError(f"--data-dir: {path} holds {size} bytes but should hold {_CIFAR_RECORD} per image.")
        raw = bytearray(size)
        if _fill(file, raw) != size:
            raise DataError(f"--data-dir: {path} should be a readable, complete file: it was cut while it was read")
    records = torch.frombuffer(raw, dtype=torch.uint8).view(-1, _CIFAR_RECORD)
    if records[:, 0].max() > 9:
        raise DataError(f"--data-dir: {path} should hold CIFAR-10 records, which start with a label 0 to 9.")
    return records
