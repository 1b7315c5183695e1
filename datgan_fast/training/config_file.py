"""The options of a run from a YAML or TOML file: train's --config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from .options import typed


def read_config_file(path: str) -> dict[str, Any]:
    """The options in a YAML or TOML file, as their types. Raises ConfigError."""
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix.lower() == ".toml":
            values: Any = _toml(text)
        elif file.suffix.lower() in (".yaml", ".yml"):
            values = yaml.safe_load(text) or {}
        else:
            raise ConfigError(f"--config {path}: must be a .yaml, .yml or .toml file")
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {path}: is not a valid {file.suffix[1:].upper()} file ({reason})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: must hold 'option: value' lines")
    return typed(values, f"--config {path}")


def _toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef]
    return tomllib.loads(text)
