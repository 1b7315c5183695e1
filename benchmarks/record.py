"""Result files: what one was measured on (environment), reading one (read), and a command line that writes one.

    python benchmarks/record.py --out FILE --command "..." [--section NAME=FILE]... [--status NAME=CODE]... [--environment FILE]

A section is another JSON file taken in whole (a pytest-benchmark report is cut down to its figures); one that was not written is
left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class ResultError(Exception):
    """One sentence that names the file and what is wrong with it."""


def read(path: Path) -> dict[str, Any]:
    """A result file that has benchmarks. Raises ResultError."""
    try:
        result = json.loads(path.read_text())
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise ResultError(f"{path}: is not JSON") from None
    if not isinstance(result, dict) or not result.get("benchmarks") or "device" not in result:
        raise ResultError(f"{path}: has no benchmarks; write it with benchmarks/record.py --section benchmarks=FILE")
    return result


def _output(*command: str) -> str | None:
    """What the command prints; None where it is absent or fails."""
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None


def _version(module: str) -> str | None:
    try:
        return str(__import__(module).__version__)
    except ImportError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _modified() -> bool | None:
    """Whether tracked files differ from the commit; None where there is no git."""
    if _output("git", "rev-parse", "HEAD") is None:
        return None
    return _output("git", "status", "--porcelain", "--untracked-files=no") is not None


def environment() -> dict[str, Any]:
    """Device, date, versions and commit. DATGAN_FAST_COMMIT stands in where there is no git."""
    import torch

    try:
        import datgan_fast

        package = {"datgan_fast": datgan_fast.__version__, "backends": datgan_fast.backends()}
    except ImportError as error:  # the record of a build that failed
        package = {"datgan_fast": None, "backends": None, "import_error": str(error)}
    cuda = torch.cuda.is_available()
    return {
        "date": now(),
        "commit": os.environ.get("DATGAN_FAST_COMMIT") or _output("git", "rev-parse", "HEAD"),
        "modified": _modified(),
        "device": torch.cuda.get_device_name() if cuda else _cpu(),
        "devices": torch.cuda.device_count() if cuda else 0,
        "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())) if cuda else None,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nvcc": (_output("nvcc", "--version") or "").rpartition("\n")[2] or None,
        "triton": _version("triton"),
        **package,
    }


def kept_environment(file: Path | None) -> dict[str, Any]:
    """The environment, which takes seconds to look at, from a file that an earlier record of the same check left."""
    if file is None:
        return environment()
    if file.is_file():
        return {**json.loads(file.read_text()), "date": now()}
    found = environment()
    if found["datgan_fast"]:
        file.write_text(json.dumps(found))
    return found


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def section(path: Path) -> Any:
    """A JSON file's content; of a pytest-benchmark report each benchmark's figures."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or "benchmarks" not in content:
        return content
    return [
        {
            "name": benchmark["name"],
            **{key: benchmark["stats"][key] for key in ("min", "median", "stddev", "rounds")},
            **benchmark["extra_info"],
        }
        for benchmark in content["benchmarks"]
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--command", required=True, help="the command that made the result")
    parser.add_argument("--section", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--status", action="append", default=[], metavar="NAME=CODE", help="exit status of a part")
    parser.add_argument("--environment", type=Path, metavar="FILE", help="where the parts of a check keep it")
    options = parser.parse_args(arguments)
    statuses = {name: int(code) for name, _, code in (item.partition("=") for item in options.status)}
    result = {
        **kept_environment(options.environment),
        "command": options.command,
        "passed": not any(statuses.values()) if statuses else None,  # nothing was checked
        "status": statuses,
    }
    for name, _, path in (item.partition("=") for item in options.section):
        if Path(path).is_file():
            result[name] = section(Path(path))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.out, json.dumps(result, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Nobody ever finds half of it, whenever the process is killed."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text)
    beside.replace(path)


if __name__ == "__main__":
    main()
