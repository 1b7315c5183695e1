"""The options of a run from a YAML or TOML file: train's --config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from .options import typed

_LONGEST = 1 << 16  # characters of a file of options


class _Flat(yaml.SafeLoader):
    """Knows no aliases: a few lines of them are a tree of billions of values, and options need none."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*) are not read", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def read_config_file(path: str) -> dict[str, Any]:
    """The options in a YAML or TOML file, as their types. Raises ConfigError."""
    file = Path(path)
    parse = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml}.get(file.suffix.lower())
    if parse is None:
        raise ConfigError(f"--config {path}: must be a .yaml, .yml or .toml file")
    try:
        values = parse(_text(file))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # the parsers raise many kinds for broken text
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {path}: is not a valid {file.suffix[1:].upper()} file ({reason})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: must hold 'option: value' lines")
    return typed(values, f"--config {path}")


def read_yaml(file: Path) -> Any:
    """What a YAML file of options holds, {} for nothing. Raises OSError, and many kinds for broken text."""
    return _yaml(_text(file))


def _text(file: Path) -> str:
    """Raises OSError or ValueError."""
    with file.open(encoding="utf-8") as opened:
        text = opened.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise ValueError(f"it has more than {_LONGEST} characters")
    return text


def _yaml(text: str) -> Any:
    return yaml.load(text, _Flat) or {}


def _toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef]
    return tomllib.loads(text)
