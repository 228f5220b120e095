"""Commands and exit statuses: 0 done, 1 something failed, 2 bad input, 130 interrupted."""

import argparse
import io
import sys
from typing import NoReturn

import torch

import pix2pixhd_fast
from pix2pixhd_fast.cli import bench, demo, doctor, kernels, memory, test, train
from pix2pixhd_fast.errors import InputError, NotFiniteError
from pix2pixhd_fast.training.distributed import PeerLost, linger, tells_of_error

COMMANDS = {
    "train": train,
    "test": test,
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
        return _fail(str(error), 2)
    except (OSError, NotFiniteError) as error:
        return _fail(str(error), 1)
    except PeerLost as error:
        linger()
        return _fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _fail(
            "out of memory: a smaller loadSize, fineSize, batchSize, micro_batch or ngf needs less",
            1,
        )
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(sentence: str, status: int) -> int:
    """Say what went wrong, once for all processes of a run; return the exit status."""
    if tells_of_error():
        print(f"pix2pixhd-fast: {sentence}", file=sys.stderr, flush=True)
    else:
        linger()
    return status


def _is_out_of_memory(error: Exception) -> bool:
    """On the CPU, PyTorch only says so in words."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the two screens of all options."""

    def error(self, message: str) -> NoReturn:
        self.exit(_fail(f"{message} (see {self.prog} --help)", 2))


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
