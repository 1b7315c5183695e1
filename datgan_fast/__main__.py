"""Every command under one name: `datgan-fast COMMAND ...`, or `python -m datgan_fast COMMAND ...`.

A command's module, and torch with it, is imported when the command is called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from .cli import Parser, run_command
from .commands import COMMANDS, called_by
from .completion import SHELLS, completion
from .errors import ConfigError, did_you_mean
from .version import __version__

NAME = "datgan-fast"  # of the installed script


def main(argv: list[str] | None = None) -> int:
    typed = sys.argv[1:] if argv is None else argv
    prog = "python -m datgan_fast" if Path(sys.argv[0]).resolve() == Path(__file__).resolve() else NAME
    with called_by(f"{prog} "):
        if typed and typed[0] in COMMANDS:
            return run_command(prog, lambda: _command(typed[0], typed[1:]))
        return run_command(prog, lambda: _without_command(prog, typed))


def _command(name: str, argv: list[str]) -> int:
    try:
        module = import_module(f".{name}", __package__)
    except ImportError as error:  # of torch, or what else the command needs
        raise ConfigError(
            f"{name} cannot be loaded here ({' '.join(str(error).split())}); install the package again"
        ) from None
    code: int = module.main(argv)
    return code


def _without_command(prog: str, typed: list[str]) -> int:
    parser = build_parser(prog)
    if typed and not typed[0].startswith("-"):
        parser.error(f"unknown command {typed[0]}{did_you_mean(typed[0], COMMANDS)}")
    arguments = parser.parse_args(typed)
    if arguments.print_completion is not None:
        print(completion(build_parser(NAME), arguments.print_completion))
    else:
        parser.print_help()
    return 0


def build_parser(prog: str) -> Parser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items())
    parser = Parser(
        prog=prog,
        usage=f"{prog} COMMAND [options]",
        description="Fast exact direct adversarial training (DAT) for GANs.",
        epilog=f"commands:\n{commands}\n\n{prog} COMMAND --help says more of each.",
    )
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__}")
    parser.add_argument(
        "--print-completion",
        metavar="|".join(SHELLS),
        help="print a shell's completion of commands, options and values",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
