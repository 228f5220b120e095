"""time ops, networks and whole steps on several backends, and report what was measured"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from pix2pixhd_fast.benchmark import (
    TARGETS,
    Request,
    Runner,
    cases,
    change_lines,
    changes,
    older_rows,
    write_report,
)
from pix2pixhd_fast.benchmark.case import BACKENDS, PASSES
from pix2pixhd_fast.benchmark.machine import checkout
from pix2pixhd_fast.benchmark.request import DTYPES
from pix2pixhd_fast.benchmark.results import WRONG, append, read
from pix2pixhd_fast.benchmark.targets import check_targets
from pix2pixhd_fast.benchmark.text import case_lines
from pix2pixhd_fast.cli.flags import add_option_flags, options_from
from pix2pixhd_fast.cli.memory import parse_size
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.model import resolve_device
from pix2pixhd_fast.options import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", nargs="*", help=f"{', '.join(TARGETS)} (default: both ops and a small G)"
    )
    lists = "several with commas"
    parser.add_argument("--size", help=f"width x height, {lists} (default: by target)")
    parser.add_argument("--batch", type=int, default=1, help="images per call, 1 to 4 (default: 1)")
    parser.add_argument("--dtype", default="fp32", help=f"{', '.join(DTYPES)}; {lists}")
    parser.add_argument(
        "--backend", help=f"{', '.join(BACKENDS)}; {lists}, the first is the baseline"
    )
    parser.add_argument("--pass", dest="passes", help=f"{', '.join(PASSES)}; {lists}")
    parser.add_argument("--threads", type=int, default=0, help="(default: PyTorch's choice)")
    parser.add_argument("--repeats", type=int, default=0, help="(default: 3 to 25, by time)")
    parser.add_argument("--all_shapes", action="store_true", help="ops: every layer shape of G")
    parser.add_argument(
        "--memory", action="store_true", help="also run each backend in a process of its own"
    )
    parser.add_argument("--csv", help="add the rows to this file (default: bench/results.csv)")
    parser.add_argument(
        "--report", nargs="?", const="README.md", metavar="FILE",
        help="write charts and tables into this Markdown file (default: README.md)",
    )  # fmt: skip
    parser.add_argument(
        "--compare", metavar="REV_OR_FILE",
        help="compare the newest rows with a CSV file, or with the CSV at a git revision",
    )  # fmt: skip
    add_option_flags(parser, "train")


def run(arguments: argparse.Namespace) -> int:
    check_targets(tuple(arguments.target))
    csv = _csv(arguments)
    failed = False
    if arguments.target or not (arguments.report or arguments.compare):
        failed = _run(_request(arguments), csv)
    elif csv is None:
        raise InputError("csv must be given where this is no checkout: there is no file to read")
    if arguments.report:
        for path in write_report(read(csv), Path(arguments.report)):
            print(f"wrote {path}")
    if arguments.compare:
        found = changes(read(csv), older_rows(arguments.compare, csv))
        print("\n".join(change_lines(found)))
        failed |= any(change.regression for change in found)
    return int(failed)


def _run(request: Request, csv: Path | None) -> bool:
    """Run and print; whether a backend was wrong."""
    wrong = False
    for case, rows in Runner(request, _tell).run(cases(request)):
        print("\n".join([case.title, *case_lines(rows)]), flush=True)
        if csv is not None:
            append(csv, [row for row in rows if row["median_ms"] or row["status"] == WRONG])
        wrong |= any(row["status"] == WRONG for row in rows)
    print(f"rows added to {csv}" if csv else "no checkout, no --csv: the rows are not kept")
    return wrong


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _request(arguments: argparse.Namespace) -> Request:
    if "batchSize" in arguments:
        raise InputError(f"batchSize is called batch here, got batchSize {arguments.batchSize}")
    options = options_from(arguments, "train")
    names = {option.name for option in fields(Options)}
    device = arguments.device if "device" in arguments else None
    return Request(
        targets=tuple(arguments.target),
        sizes=tuple(parse_size(size) for size in _words(arguments.size)),
        dtypes=_words(arguments.dtype),
        backends=_words(arguments.backend),
        passes=_words(arguments.passes),
        batch=arguments.batch,
        flags={name: value for name, value in vars(arguments).items() if name in names},
        device=str(resolve_device(options, device)),
        threads=arguments.threads,
        repeats=arguments.repeats,
        all_shapes=arguments.all_shapes,
        memory=arguments.memory,
    )


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _csv(arguments: argparse.Namespace) -> Path | None:
    if arguments.csv:
        return Path(arguments.csv)
    root = checkout()
    return None if root is None else root / "bench/results.csv"
