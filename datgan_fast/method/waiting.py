"""Whether the host may look at a value, or would wait for the device until it is there."""

from __future__ import annotations

import torch


def looking_waits(device: torch.device) -> bool:
    """True wherever work is queued: looking would stop the queue, and cannot be recorded in a CUDA graph."""
    return device.type != "cpu"
