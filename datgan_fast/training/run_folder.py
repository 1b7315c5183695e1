"""A run's folder: its configuration, log, statistics, pictures and weights.

runs/00000-dcgan-dat-digits/: config.yaml env.json log.txt stats.jsonl metrics.jsonl tensorboard/ samples/ curves.png
checkpoints/ generator.safetensors
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from .. import files
from ..errors import ConfigError
from ..method.dispatch import backends
from ..version import __version__
from .config import Config
from .options import Options
from .pictures import draw_curves

KEPT_CHECKPOINTS = 3


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensorboard: SummaryWriter | None = None

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """The next numbered folder in config.outdir. Raises ConfigError if it cannot be made."""
        outdir = Path(config.outdir)
        try:
            outdir.mkdir(parents=True, exist_ok=True)
            while True:
                number = 1 + max((_number(p) for p in outdir.iterdir()), default=-1)
                path = outdir / f"{number:05d}-{config.name}"
                try:
                    path.mkdir()
                    break
                except FileExistsError:  # another run took the number
                    continue
            return cls.begin(path, config)
        except OSError as error:
            raise ConfigError(f"--outdir {outdir}: must be a folder that can be written ({error.strerror})") from None

    @classmethod
    def begin(cls, path: Path, config: Config) -> RunFolder:
        """A run at this very place, which may be there already; its config.yaml is written last. Raises OSError."""
        for folder in ("samples", "checkpoints"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        files.write_text(path / "env.json", json.dumps(environment(), indent=2) + "\n")
        files.write_text(path / "config.yaml", yaml.safe_dump(config.typed(), sort_keys=False))
        return cls(path)

    @classmethod
    def latest(cls, outdir: str, name: str | None = None) -> RunFolder | None:
        """The newest run in outdir (of that name), None if there is none."""
        folder = Path(outdir)
        runs = [p for p in folder.iterdir() if _number(p) >= 0] if folder.is_dir() else []
        runs = [p for p in runs if (p / "config.yaml").is_file() and (name is None or p.name[6:] == name)]
        return cls(max(runs, key=_number)) if runs else None

    def options(self, option: str = "--resume") -> Options:
        """Those of its config.yaml, which has a value for each. Raises ConfigError, naming the option that led here."""
        path = self.path / "config.yaml"
        try:
            return Options.from_mapping(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
        except (OSError, AttributeError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{option} {self.path}: its config.yaml cannot be read ({reason})") from None

    def computed_by(self, how: dict[str, str]) -> None:
        """Adds to env.json how the run's steps are computed, which is known once there was one."""
        path = self.path / "env.json"
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # nothing of the run depends on it
            before = {}
        files.write_text(path, json.dumps({**before, **how}, indent=2) + "\n")

    # What happened

    def log(self, text: str) -> None:
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def statistics(self, record: dict[str, Any]) -> None:
        files.append_json_line(self.path / "stats.jsonl", record)
        self._scalars("train", record)

    def metric(self, record: dict[str, Any]) -> None:
        files.append_json_line(self.path / "metrics.jsonl", record)
        self._scalars("metrics", {"step": record["step"], record["metric"]: record["value"]})

    def _scalars(self, group: str, record: dict[str, Any]) -> None:
        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"))
        for key, value in record.items():
            if key != "step" and isinstance(value, (int, float)):
                self._tensorboard.add_scalar(f"{group}/{key}", value, record["step"])

    def rewind(self, step: int) -> None:
        """Forgets what was recorded after `step`, for a run that continues from there."""
        for leftover in self.path.rglob(".*.tmp*"):
            leftover.unlink(missing_ok=True)
        later = [*self.checkpoints(), *(self.path / "samples").glob("step-*.png")]
        for abandoned in (p for p in later if _step(p) > step):
            abandoned.unlink()
        for name in ("stats.jsonl", "metrics.jsonl"):
            path = self.path / name
            kept = [r for r in files.read_json_lines(path) if r["step"] <= step]
            if path.exists():
                files.write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
        self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None

    # Pictures

    def samples_path(self, step: int) -> Path:
        return self.path / "samples" / f"step-{step:06d}.png"

    def curves(self) -> None:
        records = files.read_json_lines(self.path / "stats.jsonl")
        if records:
            draw_curves(records, self.path.name, self.path / "curves.png")

    # Weights

    def checkpoint_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}.pt"

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        found = (self.path / "checkpoints").glob("step-*.pt")
        return sorted((p for p in found if _step(p) >= 0), key=_step)

    def save_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        with files.atomic(self.checkpoint_path(step)) as temporary:
            torch.save(state, temporary)
            files.seal(temporary)
        for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)


def _step(path: Path) -> int:
    """The step in a checkpoint's or a sample grid's name, -1 if there is none."""
    match = re.fullmatch(r"step-(\d+)", path.stem)
    return int(match.group(1)) if match else -1


def _number(path: Path) -> int:
    """The number of a run folder's name, -1 if it is none."""
    match = re.match(r"(\d{5,})-", path.name)
    return int(match.group(1)) if match and path.is_dir() else -1


def environment() -> dict[str, Any]:
    """What a run was made with, for env.json."""

    def commit() -> str | None:
        checkout = Path(__file__).parents[2]
        if not (checkout / "csrc").is_dir():  # installed: a repository around it is somebody else's
            return None
        try:
            found = subprocess.run(
                ["git", "-C", str(checkout), "rev-parse", "HEAD"],
                capture_output=True,
                text=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return found.stdout.strip()

    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [os.path.basename(sys.executable), *sys.argv],
        "datgan_fast": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "float32_matmul": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "backends": backends(),
    }
