"""torch.compile in a benchmark: compiled anew for each cell, and nothing of it run by plain torch instead.

Without a reset the compiler gives up on a function at its ninth variant, and runs it uncompiled with a warning.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._dynamo.utils import counters


@contextmanager
def nothing_falls_back() -> Iterator[None]:
    """Starts with no compiled function. Raises RuntimeError at the end if a call of one ran uncompiled, even in part."""
    torch._dynamo.reset()
    counters.clear()
    yield
    frames, breaks = counters["frames"], counters["graph_break"]
    if frames["ok"] < frames["total"] or breaks:
        reasons = [*breaks, *counters["unimplemented"]] or ["it gave no reason"]
        why = "; ".join(reason.partition("\n")[0] for reason in reasons)
        raise RuntimeError(
            f"torch.compile ran {frames['total'] - frames['ok']} of {frames['total']} functions uncompiled and broke "
            f"{sum(breaks.values())} in parts, so the cell does not show compiled code: {why}"
        )
