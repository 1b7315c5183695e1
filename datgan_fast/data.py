"""Training images: load a data set as one uint8 tensor and sample batches of it on the training device.

`load_images` and `load_labels` read a data set from disk; `ImageSampler` draws random training batches.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .data_sources import DataError, read_cifar10, read_digits, read_folder, read_mnist

__all__ = ["DATASETS", "DataError", "ImageSampler", "load_images", "load_labels"]

# data set -> (image size, channels) used unless others are asked for
_NATURAL = {
    "digits": (16, 1),
    "mnist": (32, 1),
    "fashion-mnist": (32, 1),
    "cifar10": (32, 3),
    "folder": (64, 3),
}
DATASETS = tuple(_NATURAL)

_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R 601
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
    """Load images as one contiguous CPU tensor, uint8 [N, channels, image_size, image_size].

    dataset     one of DATASETS
    data_dir    where its files are; None means "data" ("folder" has no default, "digits" needs no files)
    image_size  height and width in pixels; None means 16 for digits, 64 for folder and 32 for the others
    channels    1 (grey) or 3 (RGB); None means 3 for cifar10 and folder and 1 for the others
    download    fetch missing files with torchvision (mnist, fashion-mnist and cifar10 only)
    train       the training images, or else the test images; digits and folder have one set, used for both
    progress    show a progress bar on a terminal while reading a folder

    MNIST-like images (28 x 28) are zero-padded to size 32 and resized to any other. Raises DataError.
    """
    _check_dataset(dataset)
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
    """Load the class labels, int64 [N], in the order of load_images; a folder has none. Raises DataError."""
    _check_dataset(dataset)
    if dataset == "folder":
        raise DataError("--dataset folder: has no labels; use one of digits, mnist, fashion-mnist, cifar10.")
    if dataset == "digits":
        return read_digits()[1]
    if dataset == "cifar10":
        return read_cifar10(data_dir, train, download)[1]
    return read_mnist(dataset, data_dir, "labels-idx1-ubyte", (), train, download).long()


class ImageSampler:
    """Draws random batches from uint8 images [N, C, H, W], held on the device if they fit there.

    max_device_bytes  the most bytes of images to hold on the device; None means half of the free memory
                      of a CUDA device and no limit on other devices
    flip              mirror each drawn image left to right with probability 1/2
    resident          True if the images are on the device, False if every batch is copied there from the host

    All randomness comes from torch's default generators, so restoring their states repeats a run exactly.
    A resident sampler never waits for the device and can be captured in a CUDA graph; a streaming one cannot.
    """

    def __init__(
        self,
        images: Tensor,
        device: torch.device | str,
        *,
        max_device_bytes: int | None = None,
        flip: bool = False,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images: {images.dtype} {list(images.shape)} should be uint8 [N, C, H, W] with N > 0.")
        self.device = torch.device(device)
        self.flip = flip
        if max_device_bytes is None and self.device.type == "cuda":
            max_device_bytes = torch.cuda.mem_get_info(self.device)[0] // 2
        self.resident = max_device_bytes is None or images.nbytes <= max_device_bytes
        self.images = images.to(self.device if self.resident else "cpu")

    def sample(self, batch_size: int) -> Tensor:
        """Draw images uniformly with replacement: float32 [batch_size, C, H, W] in [-1, 1] on the device."""
        index = torch.randint(len(self.images), (batch_size,), device=self.images.device)
        batch = self.images.index_select(0, index) if self.resident else self._stream(index)
        if self.flip:
            mirrored = torch.rand(batch_size, 1, 1, 1, device=self.device) < 0.5
            batch = torch.where(mirrored, batch.flip(-1), batch)
        return batch.float().div_(127.5).sub_(1)

    def _stream(self, index: Tensor) -> Tensor:
        # A new buffer per batch: torch's pinned-memory cache reuses one only after its copy has finished.
        batch = torch.empty(
            len(index), *self.images.shape[1:], dtype=torch.uint8, pin_memory=self.device.type == "cuda"
        )
        torch.index_select(self.images, 0, index, out=batch)
        return batch.to(self.device, non_blocking=True)


def _check_dataset(dataset: str) -> None:
    if dataset not in DATASETS:
        raise DataError(f"--dataset {dataset}: should be one of {', '.join(DATASETS)}.")


def _convert(images: Tensor, size: int, channels: int) -> Tensor:
    """Convert [N, 1 or 3, H, W], uint8 or float32 in 0..255, to uint8 [N, channels, size, size]."""
    if images.dtype == torch.uint8 and images.shape[1:] == (channels, size, size):
        return images.contiguous()
    converted = torch.empty(len(images), channels, size, size, dtype=torch.uint8)
    for source, target in zip(images.split(_CHUNK), converted.split(_CHUNK), strict=True):
        chunk = source.float()
        if chunk.shape[1] > channels:
            chunk = (chunk * _LUMA).sum(1, keepdim=True)
        if chunk.shape[2:] != (size, size):
            chunk = F.interpolate(chunk, size=(size, size), mode="bicubic", antialias=True)
        target.copy_(chunk.round().clamp(0, 255))  # repeats a grey image over three channels
    return converted
