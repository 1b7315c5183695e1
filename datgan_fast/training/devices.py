"""The device of a run, and the precision it is good at."""

from __future__ import annotations

import re

import torch

from ..errors import ConfigError


def resolve_device(name: str) -> str:
    """'auto', 'cpu', 'cuda' or 'cuda:i' as the device that will be used. Raises ConfigError."""
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (re.fullmatch("[0-9]{1,4}", index) or name == "cuda"):
        raise ConfigError(f"--device {name}: must be auto, cpu, cuda or cuda:i")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise ConfigError(f"--device {name}: this machine has {count} CUDA devices; use --device auto or cpu")
    return f"cuda:{int(index or 0)}"


def best_precision(device: str) -> str:
    """bf16 on a GPU that computes with it, else fp32."""
    fast = device.startswith("cuda") and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if fast else "fp32"
