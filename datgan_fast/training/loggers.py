"""Where a run's numbers and pictures go beside its own files: TensorBoard, Weights & Biases, trackio, or a logger of yours.

The run's folder is the record; these are for watching. So one that fails is left out with a warning, and the run goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from .. import files
from ..errors import ConfigError
from .config import Config


class Logger(Protocol):
    """What `Trainer(..., loggers=[...])` takes. Called by the first process only, between steps, in the order of the steps."""

    def begin(self, config: Config, folder: Path, step: int) -> None:
        """A run in this folder begins, or goes on from `step`: what was logged of later steps is logged again."""

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        """group    "train": means since the last call, or "metrics": an evaluation's"""

    def images(self, step: int, path: Path) -> None:
        """path    a PNG of generated images"""

    def close(self) -> None:
        """The run has ended, for whatever reason."""


class TensorBoard:
    """Event files in the run's folder."""

    def begin(self, config: Config, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            str(folder.absolute()).encode()
        except UnicodeEncodeError:  # in a C locale, or of bytes that are no UTF-8
            raise ValueError("its files need a folder whose name is text in UTF-8, and a UTF-8 locale") from None
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def images(self, step: int, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self._writer.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class Tracker:
    """Weights & Biases or trackio, whose functions are the same: a run of the project "datgan-fast", named as its folder is.

    The folder keeps the id that the run has there, so that a resumed run goes on in it.
    """

    def __init__(self, module: str) -> None:
        self._name = module

    def begin(self, config: Config, folder: Path, step: int) -> None:
        self._module = import_module(self._name)
        path = folder / f"{self._name}.id"
        if not path.exists():
            files.write_text(path, uuid4().hex[:8])
        own = path.read_text(encoding="utf-8")
        options: dict[str, Any] = {"project": "datgan-fast", "config": config.typed(), "resume": "allow"}
        if self._name == "wandb":
            options |= {"name": folder.name, "id": own, "dir": str(folder)}
        else:  # has no ids: a run is its name
            options |= {"name": f"{folder.name}-{own}"}
        self._module.init(**options)

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        self._module.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def images(self, step: int, path: Path) -> None:
        self._module.log({"samples": self._module.Image(str(path))}, step=step)

    def close(self) -> None:
        self._module.finish()


LOGGERS: dict[str, Callable[[], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": lambda: Tracker("wandb"),
    "trackio": lambda: Tracker("trackio"),
}


def named(names: str) -> list[str]:
    """Those of --loggers, in its order; "none" for none. Raises ConfigError for an unknown one."""
    chosen = [name.strip() for name in names.split(",")]
    if chosen == ["none"]:
        return []
    for name in chosen:
        if name not in LOGGERS:
            raise ConfigError(
                f"--loggers {name or names}: must be of {', '.join(LOGGERS)}, with commas between, or none"
            )
    return list(dict.fromkeys(chosen))


def check_installed(names: str) -> None:
    """Raises ConfigError where a package of --loggers is missing. Imports what was asked for, and nothing else."""
    for name in named(names):
        try:
            import_module(name)
        except ImportError as error:
            raise ConfigError(f"--loggers {name}: cannot be imported ({error}); pip install {name}") from None


class Loggers:
    """Several as one. One that raises is left out from then on, with a warning."""

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self._loggers = list(loggers)

    def begin(self, config: Config, folder: Path, step: int) -> None:
        self._each(lambda logger: logger.begin(config, folder, step))

    def scalars(self, step: int, group: str, values: Mapping[str, float]) -> None:
        self._each(lambda logger: logger.scalars(step, group, values))

    def images(self, step: int, path: Path) -> None:
        self._each(lambda logger: logger.images(step, path))

    def close(self) -> None:
        self._each(lambda logger: logger.close())
        self._loggers = []

    def _each(self, call: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            try:
                call(logger)
            except Exception as error:  # a network's, a service's, a user's own code's
                self._loggers.remove(logger)
                reason = " ".join(str(error).split()) or type(error).__name__
                warnings.warn(f"the run goes on without {_name(logger)}: {reason}", RuntimeWarning, stacklevel=4)
                with suppress(Exception):
                    logger.close()


def _name(logger: Logger) -> str:
    return logger._name if isinstance(logger, Tracker) else type(logger).__name__
