"""Training images: load a data set as one uint8 tensor and sample batches of it on the training device.

`load_images` and `load_labels` read a data set from disk; `ImageSampler` draws random training batches. Toy data sets are
points in the plane, float32 [N, 2], which take the images' place.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .data_sources import DataError, read_cifar10, read_digits, read_folder, read_mnist
from .image_stream import ImageStream
from .toy_data import TOY_DATASETS, toy_points

__all__ = ["DATASETS", "DataError", "ImageSampler", "load_images", "load_labels"]

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


class ImageSampler:
    """Draws random batches from uint8 images [N, C, H, W] or float32 points [N, 2], held on the device if they fit there.

    batch_size        images in a batch
    batches           batches in one training iteration
    seed              of the images that a streaming sampler draws
    max_device_bytes  the most bytes of images to hold on the device; None means half of the free memory
                      of a CUDA device and no limit on other devices
    flip              mirror each drawn image left to right with probability 1/2; not for points
    resident          True if the images are on the device, False if they are streamed there from the host

        for step in range(1, steps + 1):
            sampler.prepare(step)
            for _ in range(batches):
                x_real = sampler.sample()

    The loop over sample() never waits for the device and can be captured in a CUDA graph; prepare(), outside the
    graph, gives a streaming sampler's graph the images of the iteration. Resident images are drawn by the device's default
    generator, which also decides about mirroring; streamed ones follow from seed and step alone. Restoring the
    generator's state therefore repeats a run exactly. Raises ValueError for other images or sizes.
    """

    def __init__(
        self,
        images: Tensor,
        device: torch.device | str,
        *,
        batch_size: int,
        batches: int = 1,
        seed: int = 0,
        max_device_bytes: int | None = None,
        flip: bool = False,
    ) -> None:
        points = images.dtype == torch.float32 and images.ndim == 2
        if not (points or (images.dtype == torch.uint8 and images.ndim == 4)) or len(images) == 0:
            raise ValueError(
                f"images: {images.dtype} {list(images.shape)} should be uint8 [N, C, H, W] or float32 [N, 2] with N > 0."
            )
        if points and flip:
            raise ValueError("flip: points have no left and right to exchange; it is for images.")
        for name, value, least in (("batch_size", batch_size, 1), ("batches", batches, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name}: {value} should be at least {least}.")
        self.device = torch.device(device)
        self.batch_size, self.batches, self.flip = batch_size, batches, flip
        if max_device_bytes is None and self.device.type == "cuda":
            max_device_bytes = torch.cuda.mem_get_info(self.device)[0] // 2
        self.resident = max_device_bytes is None or images.nbytes <= max_device_bytes
        self.images = images.to(self.device if self.resident else "cpu")
        self._stream = None if self.resident else ImageStream(self.images, self.device, batches, batch_size, seed)
        self._drawn: int | None = None  # batches since prepare()

    def prepare(self, step: int) -> None:
        """Makes the images of iteration `step` (1, 2, ...) the ones that sample() gives, from their first batch on.

        Call it on the CUDA stream that runs the iteration. Any step may follow any other; the next one is there soonest.
        Raises what went wrong while the images were fetched. Does nothing to a resident sampler.
        """
        if self._stream is not None:
            self._stream.prepare(step)
            self._drawn = 0

    def sample(self) -> Tensor:
        """The next batch, drawn uniformly with replacement, float32 on the device: images [batch_size, C, H, W] in [-1, 1],
        or points [batch_size, 2] as they are.

        After `batches` calls a streaming sampler begins again at the iteration's first batch. Raises RuntimeError if it has
        never been prepared.
        """
        batch = self._draw() if self._stream is None else self._next(self._stream)
        if self.flip:
            mirrored = torch.rand(self.batch_size, 1, 1, 1, device=self.device, dtype=torch.float32) < 0.5
            batch = torch.where(mirrored, batch.flip(-1), batch)
        return batch.float().div_(127.5).sub_(1) if batch.dtype == torch.uint8 else batch

    def settle(self) -> None:
        """Waits for the fetch that prepare() began, before a CUDA graph is captured: another thread's calls would break
        the capture."""
        if self._stream is not None:
            self._stream.settle()

    def close(self) -> None:
        """Stops fetching; prepare() then raises RuntimeError. A resident sampler has nothing to stop."""
        if self._stream is not None:
            self._stream.close()

    def _draw(self) -> Tensor:
        index = torch.randint(len(self.images), (self.batch_size,), device=self.device)
        return self.images.index_select(0, index)

    def _next(self, stream: ImageStream) -> Tensor:
        if self._drawn is None:
            raise RuntimeError("sample() needs the images of an iteration: call prepare(step) first.")
        batch = stream.buffer[self._drawn % self.batches]
        self._drawn += 1
        return batch


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
