"""Commands and exit statuses: 0 done, 1 something failed, 2 bad input, 130 interrupted."""

import argparse
import sys

import pix2pixhd_fast
from pix2pixhd_fast.cli import demo, doctor, memory, test, train
from pix2pixhd_fast.errors import InputError

COMMANDS = {"train": train, "test": test, "demo": demo, "memory": memory, "doctor": doctor}


def main(argv: list[str] | None = None) -> int:
    """Run one command with `argv` (default: the program's arguments); return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except InputError as error:
        print(f"pix2pixhd-fast: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pix2pixhd-fast: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pix2pixhd-fast: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pix2pixhd-fast", description=pix2pixhd_fast.__doc__)
    parser.add_argument("--version", action="version", version=pix2pixhd_fast.__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, help=module.__doc__, description=module.__doc__, allow_abbrev=False
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
