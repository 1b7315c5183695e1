"""The package's layers, and who imports whom: `python tests/layers.py` prints them, test_layers.py holds every import to them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# From the ground up. A room imports from those below it only, never from one in its own line.
LAYERS = (
    ("archives", "commands", "errors", "files", "moved", "pages", "version"),
    ("method", "data"),
    ("kernels", "metrics"),
    ("training",),
    ("paper",),
    ("cli", "the names at the door"),
    ("train", "sample", "evaluate", "compare", "attack", "contours", "reproduce", "doctor", "completion"),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


class Import(NamedTuple):
    """Module `who` has a line that imports module `whom`, wherever in the file; dotted names below datgan_fast."""

    who: str
    whom: str

    def __str__(self) -> str:
        return f"{self.who} imports {self.whom}"


def modules() -> dict[str, Path]:
    found = {}
    for folder, prefix, pattern in ((ROOT / "datgan_fast", (), "**/*.py"), (ROOT / "kernels", ("kernels",), "*.py")):
        for path in folder.glob(pattern):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(parts).removesuffix("__init__").removesuffix(".") or "the names at the door"] = path
    return dict(sorted(found.items()))


def imports() -> Iterator[Import]:
    known = modules()
    for who, path in known.items():
        folder = ("kernels",) if path.parent.name == "kernels" else path.parent.relative_to(ROOT / "datgan_fast").parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("datgan_fast")):
                above = folder[: len(folder) + 1 - node.level] if node.level else ()
                base = ".".join((*above, *(node.module or "").removeprefix("datgan_fast").strip(".").split("."))).strip(
                    "."
                )
                for alias in node.names:
                    whom = f"{base}.{alias.name}".strip(".")
                    yield Import(who, whom if whom in known else base or "the names at the door")


def room(module: str) -> str:
    return module.partition(".")[0]


def upward() -> list[Import]:
    """Imports from another room that is not below."""
    return [i for i in imports() if room(i.who) != room(i.whom) and LEVEL[room(i.who)] <= LEVEL[room(i.whom)]]


def circle() -> list[str]:
    """Modules that import each other in a circle; none where every import runs downwards inside the rooms too."""
    graph = TopologicalSorter[str]()
    for i in imports():
        if i.who != i.whom:
            graph.add(i.who, i.whom)
    try:
        graph.prepare()
    except CycleError as error:
        return error.args[1]
    return []


def show() -> None:
    every = set(imports())
    for rooms in reversed(LAYERS):
        print("  ".join(rooms).upper())
        for name in rooms:
            for module in (m for m in modules() if room(m) == name):
                below = sorted({i.whom for i in every if i.who == module and i.whom != module})
                print(f"    {module:32} {', '.join(below)}")


if __name__ == "__main__":
    show()
