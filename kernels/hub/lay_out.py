"""Lays the Triton kernels out as a kernel of a hub (`kernel-builder`'s torch-noarch), which imports nothing but torch and Triton.

    python kernels/hub/lay_out.py FOLDER

FOLDER then holds build.toml, flake.nix, CARD.md and torch-ext/dat_attack/: front.py as its `__init__.py`, kernels/ as it is, and
those files of datgan_fast/method/ that kernels/ and the front import. Nothing is in this repository twice.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
METHOD = ("__init__", "arguments", "backend", "drawn", "formulas", "objective")


def lay_out(folder: Path) -> Path:
    """The package in `folder`, which must not exist yet."""
    package = folder / "torch-ext" / "dat_attack"
    for part in ("kernels", "method"):
        (package / part).mkdir(parents=True)
    for name in ("build.toml", "flake.nix", "CARD.md"):
        shutil.copy(HERE / name, folder)
    shutil.copy(HERE / "front.py", package / "__init__.py")
    for path in (ROOT / "kernels").glob("*.py"):
        shutil.copy(path, package / "kernels")
    for name in METHOD:
        shutil.copy(ROOT / "datgan_fast" / "method" / f"{name}.py", package / "method")
    return package


if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        sys.exit("lay_out.py takes one argument, a folder that does not exist yet")
    print(lay_out(Path(sys.argv[1])))
