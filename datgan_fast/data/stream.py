"""Batches of images, and their labels, that stay in host memory: while an iteration trains, a thread fetches the next one's."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch
from torch import Tensor


class ImageStream:
    """Keeps one iteration's images of `images`, uint8 [N, C, H, W] (or points, float32 [N, 2]) on the CPU, on the device.

    buffer  [batches, batch_size, C, H, W], dtype of `images`, on the device; never moves, so a CUDA graph can read it
    labels  [batches, batch_size], of these images; None where none were given
    rows    a slice with both ends, of each batch, that are fetched; None: all

    Images go from `images` to pinned memory and on to a staging buffer in a thread and on a CUDA stream of their own, and
    from there to `buffer` on the stream that trains. Which images is a function of the seed and the iteration's number
    alone, so it makes no difference how far ahead they were fetched.
    """

    def __init__(
        self,
        images: Tensor,
        device: torch.device,
        batches: int,
        batch_size: int,
        seed: int,
        labels: Tensor | None = None,
        rows: slice | None = None,
    ) -> None:
        self._sources = [images] if labels is None else [images, labels]
        self._seed, self._shape, self._rows = seed, (batches, batch_size), rows or slice(0, batch_size)
        fetched = self._rows.stop - self._rows.start
        cuda = device.type == "cuda"
        shapes = [((batches, fetched, *t.shape[1:]), t.dtype) for t in self._sources]
        self._buffers = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in shapes]
        self.buffer, self.labels = self._buffers[0], None if labels is None else self._buffers[1]
        self._staging = [torch.empty_like(t) for t in self._buffers]
        self._host = [torch.empty(shape, dtype=dtype, pin_memory=cuda, device="cpu") for shape, dtype in shapes]
        self._copies = _CopyStream(device) if cuda else None
        self._held: int | None = None  # the step whose images are in the buffer
        self._ahead: tuple[int, Future[None]] | None = None  # the step being fetched
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="datgan-fast-images")

    def prepare(self, step: int) -> None:
        """Fills the buffer with the images of `step` and begins to fetch those of the next; raises what fetching raised."""
        if step == self._held:
            return
        fetched, future = self._ahead or (None, None)
        self._ahead = None
        if future is None or fetched != step:
            future = self._worker.submit(self._fetch, step)
        future.result()
        for buffer, staging in zip(self._buffers, self._staging, strict=True):
            buffer.copy_(staging, non_blocking=True)
        if self._copies is not None:
            self._copies.follow_current()
        self._held = step
        self._ahead = step + 1, self._worker.submit(self._fetch, step + 1)

    def settle(self) -> None:
        """Waits until nothing is being fetched; what fetching raised is left to prepare()."""
        if self._ahead:
            wait([self._ahead[1]])

    def close(self) -> None:
        """Ends the thread after the fetch under way. A stream that is merely forgotten ends it too."""
        self._ahead = None
        self._worker.shutdown(cancel_futures=True)

    def _indices(self, step: int) -> Tensor:
        random = np.random.default_rng([self._seed, step])
        drawn = random.integers(len(self._sources[0]), size=self._shape)
        return torch.from_numpy(drawn[:, self._rows].ravel())

    def _fetch(self, step: int) -> None:
        # One thread makes one fetch at a time, to the end: the pinned memory is free when the next begins.
        indices = self._indices(step)
        for source, host, staging in zip(self._sources, self._host, self._staging, strict=True):
            torch.index_select(source, 0, indices, out=host.flatten(0, 1))
            if self._copies is None:
                staging.copy_(host)
            else:
                self._copies.copy(staging, host)


class _CopyStream:
    """Copies from pinned memory on a CUDA stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._allowed = torch.cuda.Event()
        self._arrived = torch.cuda.Event(blocking=True)  # the thread that waits for it sleeps
        self.follow_current()

    def follow_current(self) -> None:
        """The next copy begins after everything that the current stream has been given so far."""
        self._allowed.record(torch.cuda.current_stream(self._stream.device))

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Returns when `target` has its values."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._allowed)
            target.copy_(source, non_blocking=True)
            self._arrived.record(self._stream)
        self._arrived.synchronize()
