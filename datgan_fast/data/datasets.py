"""The data sets, a row for each: load one as a single uint8 tensor, or its labels.

Toy data sets are points in the plane, float32 [N, 2], which take the images' place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from . import points
from .image_folder import read_class_folders, read_folder
from .readers import Request, read_cifar10, read_digits, read_mnist

OWN = "own"  # images, and networks, that were handed to the Trainer in Python
_LUMA = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float32, device="cpu").view(1, 3, 1, 1)  # ITU-R 601
_CHUNK = 256  # images converted at a time, to bound the float32 copies


class EveryNth(NamedTuple):
    """Which images are held out of a data set that comes as one set."""

    n: int
    words: str  # for protocols: "every fifth"


@dataclass(frozen=True)
class Dataset:
    """What is to be known of one data set.

    read_images    Request -> [N, 1 or 3, H, W], uint8 or float32 in 0..255, or points, float32 [N, 2]
    read_labels    Request -> int64 [N], in the order of the images; None: it has none that a feature network learns from
    read_classes   the same, 0 to any number, for --conditional; None: they are read_labels's, if it has those
    points         it has points rather than images
    defaults       options of its runs, by their names in TrainConfig; image_size and channels are among them for images
    held_out       what its feature network is not trained on: a part of the only set; None: the test images
    classes        of its labels, 0 to classes - 1
    epochs         of its feature network's training, like
    mirror         whether images are mirrored then, too
    """

    name: str
    read_images: Callable[[Request], Tensor]
    read_labels: Callable[[Request], Tensor] | None = None
    read_classes: Callable[[Request], Tensor] | None = None
    points: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    held_out: EveryNth | None = None
    classes: int = 10
    epochs: int = 10
    mirror: bool = False

    def __post_init__(self) -> None:
        if not self.points and (self.image_size is None or self.channels is None):
            raise ValueError(f"Dataset {self.name}: defaults should have image_size and channels, or points be True.")

    @property
    def image_size(self) -> int | None:
        """Height and width unless another is asked for; None for points."""
        return self.defaults.get("image_size")

    @property
    def channels(self) -> int | None:
        return self.defaults.get("channels")

    def held_out_in_words(self, count: int) -> str:
        return f"{count} held-out images ({self.held_out.words})" if self.held_out else f"{count} test images"


def _mnist_layout(name: str, torchvision_name: str, epochs: int) -> Dataset:
    def read_images(request: Request) -> Tensor:
        images = read_mnist(name, torchvision_name, "images-idx3-ubyte", (28, 28), request).unsqueeze(1)
        return F.pad(images, (2, 2, 2, 2)) if request.image_size == 32 else images

    def read_labels(request: Request) -> Tensor:
        return read_mnist(name, torchvision_name, "labels-idx1-ubyte", (), request).long()

    defaults = {"steps": 10_000, "width": 64, "image_size": 32, "channels": 1}
    return Dataset(name, read_images, read_labels, defaults=defaults, epochs=epochs)


def _toy(name: str, draw: Callable[[int], Tensor]) -> Dataset:
    """draw    seed -> points; the test points are other draws"""
    # Formulation and eps are the sweep's choice for points: docs/reproduction/sweep.
    defaults = {
        "steps": 1000,
        "width": 128,
        "architecture": "mlp",
        "z_dim": 4,
        "batch_size": 256,
        "lr": 2e-3,
        "formulation": "eq10",
        "eps": 0.1,
        "batch_norm": False,
        "channels_last": False,
    }
    return Dataset(name, lambda request: draw(0 if request.train else 1), points=True, defaults=defaults)


def _handed_over(request: Request) -> Tensor:
    raise DataError(
        f"--dataset {OWN}: its images were handed to datgan_fast.Trainer in Python; hand them over there again."
    )


_ROWS = (
    Dataset(
        "digits",
        lambda request: read_digits()[0],
        lambda request: read_digits()[1],
        defaults={"steps": 1500, "width": 32, "image_size": 16, "channels": 1},
        held_out=EveryNth(5, "every fifth"),
        epochs=25,
    ),
    _mnist_layout("mnist", "MNIST", epochs=3),
    _mnist_layout("fashion-mnist", "FashionMNIST", epochs=5),
    Dataset(
        "cifar10",
        lambda request: read_cifar10(request)[0],
        lambda request: read_cifar10(request)[1],
        defaults={"steps": 50_000, "width": 64, "image_size": 32, "channels": 3},
        epochs=10,
        mirror=True,
    ),
    Dataset(
        "folder",
        read_folder,
        read_classes=read_class_folders,
        defaults={"steps": 50_000, "width": 64, "image_size": 64, "channels": 3},
    ),
    _toy("ring", lambda seed: points.gaussians(points.ring_means(), seed=seed)),
    _toy("grid", lambda seed: points.gaussians(points.grid_means(), seed=seed)),
    _toy("swissroll", lambda seed: points.swissroll(seed=seed)),
)
_OWN = Dataset(OWN, _handed_over, defaults={"steps": 50_000, "width": 64, "image_size": 64, "channels": 3})
DATASETS: dict[str, Dataset] = {row.name: row for row in _ROWS}


def load_images(
    dataset: str,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    download: bool = False,
    train: bool = True,
    progress: bool = True,
    *,
    background: str = "white",
    strict: bool = False,
) -> Tensor:
    """Load images as one contiguous CPU tensor, uint8 [N, channels, image_size, image_size], or toy data, float32 [N, 2].

    dataset     one of DATASETS
    data_dir    where its files are; None means "data" ("folder" has no default, "digits" needs no files)
    image_size  height and width in pixels; None means the data set's own: 16 for digits, 64 for folder, 32 for the others
    channels    1 (grey) or 3 (RGB); None means the data set's own: 3 for cifar10 and folder, 1 for the others
    download    fetch missing files with torchvision (mnist, fashion-mnist and cifar10 only)
    train       the training images, or else the test images; digits and folder have one set, used for both; of toy
                data the test points are other draws
    progress    show a progress bar on a terminal while reading a folder
    background  colour under a folder's transparent images: a name (CSS's), "#rrggbb" or "R,G,B" from 0 to 255
    strict      raise DataError for an image of a folder that cannot be read; False: warn, and leave it out

    A folder is read with all below it, links to folders included; hidden names are left out. 16-bit grey images are scaled.
    MNIST-like images (28 x 28) are zero-padded to size 32 and resized to any other. Raises DataError.
    """
    row = dataset_named(dataset)
    if row.points:
        for option, value in (("--image-size", image_size), ("--channels", channels)):
            if value is not None:
                raise DataError(f"{option} {value}: points have none; leave it out with --dataset {dataset}.")
        return row.read_images(Request(data_dir, train, download))
    size = row.image_size if image_size is None else image_size
    channels = row.channels if channels is None else channels
    assert size is not None and channels is not None  # the row of a data set of images has both
    if size < 1:
        raise DataError(f"--image-size {size}: should be a positive number of pixels.")
    if channels not in (1, 3):
        raise DataError(f"--channels {channels}: should be 1 (grey) or 3 (RGB).")
    request = Request(data_dir, train, download, size, channels, progress, background, strict)
    return _convert(row.read_images(request), size, channels)


def load_labels(dataset: str, data_dir: str | Path | None = None, train: bool = True, download: bool = False) -> Tensor:
    """Load the class labels, int64 [N], in the order of load_images; folders and toy data have none. Raises DataError."""
    row = dataset_named(dataset)
    if row.read_labels is None:
        labelled = ", ".join(d.name for d in DATASETS.values() if d.read_labels is not None)
        raise DataError(f"--dataset {dataset}: has no labels; use one of {labelled}.")
    return row.read_labels(Request(data_dir, train, download))


def load_classes(
    dataset: str, data_dir: str | Path | None = None, download: bool = False, *, strict: bool = False
) -> Tensor:
    """Load the class of each training image, int64 [N], in the order of load_images, for --conditional. Raises DataError."""
    row = dataset_named(dataset)
    read = row.read_classes or row.read_labels
    if read is None:
        right = ", ".join(d.name for d in DATASETS.values() if d.read_classes or d.read_labels)
        raise DataError(f"--conditional: {dataset} has no classes; should be one of {right}.")
    return read(Request(data_dir, True, download, strict=strict))


def first_of_shuffled(total: int, count: int, of: str) -> Tensor:
    """Which `count` of `total` images a run with --n-images trains on: int64 [count], the first of one permutation that every
    run shares, so that seeds compare and a smaller number is a part of a larger one. Raises DataError."""
    if count > total:
        raise DataError(f"--n-images {count}: should be at most {total}, all the training images of {of}.")
    random = torch.Generator("cpu").manual_seed(0)
    return torch.randperm(total, generator=random, dtype=torch.int64, device="cpu")[:count]


def dataset_named(dataset: str) -> Dataset:
    """Its row, also of what was handed over in Python, which is not among those that can be typed. Raises DataError."""
    if dataset == OWN:
        return _OWN
    if dataset not in DATASETS:
        raise DataError(f"--dataset {dataset}: should be one of {', '.join(DATASETS)}.")
    return DATASETS[dataset]


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
