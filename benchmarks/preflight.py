"""Says in one sentence what this machine lacks for a check on a GPU: packages, their dependencies, a device.

    python benchmarks/preflight.py

Exit status 2 if something is missing that nothing can be checked without. It installs and builds nothing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from importlib import metadata

from record import ROOT

# What the machine has in its own way, such as a container's torch: there or not, without a look at what it needs.
TAKEN_WHOLE = {"torch", "torchvision", "triton", "numpy"}
WITHOUT = {
    "torch-fidelity": "its tests are left out",
    "pytest-xdist": "tests run one after another",
    "triton": "its kernels cannot run",
}
PROGRAMS = {"cmake", "ninja"}  # a program of the system will do


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def needed() -> list[str]:
    """The project's requirements: at run time, for its tests and to build it."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = [
        re.search(rf"^{key} = \[(.*?)\]$", text, re.DOTALL | re.MULTILINE)
        for key in ("requires", "dependencies", "test")
    ]
    return [r for found in lists if found for r in re.findall(r'"([^"]+)"', found[1])]


def applies(requirement: str) -> bool:
    """Whether a requirement's marker holds here; one of an extra does not."""
    if ";" not in requirement:
        return True
    from packaging.requirements import Requirement

    marker = Requirement(requirement).marker
    return marker is None or marker.evaluate({"extra": ""})


def missing(requirements: Iterable[str], requires: Callable[[str], list[str] | None] = metadata.requires) -> list[str]:
    """Names of the distributions that are not installed, of these and of those that they need."""
    found: dict[str, bool] = {}
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop(0)
        name = name_of(requirement)
        if name in found or not applies(requirement):
            continue
        try:
            further = requires(name) or []
            found[name] = True
        except metadata.PackageNotFoundError:
            further, found[name] = [], name in PROGRAMS and shutil.which(name) is not None
        if name not in TAKEN_WHOLE:
            waiting += further
    return [name for name, there in found.items() if not there]


def device_problem() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "a CUDA device that torch can use"


def main() -> None:
    absent = missing(["packaging"]) or missing([*needed(), *WITHOUT])  # without packaging no marker can be read
    vital = [name for name in absent if name not in WITHOUT]
    if "torch" not in vital and (problem := device_problem()):
        vital.append(problem)
    parts = vital + [f"{name} ({WITHOUT[name]})" for name in absent if name in WITHOUT]
    if not parts:
        print("preflight: nothing is missing")
        return
    print(
        f"preflight: this machine lacks {', '.join(parts)}; packages can be brought as wheels, see DATGAN_FAST_WHEELS"
    )
    raise SystemExit(2 if vital else 0)


if __name__ == "__main__":
    main()
