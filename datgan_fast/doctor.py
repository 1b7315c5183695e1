"""The command doctor: what is installed, which backends can be used and why others cannot, whether they compute what they
should, and what to do next."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .cli import Parser, command_parser, run_command
from .commands import spelled
from .method import native
from .method.dispatch import backends
from .method.self_test import Outcome, self_test, testable
from .metrics.feature_network import cache_folder
from .training.run_folder import environment

# Distribution -> what for, and how it comes; one may do without each of them.
OPTIONAL = {
    "triton": ("the triton backend, on a GPU", "pip install triton"),
    "torch-fidelity": ("evaluate --metrics is,fid,kid,fd_dinov2", "pip install torch-fidelity"),
    "onnx": ("sample --export onnx", "pip install onnx onnxscript"),
    "onnxscript": ("the same", "pip install onnx onnxscript"),
    "wandb": ("train --loggers wandb", "pip install wandb"),
    "trackio": ("train --loggers trackio", "pip install trackio"),
    "shtab": ("--print-completion", "pip install shtab"),
}


def doctor(arguments: argparse.Namespace) -> int:
    found = findings()
    if not arguments.json:
        describe(found)
    started = time.perf_counter()
    outcomes = []
    for name in testable():
        of_this = list(self_test(name))
        outcomes += of_this
        if not arguments.json:
            describe_tests(name, of_this)
    failed = [outcome for outcome in outcomes if not outcome.passed]
    advice = what_to_do(found, failed)
    if arguments.json:
        tests = [{**outcome._asdict(), "passed": outcome.passed} for outcome in outcomes]
        print(json.dumps({**found, "self_test": tests, "next": advice}, indent=1))
    else:
        print(f"self-test: {time.perf_counter() - started:.1f} s")
        print("\n".join(advice))
    return 1 if failed else 0


def findings() -> dict[str, Any]:
    """What is here, but for the self-test."""
    made = environment()
    versions = {name: made[name] for name in ("datgan_fast", "commit", "python", "torch", "numpy")}
    return {
        **versions,
        "triton": version("triton"),
        "package": str(Path(__file__).parent),
        "platform": made["platform"],
        "cpu": cpu_name(),
        "threads": made["threads"],
        "cuda": made["cuda"],
        "driver": nvidia_smi("driver_version"),
        "gpus_of_driver": nvidia_smi("name"),
        "gpus": [
            f"{torch.cuda.get_device_name(i)} (compute capability {'.'.join(map(str, torch.cuda.get_device_capability(i)))})"
            for i in range(torch.cuda.device_count())
        ],
        "extension": extension(),
        "backends": backends(),
        "cache": cache(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith("DATGAN_FAST_")},
        "optional": {name: version(name) for name in OPTIONAL},
    }


def version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def nvidia_smi(field: str) -> list[str]:
    """What the driver says of each GPU; nothing where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in said.splitlines() if line.strip()]


def extension() -> dict[str, Any]:
    """The compiled extension: where it is, what it was built for, and why it is not used, if it is not."""
    loaded = native.extension
    if loaded is None:
        return {"problem": native.problem}
    checkout = Path(__file__).resolve().parents[1] / "csrc"
    return {
        "file": str(loaded.__file__),
        "sources": loaded.SOURCE_DIGEST,
        "of_this_checkout": True if checkout.is_dir() else None,  # another's is not loaded; None: there is no checkout
        "instruction_set": native.instruction_set(),
        "cuda_architectures": loaded.CUDA_ARCHITECTURES if hasattr(loaded, "cuda_attack_step") else None,
        "problem": None,
    }


def cache() -> dict[str, Any]:
    """The folder of feature networks, and why it cannot be written, if it cannot."""
    folder = cache_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())  # where it will be made
    try:
        with tempfile.TemporaryFile(dir=there):
            problem = None
    except OSError as error:
        problem = f"{there} cannot be written ({error.strerror})"
    return {"folder": str(folder), "problem": problem}


