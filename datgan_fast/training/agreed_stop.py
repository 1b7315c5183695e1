"""When several processes stop: all after the same step, whichever of them was asked to, and without a message in each step."""

from __future__ import annotations

import itertools
import time

import torch

from .share import Share, store_of
from .stop_signals import StopSignals

LOOK_EVERY = 0.5  # seconds between two looks at the store, of a process that has heard nothing

_runs = itertools.count()  # all processes begin the same runs in the same order


class AgreedStop:
    """Asked after each step; with one process its signals' own wish.

    A process that gets a signal says so in the key-value store of the process group, at which all look now and then. Whoever has
    heard of it adds itself to HEARD and from then on looks after every step. The first that finds all of them there, between its
    steps s and s + 1, writes s + 1 as the LAST step.

    Nobody can miss it. Each step has messages to which all contribute, so that nobody ends step s + 1 before the writer has
    begun it, which is after LAST was written; all have heard, so that they look at it after that step and have not gone beyond.
    Two writers write the same: while one is between s and s + 1 nobody has ended s + 1, and who has not ended s yet is between
    the same two when it has. On a GPU, where hosts run ahead of their devices, who has heard waits for the device after every
    step, and before it says so; then what is said here of processes is true of their hosts.
    """

    def __init__(self, signals: StopSignals, share: Share, device: torch.device) -> None:
        self._signals, self._share, self._device = signals, share, device
        self._heard, self._next_look = False, 0.0
        if not share.alone:
            self._store = store_of(f"stop/{next(_runs)}")

    def after(self, step: int) -> bool:
        """Whether this step, which has just been made, is the last."""
        if self._share.alone:
            return self._signals.requested
        if not (self._heard or self._hears()):
            return False
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if not self._heard:
            self._store.add("heard", 1)
            self._heard = True
        if not self._store.check(["last"]):
            if self._store.add("heard", 0) < self._share.size:
                return False
            self._store.set("last", str(step + 1))
        # Read back, and so known to be there before this process goes on.
        return step >= int(self._store.get("last"))

    def _hears(self) -> bool:
        if self._signals.requested:
            return True
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_EVERY
        return self._store.check(["heard"])
