"""The installed extension as the system's tools see it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from datgan_fast.method import native

extension = native.extension
needs_extension = pytest.mark.skipif(extension is None, reason=str(native.problem))
needs_cuda_build = pytest.mark.skipif(
    not hasattr(extension, "CUDA_ARCHITECTURES"), reason="the extension was built without CUDA"
)


def tool(name):
    """A tool of the system, or the copy that comes with Triton."""
    found = shutil.which(name)
    if not found:
        triton = pytest.importorskip("triton")
        copy = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
        found = str(copy) if copy.exists() else pytest.skip(f"{name} is not installed")
    return found


def output_of(name, *arguments):
    command = [tool(name), *arguments, extension.__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