def what_to_do(found: dict[str, Any], failed: list[Outcome]) -> list[str]:
    """A line or two: the most pressing first."""
    advice = []
    if failed:
        names = ", ".join(dict.fromkeys(outcome.backend for outcome in failed))
        advice.append(
            f"{names}: computes something else than the reference in float64; please report it with the output of "
            f"{spelled('doctor')} --json"
            + (", and set DATGAN_FAST_BACKEND=reference until then" if "reference" not in names else "")
        )
    gpu, cpu = gpu_advice(found), found["backends"]["cpu"]
    advice += [gpu] if gpu else []
    if cpu:
        advice.append(f"the CPU kernels cannot be used, so that the slower reference runs: {cpu}")
    if found["cache"]["problem"]:
        advice.append(f"{found['cache']['problem']}; name another folder in DATGAN_FAST_CACHE, or evaluations fail")
    return advice or [f"all is well; next: {spelled('train')} --fused"]


def gpu_advice(found: dict[str, Any]) -> str | None:
    """Where there is a GPU that the kernels cannot use."""
    cuda, triton = found["backends"]["cuda"], found["backends"]["triton"]
    if found["gpus"]:
        if not cuda:
            return None
        instead = "the slower reference runs" if triton else "the Triton kernels run instead"
        return f"the CUDA kernels cannot be used, {instead}: {cuda}"
    if found["gpus_of_driver"]:
        built = f"is built for CUDA {found['cuda']}" if found["cuda"] else "is built without CUDA"
        return (
            f"torch cannot use this machine's GPU ({found['gpus_of_driver'][0]}): torch {found['torch']} {built}, the driver is "
            f"{found['driver'][0]}; install a torch that this driver knows, see pytorch.org/get-started, or a newer driver"
        )
    return None


def describe(found: dict[str, Any]) -> None:
    f = found
    commit = f", commit {f['commit'][:12]}" if f["commit"] else ""
    print(f"datgan-fast {f['datgan_fast']} in {f['package']}{commit}")
    print(f"python {f['python']}, torch {f['torch']}, numpy {f['numpy']}, triton {f['triton'] or 'not installed'}")
    print(f"{f['platform']}, {f['cpu']}, {f['threads']} threads")
    gpus = "; ".join(f["gpus"] or f["gpus_of_driver"]) or "none"
    print(
        f"GPU: {gpus}; driver: {', '.join(dict.fromkeys(f['driver'])) or 'none'}; CUDA of torch: {f['cuda'] or 'none'}"
    )
    e = f["extension"]
    if not e["problem"]:
        origin = "this checkout's sources" if e["of_this_checkout"] else "a package, no checkout around it"
        print(f"extension: {e['file']}, of {origin}; CUDA architectures: {e['cuda_architectures'] or 'none'}")
    else:
        print(f"extension: {e['problem']}")
    print("backends:")
    for name, problem in f["backends"].items():
        kind = f" ({e['instruction_set']})" if name == "cpu" and not problem else ""
        print(f"  {name:10} {problem or f'usable{kind}'}")
    print(f"cache folder: {f['cache']['folder']}, {f['cache']['problem'] or 'can be written'}")
    for name, value in f["variables"].items():
        print(f"environment: {name}={value}")
    print("optional packages:")
    for name, installed in f["optional"].items():
        purpose, how = OPTIONAL[name]
        print(f"  {name:15} {installed or f'not installed ({how})'}: for {purpose}")


def describe_tests(backend: str, outcomes: list[Outcome]) -> None:
    """A line for each operation: whether it passed, and its worst relative error by dtype."""
    print(f"self-test of {backend}, worst relative errors:", flush=True)
    for what in dict.fromkeys(outcome.what for outcome in outcomes):
        of_this = [outcome for outcome in outcomes if outcome.what == what]
        errors = "  ".join(f"{o.dtype} {o.error:.1e}" for o in of_this)
        wrong = "; ".join(f"{o.dtype} {o.case} allows {o.allowed:g}" for o in of_this if not o.passed)
        print(f"  {'FAIL' if wrong else 'pass'}  {what:29} {errors}{wrong and f'  ({wrong})'}", flush=True)


def build_parser() -> Parser:
    parser = command_parser(
        "doctor",
        "[options]",
        ["", "--json > doctor.json"],
        "Prints versions, backends, folders and optional packages, and tests every usable backend beside\n"
        "the reference, in seconds. Exit code 1 where one computes something else.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines, for a report of a fault")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    return run_command(parser.prog, lambda: doctor(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
