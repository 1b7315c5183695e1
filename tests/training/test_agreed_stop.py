"""Whoever is asked to stop, and whenever the others look: all stop after the same step."""

import random
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist

from datgan_fast.training import agreed_stop
from datgan_fast.training.agreed_stop import AgreedStop
from datgan_fast.training.share import Share

CPU = torch.device("cpu")
MOST = 400


def together(size, store, asked, looks, monkeypatch):
    """The last step of each of so many threads. In a step all meet, as processes do in its messages.

    asked: by rank, the step before whose end it gets a signal. looks: seconds between looks, which vary from look to look.
    """
    monkeypatch.setattr(agreed_stop, "store_of", lambda purpose: store)
    meeting, last = threading.Barrier(size, timeout=30), {}

    def process(rank):
        signals = SimpleNamespace(requested=False)
        stop = AgreedStop(signals, Share(rank, size), CPU)
        for step in range(1, MOST):
            meeting.wait()
            signals.requested |= asked.get(rank) == step
            stop._next_look = 0.0 if looks.random() < 0.3 else float("inf")
            if stop.after(step):
                last[rank] = step
                return
        meeting.abort()

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return last


@pytest.mark.parametrize("size", [2, 3, 5])
def test_all_stop_after_the_same_step(size, monkeypatch):
    for seed in range(40):
        looks = random.Random(seed)
        ranks = looks.sample(range(size), looks.randint(1, size))
        asked = {rank: looks.randint(1, 9) for rank in ranks}
        last = together(size, dist.HashStore(), asked, looks, monkeypatch)
        assert len(last) == size, f"seed {seed}: {last}"
        assert len(set(last.values())) == 1, f"seed {seed}: {last}"
        assert last[0] > min(asked.values())


def test_one_process_stops_at_once():
    signals = SimpleNamespace(requested=False)
    stop = AgreedStop(signals, Share(), CPU)
    assert not stop.after(1)
    signals.requested = True
    assert stop.after(2)
