"""Newest rows against older ones: what has become slower by more than the noise."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from pix2pixhd_fast.benchmark.results import KEY, OK, WRONG, Row, latest, number, parse, read
from pix2pixhd_fast.errors import InputError

SLOWER = 1.05
_COMPARED = (*KEY, "threads")


@dataclass(frozen=True)
class Change:
    """One thing measured twice. `factor`: how many times slower it is now, of `what`: "time" for a
    baseline, "speed-up" for what was measured beside one. `regression`: slower by more than 5 %,
    and the ranges from p20 to p80 do not meet; or wrong now, with an infinite factor.
    """

    row: Row
    what: str
    factor: float
    regression: bool


def older_rows(name: str, path: Path) -> list[Row]:
    """The rows of the file `name`, or of `path` at the git revision `name`; else `InputError`."""
    if Path(name).is_file():
        return read(Path(name))
    folder = path.resolve().parent
    try:
        shown = subprocess.run(
            ["git", "-C", str(folder), "show", "--end-of-options", f"{name}:./{path.name}"],
            capture_output=True,
            text=True,
        )
    except OSError as error:
        raise InputError(f"compare needs git for the revision {name!r}: {error}") from None
    if shown.returncode:
        raise InputError(
            f"compare must be a CSV file or a git revision that has {path.name}, got {name!r}"
        )
    return parse(shown.stdout, f"{name}:{path.name}")


def changes(new: list[Row], old: list[Row]) -> list[Change]:
    """Compare the last row of each thing that is in both, of the same device and threads."""
    before = {_key(row): row for row in latest(old, _COMPARED) if row["status"] == OK}
    return [
        _change(row, before[_key(row)]) for row in latest(new, _COMPARED)
        if _key(row) in before and row["status"] in (OK, WRONG)
    ]  # fmt: skip


def change_lines(found: list[Change]) -> list[str]:
    """One line per thing, regressions marked."""
    if not found:
        return ["nothing to compare: no row has the same target, device and threads in both"]
    lines = []
    for change in found:
        row = change.row
        name = " ".join(row[k] for k in ("target", "pass", "case", "size", "dtype", "backend"))
        if row["status"] == WRONG:
            lines.append(f"REGRESSION  {name}: wrong, relative L2 error {row['error']}")
            continue
        mark = "REGRESSION" if change.regression else "          "
        lines.append(f"{mark}  {name}: {change.what} {change.factor:.2f}x as slow as before")
    count = sum(change.regression for change in found)
    return [*lines, f"{count} of {len(found)} are slower by more than 5 % and the noise"]


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in _COMPARED)


def _change(new: Row, old: Row) -> Change:
    """A speed-up is free of what else the machine did; only a baseline is judged by its time."""
    if new["status"] == WRONG:
        return Change(new, "time", float("inf"), True)
    beside = new["ratio_to"] == old["ratio_to"] != new["backend"]
    if beside:
        factor = number(old, "ratio") / number(new, "ratio")
        apart = number(new, "ratio_p80") < number(old, "ratio_p20")
    else:
        factor = number(new, "median_ms") / number(old, "median_ms")
        apart = number(new, "p20_ms") > number(old, "p80_ms")
    what = "speed-up" if beside else "time"
    return Change(new, what, factor, factor > SLOWER and apart)
