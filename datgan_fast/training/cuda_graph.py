"""A function of the device recorded once as a CUDA graph, which replays with one launch what took thousands.

A capture that fails leaves the process as it was: torch itself leaves a memory pool open and the default generator
waiting for the end of the capture, so that the next random number raises.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, cuda

# The first run chooses convolution algorithms and finds out whether images are independent; the second settles what torch
# and its compiler delay; the last must read nothing back.
WARM_UP = 3

_UNENDED: list[cuda.CUDAGraph] = []  # torch's allocators keep asking a graph whose capture never ended what it captures


class CaptureError(RuntimeError):
    """The function cannot be captured; the message is the reason in torch's words."""


def capture(run: Callable[[], None], tensors: Sequence[Tensor], device: torch.device) -> Callable[[], None]:
    """The replay of `run`: each call has the effect that calling `run` has.

    Args:
        run: works on the device only and reads nothing back.
        tensors: every tensor that `run` changes for its next call. They and the random state are put back after the
            warm-up; their addresses must stay.

    Raises:
        CaptureError: `run` does what cannot be captured. The tensors and the random state are as they were, and the
            process can go on.
    """
    recorder = Recorder(device)
    saved = [t.detach().clone() for t in tensors]
    random = recorder.random_state()

    def put_back() -> None:
        if saved:  # torch refuses empty lists
            torch._foreach_copy_([t.detach() for t in tensors], saved)
        recorder.set_random_state(random)

    try:
        recorder.warm_up(run)
        put_back()
        return recorder.record(run)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        put_back()
        cause: BaseException = error
        while cause.__context__:  # ending the broken capture raises again
            cause = cause.__context__
        raise CaptureError(" ".join(str(cause).split())) from error


class Recorder:
    """Runs and records on one stream: autograd remembers the stream on which it first met a parameter."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = cuda.Stream(device)
        self._scratch = torch.zeros((), dtype=torch.float32, device=device)

    def warm_up(self, run: Callable[[], None]) -> None:
        """Raises RuntimeError if the last run waits for the device: found now, it breaks no capture."""
        before = cuda.current_stream(self._device)
        self._stream.wait_stream(before)
        try:
            with cuda.stream(self._stream):
                for _ in range(WARM_UP - 1):
                    run()
                with _waiting_raises():
                    run()
        finally:
            before.wait_stream(self._stream)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        cuda.synchronize(self._device)
        gc.collect()
        cuda.empty_cache()
        graph, pool = cuda.CUDAGraph(), cuda.graph_pool_handle()
        with cuda.device(self._device), cuda.stream(self._stream):
            graph.capture_begin(pool)
            try:
                run()
            finally:
                try:
                    graph.capture_end()
                except BaseException:
                    self._clear_up(graph, pool)
                    raise
        return graph.replay

    def _clear_up(self, graph: cuda.CUDAGraph, pool: tuple[int, int]) -> None:
        """What torch leaves undone when a capture cannot end (CUDAGraph::capture_end stops half-way)."""
        _UNENDED.append(graph)
        index = self._scratch.device.index
        name = "_cuda_endAllocateToPool"
        if not hasattr(torch._C, name):
            name = "_cuda_endAllocateCurrentStreamToPool"  # before torch 2.8
        getattr(torch._C, name)(index, pool)
        torch._C._cuda_releasePool(index, pool)
        graph.reset()
        # The default generator leaves its capture state at the end of a capture that succeeds. Giving it another state
        # instead would part it from the graphs that were captured before.
        working = cuda.CUDAGraph()
        working.capture_begin()
        self._scratch.zero_()
        working.capture_end()

    def random_state(self) -> Tensor:
        return cuda.get_rng_state(self._device)

    def set_random_state(self, state: Tensor) -> None:
        cuda.set_rng_state(state, self._device)


@contextmanager
def _waiting_raises() -> Iterator[None]:
    """Whatever makes the host wait for the device raises RuntimeError."""
    before = cuda.get_sync_debug_mode()
    cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        cuda.set_sync_debug_mode(before)
