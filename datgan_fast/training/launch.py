"""A command that torchrun has started several times: its processes come together as one, with one voice, and part again."""

from __future__ import annotations

import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from ..errors import TrainingStopped
from .share import WRONG, AnotherEnded, another_ended_is_said, attempt, store_of

# Who has died is torchrun's to notice, which ends the others; who lives may let them wait, for an evaluation or a download.
PATIENCE = timedelta(days=1)
FAREWELL = timedelta(seconds=20)  # for the first process's last words


def launched() -> bool:
    """Whether this process is one of several of torchrun's."""
    return {"RANK", "MASTER_ADDR"} <= os.environ.keys() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def launcher() -> dict[str, Any] | None:
    """By what torchrun knows the job that this process belongs to, through all its restarts; None without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    return {"host": socket.gethostname(), "pid": os.getppid(), "id": os.environ["TORCHELASTIC_RUN_ID"]}


def restarted() -> bool:
    """Whether torchrun has started this command before, and a process of it has failed."""
    return attempt() > 0


def own_device(name: str) -> str:
    """Of several processes on a machine each takes a GPU of its own, whichever the option names."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name.startswith("cuda") else name


class Launch:
    """The processes of a command, joined for as long as the context lasts. Of a command that runs once it does nothing."""

    def __init__(self) -> None:
        self._leaves_together = False

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *error: object) -> None:
        if self._leaves_together:
            self._wait_for_last_words()
            dist.destroy_process_group()

    def _wait_for_last_words(self) -> None:
        """torchrun ends all others as soon as one has ended with an error."""
        with suppress(RuntimeError):  # the store, or the first process, is gone
            if dist.get_rank() == 0:
                store_of("last words").set("said", "all")
            else:
                store_of("last words").wait(["said"], FAREWELL)

    def run(self, command: Callable[[], int]) -> int:
        """The command's exit code. What all processes find is the first's to say; what only one meets it says itself."""
        if not launched() or dist.is_initialized():
            return command()
        first = os.environ["RANK"] == "0"
        try:
            with _quiet(not first), another_ended_is_said(lambda: "another process ended before training began"):
                _join()
                code = command()
        except (*WRONG, TrainingStopped, KeyboardInterrupt) as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, while the last words are said
            self._leaves_together = dist.is_initialized() and not isinstance(error, AnotherEnded)
            if first:
                raise
            raise SystemExit(2 if isinstance(error, WRONG) else 1) from None
        except SystemExit:  # a wrong option, or --help
            self._leaves_together = True
            raise
        self._leaves_together = True
        return code


def _join() -> None:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available() and local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    # torchrun's store lives through restarts, and gloo would find the addresses of processes that are gone.
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    store = dist.PrefixStore(f"datgan_fast/{attempt()}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Warnings included."""
    if not quiet:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
