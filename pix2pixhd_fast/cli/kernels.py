"""compile every GPU kernel for every architecture, without a GPU, and say what came of it"""

import argparse
import json
import os
import sys

from pix2pixhd_fast import compile_matrix as matrix
from pix2pixhd_fast.compile_matrix.text import failures, register_table, table
from pix2pixhd_fast.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(f"sm_{capability}" for capability in matrix.CAPABILITIES)
    parser.add_argument("--arch", metavar="SM", help=f"only this one of {names}")
    parser.add_argument("--kernel", metavar="NAME", help="only this op or kernel")
    parser.add_argument(
        "--all", action="store_true", help="a line for every architecture, not the worst alone"
    )
    parser.add_argument("--json", action="store_true", help="print all rows as JSON")
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (default: 2)"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.jobs < 1:
        raise InputError(f"jobs must be at least 1, got {arguments.jobs}")
    rows = matrix.compile_matrix(
        _capabilities(arguments.arch), arguments.kernel, arguments.jobs, progress=_progress
    )
    if reason := matrix.without_cuda():
        print(f"pix2pixhd-fast: no CUDA kernels: {reason}", file=sys.stderr)
    wrong = failures(rows)
    if arguments.json:
        print(json.dumps([row.as_dict() for row in rows], indent=1))
    else:
        print("\n".join([*table(rows, arguments.all), "", *register_table(rows)]))
    for line in wrong:
        print(f"pix2pixhd-fast: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _capabilities(arch: str | None) -> tuple[int, ...]:
    known = {f"sm_{capability}": capability for capability in matrix.CAPABILITIES}
    if arch is None:
        return matrix.CAPABILITIES
    if arch not in known:
        raise InputError(f"arch must be one of {', '.join(known)}, got {arch!r}")
    return (known[arch],)


def _progress(done: int, total: int, kept: int) -> None:
    """One line that is written over on a terminal; elsewhere only its end."""
    line = f"compiled {done - kept} of {total - kept}, {kept} from the cache"
    if sys.stderr.isatty():
        print(f"\r{line}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done == total:
        print(line, file=sys.stderr)
