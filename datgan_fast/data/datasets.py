"""The data sets by name: load one as a single uint8 tensor, or its labels.

Toy data sets are points in the plane, float32 [N, 2], which take the images' place.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from .points import TOY_DATASETS, toy_points
from .readers import read_cifar10, read_digits, read_folder, read_mnist

# data set -> (image size, channels) used unless others are asked for
_NATURAL = {
    "digits": (16, 1),
    "mnist": (32, 1),
    "fashion-mnist": (32, 1),
    "cifar10": (32, 3),
    "folder": (64, 3),
}
DATASETS = (*_NATURAL, *TOY_DATASETS)

_LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float32, device="cpu").view(1, 3, 1, 1)  # ITU-R 601
_CHUNK = 256  # images converted at a time, to bound the float32 copies


def load_images(
    dataset: str,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    download: bool = False,
    train: bool = True,
    progress: bool = True,
) -> Tensor:
    """Load images as one contiguous CPU tensor, uint8 [N, channels, image_size, image_size], or toy data, float32 [N, 2].

    dataset     one of DATASETS
    data_dir    where its files are; None means "data" ("folder" has no default, "digits" needs no files)
    image_size  height and width in pixels; None means 16 for digits, 64 for folder and 32 for the others
    channels    1 (grey) or 3 (RGB); None means 3 for cifar10 and folder and 1 for the others
    download    fetch missing files with torchvision (mnist, fashion-mnist and cifar10 only)
    train       the training images, or else the test images; digits and folder have one set, used for both; of toy
                data the test points are other draws
    progress    show a progress bar on a terminal while reading a folder

    MNIST-like images (28 x 28) are zero-padded to size 32 and resized to any other. Raises DataError.
    """
    _check_dataset(dataset)
    if dataset in TOY_DATASETS:
        for option, value in (("--image-size", image_size), ("--channels", channels)):
            if value is not None:
                raise DataError(f"{option} {value}: points have none; leave it out with --dataset {dataset}.")
        return toy_points(dataset, seed=0 if train else 1)
    natural_size, natural_channels = _NATURAL[dataset]
    size = natural_size if image_size is None else image_size
    channels = natural_channels if channels is None else channels
    if size < 1:
        raise DataError(f"--image-size {size}: should be a positive number of pixels.")
    if channels not in (1, 3):
        raise DataError(f"--channels {channels}: should be 1 (grey) or 3 (RGB).")

    if dataset == "folder":
        return read_folder(data_dir, size, channels, progress)
    if dataset == "digits":
        images = read_digits()[0]
    elif dataset == "cifar10":
        images = read_cifar10(data_dir, train, download)[0]
    else:
        images = read_mnist(dataset, data_dir, "images-idx3-ubyte", (28, 28), train, download).unsqueeze(1)
        if size == 32:
            images = F.pad(images, (2, 2, 2, 2))
    return _convert(images, size, channels)


def load_labels(dataset: str, data_dir: str | Path | None = None, train: bool = True, download: bool = False) -> Tensor:
    """Load the class labels, int64 [N], in the order of load_images; folders and toy data have none. Raises DataError."""
    _check_dataset(dataset)
    if dataset == "folder" or dataset in TOY_DATASETS:
        raise DataError(f"--dataset {dataset}: has no labels; use one of digits, mnist, fashion-mnist, cifar10.")
    if dataset == "digits":
        return read_digits()[1]
    if dataset == "cifar10":
        return read_cifar10(data_dir, train, download)[1]
    return read_mnist(dataset, data_dir, "labels-idx1-ubyte", (), train, download).long()


def _check_dataset(dataset: str) -> None:
    if dataset not in DATASETS:
        raise DataError(f"--dataset {dataset}: should be one of {', '.join(DATASETS)}.")


def _convert(images: Tensor, size: int, channels: int) -> Tensor:
    """Convert [N, 1 or 3, H, W], uint8 or float32 in 0..255, to uint8 [N, channels, size, size]."""
    if images.dtype == torch.uint8 and images.shape[1:] == (channels, size, size):
        return images.contiguous()
    converted = torch.empty(len(images), channels, size, size, dtype=torch.uint8, device="cpu")
    for source, target in zip(images.split(_CHUNK), converted.split(_CHUNK), strict=True):
        chunk = source.float()
        if chunk.shape[1] > channels:
            chunk = (chunk * _LUMA).sum(1, keepdim=True)
        if chunk.shape[2:] != (size, size):
            chunk = F.interpolate(chunk, size=(size, size), mode="bicubic", antialias=True)
        target.copy_(chunk.round().clamp(0, 255))  # repeats a grey image over three channels
    return converted
