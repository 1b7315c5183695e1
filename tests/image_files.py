"""Images, and small data sets written to disk in their official layouts."""

import gzip
import struct
from pathlib import Path

import numpy as np


def random_bytes(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth_bytes(*shape: int) -> np.ndarray:
    """Low-frequency images [..., H, W], whose resizes by two correct filters agree closely."""
    y, x = np.meshgrid(*(np.linspace(0, 3, size) for size in shape[-2:]), indexing="ij")
    phase = np.arange(int(np.prod(shape[:-2]))).reshape(*shape[:-2], 1, 1)
    return np.round(127.5 + 120 * np.sin(x + phase) * np.cos(y - phase)).astype(np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray, train: bool = True, gz: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "train" if train else "t10k"
    for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        content = idx_bytes(array)
        path = folder / f"{prefix}-{name}{'.gz' if gz else ''}"
        path.write_bytes(gzip.compress(content) if gz else content)


def write_cifar(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    records = b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))
    (folder / name).write_bytes(records)


def write_mnist(folder, train, test, seed=0):
    """A folder with MNIST's four idx files, of random images and labels; returns it."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for name, count in (("train", train), ("t10k", test)):
        images, labels = random.integers(0, 256, (count, 28, 28)), random.integers(0, 10, count)
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / f"{name}-{kind}").write_bytes(header + array.astype(np.uint8).tobytes())
    return folder
