"""Commands and exit statuses: 0 done, 1 something failed, 2 bad input, 130 interrupted."""

import argparse
import io
import sys
from typing import NoReturn

import torch

import pix2pixhd_fast
from pix2pixhd_fast.cli import (
    bench,
    demo,
    doctor,
    encode_features,
    kernels,
    memory,
    precompute_features,
    test,
    train,
)
from pix2pixhd_fast.errors import InputError

COMMANDS = {
    "train": train,
    "test": test,
    "encode-features": encode_features,
    "precompute-features": precompute_features,
    "demo": demo,
    "memory": memory,
    "kernels": kernels,
    "bench": bench,
    "doctor": doctor,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command with `argv` (default: the program's arguments); return the exit status."""
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        return arguments.run(arguments)
    except InputError as error:
        print(f"pix2pixhd-fast: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pix2pixhd-fast: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print(
            "pix2pixhd-fast: out of memory: "
            "a smaller loadSize, fineSize, batchSize or ngf needs less",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("pix2pixhd-fast: interrupted", file=sys.stderr)
        return 130


def _is_out_of_memory(error: Exception) -> bool:
    """On the CPU, PyTorch only says so in words."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the two screens of all options."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"pix2pixhd-fast: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pix2pixhd-fast", description=pix2pixhd_fast.__doc__)
    parser.add_argument("--version", action="version", version=pix2pixhd_fast.__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, help=module.__doc__, description=module.__doc__, allow_abbrev=False
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser
