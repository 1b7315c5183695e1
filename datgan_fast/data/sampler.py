"""Random training batches from a data set, drawn on the training device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .stream import ImageStream

# (images uint8 [N, C, H, W], index int64 [B], mirrored bool [B] or None, out float [B, C, H, W])
Write = Callable[[Tensor, Tensor, Tensor | None, Tensor], None]


def write_batch(images: Tensor, index: Tensor, mirrored: Tensor | None, out: Tensor) -> None:
    """out[b] = images[index[b]] / 127.5 - 1, from right to left where mirrored[b]."""
    batch = images.index_select(0, index)
    if mirrored is not None:
        batch = torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(-1), batch)
    out.copy_(batch.float().div_(127.5).sub_(1))


class ImageSampler:
    """Draws random batches from uint8 images [N, C, H, W] or float32 points [N, 2], held on the device if they fit there.

    batch_size        images in a batch
    batches           batches in one training iteration
    seed              of the images that a streaming sampler draws
    max_device_bytes  the most bytes of images to hold on the device; None means half of the free memory
                      of a CUDA device and no limit on other devices
    flip              mirror each drawn image left to right with probability 1/2; not for points
    layout            memory format of the batches
    labels            int64 [N], the images' classes, for sample_labelled(); None: they have none
    write             what makes a batch of the images, as `write_batch` does; for a kernel that does it at once
    rows              the images of each batch that sample() gives, a slice with both ends, where processes share it; None: all.
                      They are what they would be in the whole batch, and the random state moves on as it does there
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
        layout: torch.memory_format = torch.contiguous_format,
        labels: Tensor | None = None,
        write: Write = write_batch,
        rows: slice | None = None,
    ) -> None:
        points = images.dtype == torch.float32 and images.ndim == 2
        if not (points or (images.dtype == torch.uint8 and images.ndim == 4)) or len(images) == 0:
            raise ValueError(
                f"images: {images.dtype} {list(images.shape)} should be uint8 [N, C, H, W] or float32 [N, 2] with N > 0."
            )
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(f"labels: {list(labels.shape)} should be one for each of {len(images)} images.")
        if points and flip:
            raise ValueError("flip: points have no left and right to exchange; it is for images.")
        _check_sizes(batch_size=(batch_size, 1), batches=(batches, 1), seed=(seed, 0))
        self.device = torch.device(device)
        self.batch_size, self.batches, self.flip = batch_size, batches, flip
        self._layout, self._write, self._rows = layout, write, rows
        own = batch_size if rows is None else rows.stop - rows.start
        if max_device_bytes is None and self.device.type == "cuda":
            max_device_bytes = torch.cuda.mem_get_info(self.device)[0] // 2
        self.resident = max_device_bytes is None or images.nbytes <= max_device_bytes
        self.images = images.to(self.device if self.resident else "cpu")
        self.labels = None if labels is None else labels.to(self.images.device)
        self._stream = None
        if not self.resident:
            self._stream = ImageStream(self.images, self.device, batches, batch_size, seed, self.labels, rows)
        self._drawn: int | None = None  # batches since prepare()
        self._whole = torch.arange(own, dtype=torch.int64, device=self.device)

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
        or points [batch_size, 2] as they are; of these its `rows`.

        After `batches` calls a streaming sampler begins again at the iteration's first batch. Raises RuntimeError if it has
        never been prepared.
        """
        images, _, index = self._draw() if self._stream is None else self._next(self._stream)
        return self._batch(images, index)

    def sample_labelled(self) -> tuple[Tensor, Tensor]:
        """The next batch, as sample() gives it, and its labels, int64 [batch_size]. Raises RuntimeError where there are none."""
        images, labels, index = self._draw() if self._stream is None else self._next(self._stream)
        if labels is None:
            raise RuntimeError("sample_labelled() needs images with labels: give them to the sampler.")
        return self._batch(images, index), labels.index_select(0, index)

    def _batch(self, images: Tensor, index: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images.index_select(0, index)
        mirrored = None
        if self.flip:
            mirrored = self._own(torch.rand(self.batch_size, device=self.device, dtype=torch.float32)) < 0.5
        shape = (len(index), *images.shape[1:])
        batch = torch.empty(shape, dtype=torch.float32, device=self.device, memory_format=self._layout)
        self._write(images, index, mirrored, batch)
        return batch

    def settle(self) -> None:
        """Waits for the fetch that prepare() began, before a CUDA graph is captured: another thread's calls would break
        the capture."""
        if self._stream is not None:
            self._stream.settle()

    def close(self) -> None:
        """Stops fetching; prepare() then raises RuntimeError. A resident sampler has nothing to stop."""
        if self._stream is not None:
            self._stream.close()

    def _draw(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Images, their labels, and which of them make the batch."""
        index = torch.randint(len(self.images), (self.batch_size,), device=self.device)
        return self.images, self.labels, self._own(index)

    def _own(self, drawn: Tensor) -> Tensor:
        return drawn if self._rows is None else drawn[self._rows]

    def _next(self, stream: ImageStream) -> tuple[Tensor, Tensor | None, Tensor]:
        if self._drawn is None:
            raise RuntimeError("sample() needs the images of an iteration: call prepare(step) first.")
        k = self._drawn % self.batches
        self._drawn += 1
        return stream.buffer[k], None if stream.labels is None else stream.labels[k], self._whole


def _check_sizes(**sizes: tuple[int, int]) -> None:
    """Of each, what it is and the least it may be."""
    for name, (value, least) in sizes.items():
        if value < least:
            raise ValueError(f"{name}: {value} should be at least {least}.")
