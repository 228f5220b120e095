"""Rows as text for a terminal."""

from pix2pixhd_fast.benchmark.results import OK, WRONG, Row, number

MIB = 2**20
_HEADING = (
    "backend", "ms/image", "p20", "p80", "ratio", "p20-p80", "images/s", "GB/s", "of copy",
    "GFLOP/s", "of matmul", "call MiB", "process MiB", "error",
)  # fmt: skip


def case_lines(rows: list[Row]) -> list[str]:
    """One line per backend of a case, under a heading."""
    table = [_HEADING, *(_cells(row) for row in rows)]
    widths = [max(len(line[n]) for line in table if n < len(line)) for n in range(len(_HEADING))]
    lines = []
    for line in table:
        name, *rest = line
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=False)]
        lines.append("  " + "  ".join([f"{name:<{widths[0]}}", *cells]).rstrip())
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    if row["status"] == WRONG:
        return (row["backend"], f"WRONG: relative L2 error {row['error']}")
    if row["status"] != OK:
        return (row["backend"], row["status"])
    batch = int(row["batch"])
    times = [short(number(row, name) / batch) for name in ("median_ms", "p20_ms", "p80_ms")]
    ratios = [f"{number(row, name):.2f}" for name in ("ratio", "ratio_p20", "ratio_p80")]
    return (
        row["backend"],
        *times,
        f"{ratios[0]}x",
        f"{ratios[1]}-{ratios[2]}",
        row["images_per_s"],
        row["gb_per_s"] or "-",
        _share(row, "gb_per_s", "copy_gb_per_s"),
        row["gflop_per_s"] or "-",
        _share(row, "gflop_per_s", "matmul_gflop_per_s"),
        _mib(row, "call_bytes"),
        _mib(row, "process_bytes"),
        row["error"],
    )


def short(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(row: Row, column: str, ceiling: str) -> str:
    value, top = number(row, column), number(row, ceiling)
    return f"{value / top:.0%}" if value and top else "-"


def _mib(row: Row, column: str) -> str:
    value = number(row, column)
    return "-" if value is None else f"{value / MIB:.0f}"
