"""Metrics as torch-fidelity computes them, on images that are in memory: inception.py and dinov2.py say with which network."""

from __future__ import annotations

import sys
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ConfigError


class _RGB(Dataset):
    """uint8 images [n, 1 or 3, H, W] as torch-fidelity reads them: one uint8 [3, H, W] at a time."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index].expand(3, -1, -1)


def find_torch_fidelity(metrics: str) -> None:
    """Raises ConfigError where torch-fidelity, which comes with the extra `inception`, cannot be used; `metrics` need it."""
    try:
        import torch_fidelity  # noqa: F401  seconds to import, so not before it is needed
    except ImportError as error:
        raise ConfigError(
            f"{metrics} measured by torch-fidelity, which cannot be used here ({error}); run: pip install torch-fidelity"
        ) from None


def calculate(
    generated: Tensor, real: Tensor, network: str, *, device: torch.device | str, batch_size: int, **what: Any
) -> dict[str, float]:
    """torch-fidelity's values for uint8 images [n, 1 or 3, H, W] against [m, 1 or 3, H, W]; grey counts as RGB.

    network    in words, for a line where no terminal shows a bar
    what       of torch_fidelity.calculate_metrics
    """
    import torch_fidelity

    device = torch.device(device)
    on_terminal = sys.stderr.isatty()
    if not on_terminal:
        print(f"{network} features of {len(generated)} + {len(real)} images", file=sys.stderr, flush=True)
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    # The network is built in there, which draws from the global random state.
    with on_device, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about eigenvalues and data loaders, which the user cannot act on
        return torch_fidelity.calculate_metrics(
            input1=_RGB(generated),
            input2=_RGB(real),
            cuda=device.type == "cuda",
            batch_size=batch_size,
            save_cpu_ram=True,  # no worker processes: the images are in memory already
            cache=False,
            verbose=on_terminal,
            **what,
        )
