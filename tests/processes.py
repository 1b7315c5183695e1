"""Runs a function in several processes with a gloo group of theirs, and brings back what each returns."""

import datetime
import warnings

import torch
from torch import distributed as dist
from torch import multiprocessing


def in_processes(count, function, folder):
    """[function(rank, count) of each rank]; raises what any of them raised. function: of a module, so that it can be sent."""
    multiprocessing.spawn(_work, (count, function, str(folder)), nprocs=count)
    return [torch.load(f"{folder}/{count}-{rank}.pt", weights_only=False) for rank in range(count)]


def _work(rank, count, function, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("error", FutureWarning)
    patience = datetime.timedelta(seconds=60)  # where one waits for a message that nobody sends
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{count}", rank=rank, world_size=count, timeout=patience
    )
    found = function(rank, count)
    dist.barrier()  # nobody leaves before all have what they wait for
    dist.destroy_process_group()
    torch.save(found, f"{folder}/{count}-{rank}.pt")


def messages(run):
    """How many of each kind of message the call sends, by name."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    counts = {}
    for event in profile.events():
        if event.name.startswith("gloo:"):
            counts[event.name] = counts.get(event.name, 0) + 1
    return counts
