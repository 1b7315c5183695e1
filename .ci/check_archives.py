"""Checks that the sdist holds everything a build needs and the wheel everything a run needs."""

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def sources(*folders: str) -> set[str]:
    kinds = {".py", ".cpp", ".h", ".cu", ".cuh", ".html", ".md"}
    paths = (p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in kinds)
    return {p.relative_to(ROOT).as_posix() for p in paths}


for archive in map(Path, sys.argv[1:]):
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as file:
            held = {name.partition("/")[2] for name in file.getnames()}
        wanted = sources("csrc", "kernels", "datgan_fast", "examples") | {
            "CMakeLists.txt",
            "setup.py",
            "pyproject.toml",
            "LICENSE",
            "README.md",
        }
    else:
        with zipfile.ZipFile(archive) as file:
            held = set(file.namelist())
        wanted = (
            sources("datgan_fast") | {"datgan_fast/" + name for name in sources("kernels")} | {"datgan_fast/py.typed"}
        )
        if not any(name.startswith("datgan_fast/_native") for name in held):
            sys.exit(f"{archive.name} lacks the extension")
    missing = sorted(wanted - held)
    if missing:
        sys.exit(f"{archive.name} lacks {', '.join(missing)}")
    print(f"{archive.name}: complete, {len(held)} files")
