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
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from .. import archives, files
from ..errors import ConfigError
from ..method.dispatch import backends
from ..version import __version__
from .config import Config
from .config_file import read_yaml
from .launch import launcher
from .loggers import Logger, Loggers
from .options import Options
from .pictures import draw_curves
from .run_lock import RunLock
from .share import Share

KEPT_CHECKPOINTS = 3


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._loggers = Loggers()
        self._lock = RunLock(path)

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
        return next((run for run in cls.numbered(outdir) if name is None or run.path.name[6:] == name), None)

    @classmethod
    def numbered(cls, outdir: str) -> list[RunFolder]:
        """The runs in outdir, the newest first."""
        folder = Path(outdir)
        runs = [p for p in folder.iterdir() if _number(p) >= 0] if folder.is_dir() else []
        return [cls(p) for p in sorted(runs, key=_number, reverse=True) if (p / "config.yaml").is_file()]

    def options(self, option: str = "--resume") -> Options:
        """Those of its config.yaml, which has a value for each. Raises ConfigError, naming the option that led here."""
        path = self.path / "config.yaml"
        try:
            return Options.from_mapping(read_yaml(path), str(path))
        except ConfigError:
            raise
        except Exception as error:  # the parser raises many kinds for broken text
            reason = " ".join(str(error).split())
            raise ConfigError(f"{option} {self.path}: its config.yaml cannot be read ({reason})") from None

    def computed_by(self, how: dict[str, Any]) -> None:
        """Adds to env.json how the run's steps are computed, which is known once there was one."""
        files.write_text(self.path / "env.json", json.dumps({**self.environment(), **how}, indent=2) + "\n")

    def launched_by(self) -> dict[str, Any] | None:
        """The torchrun that has begun or gone on with the run last, as `launcher` describes it; None for none."""
        return self.environment().get("launched_by")

    def environment(self) -> dict[str, Any]:
        """What env.json says; nothing where it cannot be read, as nothing of the run depends on it."""
        try:
            found = json.loads((self.path / "env.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    # What happened

    def log(self, text: str) -> None:
        with (self.path / "log.txt").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text + "\n")

    def statistics(self, record: dict[str, Any]) -> None:
        files.append_json_lines(self.path / "stats.jsonl", record)
        self._scalars("train", record)

    def metrics(self, records: list[dict[str, Any]]) -> None:
        """Of one evaluation."""
        files.append_json_lines(self.path / "metrics.jsonl", *records)
        if records:
            self._scalars("metrics", {"step": records[0]["step"], **{r["metric"]: r["value"] for r in records}})

    def _scalars(self, group: str, record: dict[str, Any]) -> None:
        values = {name: v for name, v in record.items() if name != "step" and isinstance(v, (int, float))}
        self._loggers.scalars(record["step"], group, values)

    def drawn(self, step: int) -> None:
        """Shows a picture that was made to whoever watches."""
        self._loggers.images(step, self.samples_path(step))

    def watched_by(self, loggers: Sequence[Logger], config: Config, step: int) -> None:
        """What is recorded after `step` goes to these too, until `close`."""
        self._loggers = Loggers(loggers)
        self._loggers.begin(config, self.path, step)

    def hold(self) -> None:
        """Keeps other processes from writing, until `close`. Raises ConfigError where one does."""
        self._lock.hold()

    def has_lost_checkpoints(self) -> bool:
        """Whether it has none, although it has come so far that there was one."""
        if self.checkpoints():
            return False
        return max((record["step"] for record in self.records("stats")), default=0) > (self.options().save_every or 0)

    def measured(self) -> set[int]:
        """The steps that were evaluated."""
        return {record["step"] for record in self.records("metrics")}

    def rewind(self, step: int) -> None:
        """Forgets what was recorded after `step`, for a run that continues from there. What cannot be read stays."""
        for leftover in self.path.rglob(".*.tmp*"):
            leftover.unlink(missing_ok=True)
        later = [*self.checkpoints(), *(self.path / "samples").glob("step-*.png")]
        for abandoned in (p for p in later if _step(p) > step):
            abandoned.unlink()
        (self.path / "progress.gif").unlink(missing_ok=True)
        for name in ("stats.jsonl", "metrics.jsonl"):
            path = self.path / name
            records = files.json_lines(path)
            kept = [line for line, record in records if record is None or record["step"] <= step]
            if unread := sum(record is None for _, record in records):
                warnings.warn(
                    f"{path}: {unread} of its lines cannot be read; they are kept as they are",
                    RuntimeWarning,
                    stacklevel=2,
                )
            if path.exists():
                files.write_text(path, "".join(line + "\n" for line in kept))

    def close(self) -> None:
        self._lock.release()
        self._loggers.close()

    # Pictures

    def samples_path(self, step: int) -> Path:
        return self.path / "samples" / f"step-{step:06d}.png"

    @property
    def real_path(self) -> Path:
        """Training images, to be seen beside the generated ones."""
        return self.path / "samples" / "real.png"

    def samples(self) -> list[tuple[int, Path]]:
        """The sample grids and their steps, in their order."""
        found = (self.path / "samples").glob("step-*.png")
        return sorted((_step(p), p) for p in found if _step(p) >= 0)

    def records(self, name: str) -> list[dict[str, Any]]:
        """Of "stats" or "metrics", with a step each; lines that are none are left out."""
        return [record for _, record in files.json_lines(self.path / f"{name}.jsonl") if record]

    def curves(self, points: bool) -> None:
        if records := self.records("stats"):
            draw_curves(records, self.path.name, self.path / "curves.png", points)

    # Weights

    def checkpoint_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}.pt"

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        found = (self.path / "checkpoints").glob("step-*.pt")
        return sorted((p for p in found if _step(p) >= 0), key=_step)

    def save_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        for name in ("stats.jsonl", "metrics.jsonl"):  # which are not made again
            files.flush(self.path / name)
        with files.atomic(self.checkpoint_path(step)) as temporary:
            archives.save(state, temporary)
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


def launch() -> dict[str, Any]:
    """In how many processes a run goes, and who has started them."""
    return {"processes": Share.of_default_group().size, "launched_by": launcher()}


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
        **launch(),
        "gpu": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "float32_matmul": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "backends": backends(),
    }
