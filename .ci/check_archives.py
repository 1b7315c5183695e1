"""Checks that the sdist holds all that a build needs, and the wheel all that a run needs and nothing that ties it to one torch.

python .ci/check_archives.py dist/*
"""

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST_WHEEL = 2 * 2**20  # bytes, with the CUDA kernels of all architectures
# Of torch and of a CUDA runtime that is not inside.
FOREIGN = re.compile(r"_ZNK?(2at|3c10|5torch|6caffe2)|_*cuda|cu[A-Z]|lib(torch|c10|cuda|cudart|nv|gomp|omp|iomp)")


def sources(*folders: str) -> set[str]:
    kinds = {".py", ".cpp", ".h", ".cu", ".cuh", ".cmake", ".html", ".md"}
    paths = (p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in kinds)
    return {p.relative_to(ROOT).as_posix() for p in paths}


def check_sdist(path: Path) -> int:
    with tarfile.open(path) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    files = {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "README.md", "CITATION.cff"}
    complain_of(path, sources("csrc", "kernels", "datgan_fast", "examples", "tests") | files, held)
    return len(held)


def check_wheel(path: Path) -> int:
    with zipfile.ZipFile(path) as file:
        held = set(file.namelist())
        kernels = {path.name for path in (ROOT / "kernels").glob("*.py")}
        wanted = sources("datgan_fast") | {f"datgan_fast/kernels/{name}" for name in kernels}
        complain_of(path, wanted | {"datgan_fast/py.typed"}, held)
        extension = next((name for name in held if name.startswith("datgan_fast/_native")), None)
        if extension is None:
            sys.exit(f"{path.name} lacks the extension")
        with tempfile.TemporaryDirectory() as folder:
            check_extension(path, Path(file.extract(extension, folder)))
    if path.stat().st_size > LARGEST_WHEEL:
        sys.exit(f"{path.name} has {path.stat().st_size:,} bytes, more than {LARGEST_WHEEL:,}")
    return len(held)


def check_extension(wheel: Path, extension: Path) -> None:
    """What it needs, as the system's tools tell it."""
    names = [line.split()[-1] for line in output_of("nm", "-D", "--undefined-only", extension)]
    names += re.findall(r"NEEDED.*\[(.+)\]", "\n".join(output_of("readelf", "-d", extension)))
    if foreign := sorted(filter(FOREIGN.match, names)):
        sys.exit(f"{wheel.name}'s extension needs {', '.join(foreign)}")
    if "libc.so.6" not in names:
        sys.exit(f"{wheel.name}'s extension could not be looked into")


def output_of(*command: str | Path) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def complain_of(path: Path, wanted: set[str], held: set[str]) -> None:
    if missing := sorted(wanted - held):
        sys.exit(f"{path.name} lacks {', '.join(missing)}")


if __name__ == "__main__":
    for archive in map(Path, sys.argv[1:]):
        count = (check_sdist if archive.name.endswith(".tar.gz") else check_wheel)(archive)
        print(f"{archive.name}: complete, {count} files, {archive.stat().st_size:,} bytes")
