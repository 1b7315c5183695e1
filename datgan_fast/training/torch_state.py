"""What a run sets in torch for the whole process: random state, deterministic algorithms, TF32. It holds while the run is at
work; then the user's own is back."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config import Config


class _Setting(NamedTuple):
    get: Callable[[], Any]
    set: Callable[[Any], None]


_AT_WORK = threading.RLock()  # the state is the process's, so that one thread's run is at work at a time


class TorchState:
    """One run's. It begins with the run's seed and goes on where it was left."""

    def __init__(self, config: Config) -> None:
        self._device = torch.device(config.device)
        self._wanted: list[tuple[_Setting, Any]] = []
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by the process's first matrix product
            self._want(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True)
        if self._device.type == "cuda":
            cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
            # Shapes never change, so that measuring pays; but today's fastest algorithm may not be tomorrow's.
            steady = config.deterministic or torch.are_deterministic_algorithms_enabled()
            self._want_attribute(cudnn, "benchmark", not steady)
            self._want_attribute(cudnn, "allow_tf32", config.tf32)
            self._want_attribute(matmul, "allow_tf32", config.tf32)
        self._random: tuple[Tensor, Tensor | None] | None = None  # where it was left
        self._seed, self._at_work = config.seed, False

    def _want(self, get: Callable[[], Any], put: Callable[[Any], None], value: Any) -> None:
        self._wanted.append((_Setting(get, put), value))

    def _want_attribute(self, holder: Any, name: str, value: Any) -> None:
        self._want(lambda: getattr(holder, name), lambda v: setattr(holder, name, v), value)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, torch's state is the run's. It may be entered inside itself; another thread's run waits."""
        with _AT_WORK:
            if self._at_work:
                yield
            else:
                with self._in_place():
                    yield

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        before = [(setting, setting.get()) for setting, _ in self._wanted]
        random = self._current()
        for setting, value in self._wanted:
            setting.set(value)
        if self._random is None:
            torch.manual_seed(self._seed)
        else:
            self._put(self._random)
        self._at_work = True
        try:
            yield
        finally:
            self._at_work = False
            self._random = self._current()
            self._put(random)
            for setting, value in before:
                setting.set(value)

    def random(self) -> tuple[Tensor, Tensor | None]:
        """The CPU's random state, and the device's if it is a GPU."""
        return self._current() if self._at_work or self._random is None else self._random

    def go_on_from(self, cpu: Tensor, device: Tensor | None) -> None:
        """Those states; None: the device's as it is."""
        with self.at_work():
            self._put((cpu, device))

    def _current(self) -> tuple[Tensor, Tensor | None]:
        cuda = self._device.type == "cuda"
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if cuda else None

    def _put(self, random: tuple[Tensor, Tensor | None]) -> None:
        cpu, device = random
        torch.set_rng_state(cpu.cpu())
        if device is not None:
            torch.cuda.set_rng_state(device.cpu(), self._device)
