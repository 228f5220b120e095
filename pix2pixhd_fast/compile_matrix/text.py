"""The compile matrix as lines of text."""

from collections.abc import Iterable, Sequence

from pix2pixhd_fast.compile_matrix.units import Row

HEAD = (
    "arch",
    "block",
    "regs",
    "spills",
    "stack",
    "shared",
    "occupancy",
    "load",
    "store",
    "tensor",
)


def table(rows: Sequence[Row], every: bool) -> list[str]:
    """A line for each variant, with the architecture where it fares worst, or for `every` row."""
    shown = list(rows) if every else worst_rows(rows)
    widths = [max(len(title), 6) for title in HEAD]
    titles = " ".join(title.rjust(width) for title, width in zip(HEAD, widths, strict=True))
    lines = []
    for source in dict.fromkeys(row.source for row in shown):
        lines += ["", source, f"{titles}  kernel"]
        for row in (row for row in shown if row.source == source):
            cells = " ".join(
                cell.rjust(width) for cell, width in zip(_cells(row), widths, strict=True)
            )
            lines.append(f"{cells}  {row.kernel} {row.variant}")
    return lines[1:]


def register_table(rows: Sequence[Row]) -> list[str]:
    """The registers of each kernel's largest variant for each architecture."""
    most: dict[str, dict[str, int]] = {}
    for row in rows:
        of_kernel = most.setdefault(row.kernel, {})
        of_kernel[row.arch] = max(of_kernel.get(row.arch, 0), row.registers)
    arches = list(dict.fromkeys(arch for of_kernel in most.values() for arch in of_kernel))
    lines = ["registers of the largest variant", " ".join(f"{arch:>6}" for arch in arches)]
    for kernel, of_kernel in most.items():
        cells = " ".join(f"{of_kernel.get(arch, 0):>6}" for arch in arches)
        lines.append(f"{cells}  {kernel}")
    return lines


def failures(rows: Iterable[Row]) -> list[str]:
    """What is wrong, with the compiler's message once for all architectures that it is said of."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.failure:
            what = f"{row.source}: {row.kernel} {row.variant}".rstrip() + f": {row.failure}"
            said.setdefault((what, row.error), []).append(row.arch)
    return [
        f"{what} ({', '.join(arches)})" + (f"\n{error}" if error else "")
        for (what, error), arches in said.items()
    ]


def worst_rows(rows: Iterable[Row]) -> list[Row]:
    """Of each variant the row that fails, has the most spills, or the lowest occupancy."""
    found: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row.source, row.kernel, row.variant)
        if key not in found or _badness(row) > _badness(found[key]):
            found[key] = row
    return list(found.values())


def _badness(row: Row) -> tuple:
    return bool(row.error), row.spills + row.stack, -row.occupancy, row.registers


def _cells(row: Row) -> list[str]:
    if row.error:
        return [row.arch, *["-"] * (len(HEAD) - 1)]
    numbers = [row.registers, row.spills, row.stack, row.shared]
    return [
        row.arch,
        str(row.block or "any"),
        *map(str, numbers),
        f"{row.occupancy:.0%}",
        str(row.load_bits or "-"),
        str(row.store_bits or "-"),
        str(row.tensor_core or "-"),
    ]
