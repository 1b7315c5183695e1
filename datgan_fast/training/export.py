"""A trained generator as a file that runs without this library: torch.export's program (.pt2), or ONNX.

TorchScript is not offered: torch advises against it since 2.9 and has torch.export in its place.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..errors import ConfigError
from .checkpoints import Trained

SUFFIX = {"torch": ".pt2", "onnx": ".onnx"}


def export(trained: Trained, kind: str, path: Path) -> None:
    """Writes the generator for batches of any size: latents [n, z_dim], and labels int64 [n] if it has classes, -> images.

    Raises ConfigError where a package that ONNX needs is missing; OSError.
    """
    inputs: tuple[Tensor, ...] = (torch.zeros(2, trained.z_dim, dtype=torch.float32, device="cpu"),)
    names = ["latents"]
    if trained.classes:
        inputs = (*inputs, torch.zeros(2, dtype=torch.int64, device="cpu"))
        names.append("labels")
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in inputs)
    write: dict[str, Callable[..., None]] = {"torch": _torch, "onnx": _onnx}
    with files.atomic(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        write[kind](trained.generator.cpu().eval(), inputs, names, shapes, temporary)


def _torch(generator: Any, inputs: tuple[Tensor, ...], names: list[str], shapes: Any, path: Path) -> None:
    torch.export.save(torch.export.export(generator, inputs, dynamic_shapes=shapes), path)


def _onnx(generator: Any, inputs: tuple[Tensor, ...], names: list[str], shapes: Any, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--export onnx: needs the packages onnx and onnxscript ({error}); pip install onnx onnxscript"
        ) from None
    with contextlib.redirect_stdout(io.StringIO()):  # its progress
        program = torch.onnx.export(
            generator,
            inputs,
            input_names=names,
            output_names=["images"],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=False)
