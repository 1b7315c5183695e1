"""Shell completion of every command's options and values, by shtab."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

from .cli import Parser, a_path
from .commands import COMMANDS
from .errors import ConfigError, not_one_of

SHELLS = ("bash", "zsh", "tcsh", "fish")


def completion(parser: Parser, shell: str) -> str:
    """The shell's script for a parser, to which the commands are added. Raises ConfigError for a shell that is none of SHELLS,
    and where shtab is not installed."""
    if shell not in SHELLS:
        raise not_one_of("--print-completion", shell, SHELLS)
    try:
        import shtab
    except ImportError:
        raise ConfigError("--print-completion: needs shtab; run: pip install shtab") from None
    made_by_its_module: Any = _command_parser
    commands = parser.add_subparsers(parser_class=made_by_its_module)
    for name, purpose in COMMANDS.items():
        for action in commands.add_parser(name, help=purpose, command=name)._actions:
            _complete(action, shtab.FILE)
    script: str = shtab.complete(parser, shell)
    return script


def _command_parser(*, command: str, **_: object) -> Parser:
    parser: Parser = import_module(f".{command}", __package__).build_parser()
    return parser


def _complete(action: argparse.Action, files: object) -> None:
    """Values are checked by the commands and not by argparse, which knows of them only how the help shows them."""
    if action.type is a_path:
        action.complete = files  # type: ignore[attr-defined]
    elif isinstance(action.metavar, str) and "|" in action.metavar:
        action.choices = action.metavar.split("|")
