"""What a function does to the device: the memory it takes, the kernels it launches, how often it waits.

Both figures come from torch's own accounts: the CUDA allocator's statistics, and torch.profiler's trace.
"""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from measure import DEVICE, synchronise

LAUNCH = re.compile(r"(cuda|cu)(Launch\w*Kernel|GraphLaunch)")
WAIT = re.compile(r"cuda(StreamSynchronize|EventSynchronize|Memcpy)$")  # cudaDeviceSynchronize: ours, the profiler's


def _traced(run: Callable[[], object], memory: bool = False) -> tuple[profile, list[dict]]:
    """The profile of one call and the events of its trace."""
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (DEVICE == "cuda")
    with profile(activities=kinds, profile_memory=memory) as profiled:
        run()
        synchronise()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(file))
        return profiled, json.loads(file.read_text())["traceEvents"]


def peak_memory(run: Callable[[], object]) -> int:
    """The most bytes of tensors that lie there at once during a call, beyond those that lay there before."""
    if DEVICE == "cuda":
        synchronise()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        synchronise()
        return torch.cuda.max_memory_allocated() - before
    # torch's CPU allocator reports every block to the profiler; freeing what was there before is not counted.
    held = peak = 0
    for event in _traced(run, memory=True)[1]:
        if event.get("name") == "[memory]":
            held += event["args"]["Bytes"]
            peak = max(peak, held)
    return peak


def activity(run: Callable[[], object]) -> dict[str, int]:
    """On a GPU: launches by the host (a CUDA graph is one), kernels run, host synchronisations. On a CPU: operator calls,
    those that call no other."""
    profiled, events = _traced(run)
    if DEVICE == "cpu":
        return {"operator_calls": sum("::" in e.name and not e.cpu_children for e in profiled.events())}
    calls = [e for e in events if e.get("cat") in ("cuda_runtime", "cuda_driver")]
    return {
        "launches": len({e["args"]["correlation"] for e in calls if LAUNCH.match(e["name"])}),
        "graph_launches": sum(e["name"].startswith("cudaGraphLaunch") for e in calls),
        "kernels": sum(e.get("cat") == "kernel" for e in events),
        "synchronisations": sum(WAIT.match(e["name"]) is not None for e in calls),
    }
