"""The Frechet distance of DINOv2 features (Stein et al. 2023), through torch-fidelity.

Inception was trained to tell ImageNet's classes apart and favours images that show them; DINOv2 learnt without labels, and its
distances follow what people see more closely, by that paper's experiments with ViT-L/14.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout

import torch
from torch import Tensor

from ..errors import ConfigError
from .fidelity import calculate, find_torch_fidelity

NETWORK = "dinov2-vit-l-14"  # torch-fidelity's name
_REPOSITORY, _MODEL = "facebookresearch/dinov2", "dinov2_vitl14"


def find_network() -> None:
    """Fetches the network and its weights (1.2 GB) where torch's hub has not kept them. Raises ConfigError."""
    find_torch_fidelity("fd_dinov2 is")
    before = os.environ.get("XFORMERS_DISABLED")
    os.environ["XFORMERS_DISABLED"] = "1"  # as torch-fidelity has it
    try:
        with redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
            torch.hub.load(_REPOSITORY, _MODEL, trust_repo=True, verbose=False)
    except Exception as error:  # of the network, of the code that comes with it
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"--metrics fd_dinov2: torch.hub cannot load {_MODEL} of github.com/{_REPOSITORY} ({reason}); fill "
            f"{torch.hub.get_dir()} on a machine that can, or choose other metrics"
        ) from None
    finally:
        if before is None:
            del os.environ["XFORMERS_DISABLED"]
        else:
            os.environ["XFORMERS_DISABLED"] = before


def frechet_dinov2(
    generated: Tensor, real: Tensor, *, device: torch.device | str = "cpu", batch_size: int = 64
) -> tuple[float, str]:
    """(distance, protocol) of uint8 images [n, 1 or 3, H, W] against [m, 1 or 3, H, W]; grey counts as RGB.

    Images are resized to 224 pixels by torch-fidelity. Needs find_network().
    """
    values = calculate(
        generated, real, "DINOv2", device=device, batch_size=batch_size, fid=True, feature_extractor=NETWORK
    )
    return values[
        "frechet_inception_distance"
    ], f"DINOv2 ViT-L/14 (torch.hub, {_REPOSITORY}), torch-fidelity, 1024 features"
