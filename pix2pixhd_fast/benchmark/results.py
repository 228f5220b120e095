"""The table of results: one CSV file, only ever added to."""

import csv
import fcntl
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.report.files import explain_failure, make_folder, replace_file

Row = dict[str, str]

COLUMNS = (
    "target", "case", "pass", "backend", "size", "batch", "dtype", "device", "threads", "commit",
    "versions", "date", "status", "repeats", "calls", "median_ms", "p20_ms", "p80_ms", "ratio",
    "ratio_p20", "ratio_p80", "ratio_to", "images_per_s", "gb_per_s", "copy_gb_per_s",
    "gflop_per_s", "matmul_gflop_per_s", "call_bytes", "reserved_bytes", "process_bytes", "joules",
    "sm_mhz", "temperature_c", "error",
)  # fmt: skip
# Rows that agree in these tell of the same thing, measured at different times.
KEY = ("target", "case", "pass", "backend", "size", "batch", "dtype", "device")
OK, WRONG = "ok", "wrong"


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows behind those of the file, which is made where it is missing.

    Old rows and columns stay, whatever they are. The file is replaced in one step, and two
    processes that add at the same time wait for each other.
    """
    make_folder(path.parent)
    with _locked(path.parent):
        columns, old = _parse(path.read_text(), path) if path.is_file() else ([], [])
        columns += [name for name in COLUMNS if name not in columns]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(old)
        writer.writerows(rows)
        with replace_file(path) as file:
            file.write(text.getvalue().encode())


def read(path: Path) -> list[Row]:
    """The rows of a file, in order; `InputError` where it is missing or no such table."""
    if not path.is_file():
        raise InputError(f"csv must be a file that bench has written, got {path}")
    return parse(path.read_text(), path)


def parse(text: str, name: object) -> list[Row]:
    """The rows of a table's text; `name` is for the `InputError` if it is none."""
    return _parse(text, name)[1]


def latest(rows: Iterable[Row], key: tuple[str, ...] = KEY) -> list[Row]:
    """The last row of each `key`, in the order in which the keys first appear."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        found[tuple(row[name] for name in key)] = row
    return list(found.values())


def number(row: Row, column: str) -> float | None:
    """A figure; None where there is none."""
    try:
        return float(row.get(column) or "")
    except ValueError:
        return None


def on_gpu(row: Row) -> bool:
    """Whether the row was measured on a GPU."""
    return not row["device"].startswith("CPU")


def _parse(text: str, name: object) -> tuple[list[str], list[Row]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = list(reader.fieldnames or [])
    rows = list(reader)
    missing = [column for column in (*KEY, "median_ms") if column not in columns]
    broken = any(None in row or None in row.values() for row in rows)
    if columns and (missing or broken):
        why = f"has no column {missing[0]}" if missing else "has rows of another length"
        raise InputError(f"{name} is no table of bench: it {why}")
    return columns, rows


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with explain_failure(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
