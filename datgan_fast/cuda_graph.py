"""A function of the device recorded once as a CUDA graph, which replays with one launch what took thousands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# The first run chooses convolution algorithms and finds out whether images are independent; the others settle what torch
# and its compiler delay.
WARM_UP = 3


class CaptureError(RuntimeError):
    """The function cannot be captured; the message is the reason in torch's words."""


def capture(run: Callable[[], None], tensors: Sequence[Tensor], device: torch.device) -> Callable[[], None]:
    """The replay of `run`: each call has the effect that calling `run` has.

    Args:
        run: works on the device only and reads nothing back.
        tensors: every tensor that `run` changes for its next call. They and the random state are put back after the
            warm-up; their addresses must stay.

    Raises:
        CaptureError: `run` does what cannot be captured. The tensors and the random state are as they were.
    """
    recorder = Recorder(device)
    saved = [t.detach().clone() for t in tensors]
    random = recorder.random_state()

    def put_back() -> None:
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
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, run: Callable[[], None]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph, stream=self._stream):
            run()
        return graph.replay

    def random_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self._device)

    def set_random_state(self, state: Tensor) -> None:
        torch.cuda.set_rng_state(state, self._device)
