"""The results in a Markdown file: charts and tables between two markers."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pix2pixhd_fast.benchmark.case import ON_CHANNELS
from pix2pixhd_fast.benchmark.charts import THEMES, draw_modelled, draw_speed_ups
from pix2pixhd_fast.benchmark.modelled import Modelled, modelled_steps
from pix2pixhd_fast.benchmark.ops import OPS
from pix2pixhd_fast.benchmark.results import OK, WRONG, Row, latest, number, on_gpu
from pix2pixhd_fast.benchmark.text import short
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.report.files import make_folder, replace_file

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NOT_RUN = "not yet run on a GPU"
GIB = 2**30
_CARDS = ("RTX 4090", "A100 80GB", "H100 80GB")
# backends in the order of the columns; peers have a column where they have rows
_COLUMNS = (
    "eager",
    "eager_channels_last",
    "compile",
    "onnxruntime",
    "openvino",
    "tensorrt",
    *ON_CHANNELS,
    "fused",
)
_GROUP = ("target", "case", "pass", "size", "batch", "dtype")


@dataclass(frozen=True)
class Entry:
    """A line of the table: `key` as in `_GROUP`, rows by backend of one CPU and of every GPU."""

    key: tuple[str, ...]
    cpu: dict[str, Row]
    gpus: list[dict[str, Row]]


def write_report(
    rows: list[Row],
    file: Path,
    steps: Callable[[], list[Modelled]] = modelled_steps,
) -> list[Path]:
    """Replace what is between the markers of `file` by charts and tables of the latest rows.

    The charts go to `docs/images/` beside the file or above it. Returns the files that were
    written. Raises `InputError` where the file or its markers are missing, before any work.
    """
    before, after = _around_block(file)
    entries = _entries(latest(rows))
    charted = [(_title(entry), entry.cpu) for entry in entries if _beside_eager(entry.cpu)]
    modelled = steps()
    images = _images_folder(file)
    make_folder(images)
    written = []
    for theme in THEMES:
        if charted:
            written.append(images / f"bench_cpu_{theme.name}.png")
            draw_speed_ups(charted, written[-1], theme)
        written.append(images / f"bench_gpu_{theme.name}.png")
        draw_modelled(modelled, written[-1], theme)
    block = [*_measured(entries, images, file), "", *_modelled(modelled, images, file)]
    text = "\n".join([BEGIN, "", *block, "", END])
    with replace_file(file) as out:
        out.write((before + text + after).encode())
    return [*written, file]


def _around_block(file: Path) -> tuple[str, str]:
    if not file.is_file():
        raise InputError(f"report must be a Markdown file, got {file}, which is not there")
    text = file.read_bytes().decode()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(f"{file} must have one line {BEGIN} and below it one line {END}")
    return text[: text.index(BEGIN)], text[text.index(END) + len(END) :]


def _images_folder(file: Path) -> Path:
    folder = file.resolve().parent
    return (folder if folder.name == "docs" else folder / "docs") / "images"


def _entries(rows: list[Row]) -> list[Entry]:
    """Ops first, else in the order of the rows; several CPUs have a line each."""
    found: dict[tuple[str, ...], dict[str, dict[str, Row]]] = {}
    for row in rows:
        if row["status"] in (OK, WRONG):
            devices = found.setdefault(tuple(row[name] for name in _GROUP), {})
            devices.setdefault(row["device"], {})[row["backend"]] = row
    entries = []
    for key, devices in found.items():
        by_kind = {True: [], False: []}
        for backends in devices.values():
            by_kind[on_gpu(next(iter(backends.values())))].append(backends)
        entries += [Entry(key, cpu, by_kind[True]) for cpu in by_kind[False] or [{}]]
    return sorted(entries, key=lambda entry: entry.key[0] not in OPS)


def _beside_eager(rows: dict[str, Row]) -> bool:
    """Whether fused was timed in turn with eager, and not with others of its own kind."""
    return "fused" in rows and rows["fused"]["ratio_to"] == "eager"


def _title(entry: Entry) -> str:
    target, case, pass_name, size, batch, dtype = entry.key
    passes = {"forward": "", "forward+backward": " fwd+bwd"}
    word = {"norm_act_pad": -1, "norm_act_conv": 0}.get(target)
    which = "" if word is None else f" {case.split()[word]}"
    images = "" if batch == "1" else f" batch {batch}"
    return f"{target}{passes.get(pass_name, '')} {size}{images}{which} {dtype}"


def _measured(entries: list[Entry], images: Path, file: Path) -> Iterator[str]:
    backends = [name for name in _COLUMNS if any(name in entry.cpu for entry in entries)]
    rows = [row for entry in entries for row in entry.cpu.values()]
    yield f"**Measured here (CPU)**: {_where(rows)}."
    yield "Milliseconds per image are the median of repeats that the backends took in turn; the"
    yield "speed-up is the median of each repeat's ratio, with its 20th and 80th percentile."
    yield ""
    if any("fused" in entry.cpu for entry in entries):
        words = "speed-up over eager PyTorch, measured here (CPU)"
        yield from _picture("bench_cpu", words, images, file)
        yield ""
    times = "".join(f" {name.replace('_', ' ')}, ms (CPU) |" for name in backends)
    yield f"| what | pass | dtype |{times} fused over eager (CPU) | measured (GPU) |"
    yield "|---|---|---" + "|--:" * (len(backends) + 1) + "|---|"
    several = len({row["device"] for row in rows}) > 1
    for entry in entries:
        target, case, pass_name, size, batch, dtype = entry.key
        batch = "" if batch == "1" else f", batch {batch}"
        on = f" ({next(iter(entry.cpu.values()))['device']})" if several and entry.cpu else ""
        what = f"`{target}` {size}{batch}: {case}{on}"
        cells = [_time(entry.cpu.get(name)) for name in backends]
        line = [what, pass_name, dtype, *cells, _ratio(entry.cpu.get("fused")), _on_gpus(entry)]
        yield f"| {' | '.join(line)} |"


def _modelled(steps: list[Modelled], images: Path, file: Path) -> Iterator[str]:
    yield "**Modelled (GPU)**: nothing was run. Bytes and arithmetic of a traced step (G1+G2, fp32"
    yield "with TF32, one picture) over the rates of cards: a lower bound, not a measurement."
    yield ""
    yield from _picture("bench_gpu", "time per card, modelled (GPU)", images, file)
    yield ""
    cards = [card for card in _CARDS if card in steps[0].seconds]
    times = " | ".join(f"{card}, ms" for card in cards)
    yield f"| modelled (GPU) | backend | peak | launches | traffic | {times} |"
    yield "|---|---|--:|--:|--:" + "|--:" * len(cards) + "|"
    for step in steps:
        times = " | ".join(short(step.seconds[card] * 1e3) for card in cards)
        peak, traffic = f"{step.peak / GIB:.2f} GiB", f"{step.traffic / GIB:.1f} GiB"
        cells = [step.what, step.backend, peak, str(step.launches), traffic, times]
        yield f"| {' | '.join(cells)} |"


def _picture(name: str, words: str, images: Path, file: Path) -> Iterator[str]:
    folder = Path(os.path.relpath(images, file.resolve().parent)).as_posix()
    yield "<picture>"
    yield f'<source media="(prefers-color-scheme: dark)" srcset="{folder}/{name}_dark.png">'
    yield f'<img alt="{words}" src="{folder}/{name}_light.png">'
    yield "</picture>"


def _where(rows: list[Row]) -> str:
    """Devices, threads, versions, commits and dates, each said once."""
    if not rows:
        return "no rows yet"
    torch = {row["versions"].split(",")[0] for row in rows}
    days = sorted({row["date"][:10] for row in rows})
    parts = [
        "; ".join(sorted({row["device"] for row in rows})),
        f"{'/'.join(sorted({row['threads'] for row in rows}))} threads",
        ", ".join(sorted(torch)),
        f"commit {', '.join(sorted({row['commit'] for row in rows}))}",
        days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}",
    ]
    return ", ".join(parts)


def _time(row: Row | None) -> str:
    if row is None:
        return ""
    if row["status"] == WRONG:
        return f"wrong ({row['error']})"
    return short(number(row, "median_ms") / int(row["batch"]))


def _ratio(row: Row | None) -> str:
    if row is None or row["status"] != OK or row["ratio_to"] not in ("eager", *ON_CHANNELS):
        return ""
    low, high = number(row, "ratio_p20"), number(row, "ratio_p80")
    to = "" if row["ratio_to"] == "eager" else f" over {row['ratio_to'].replace('_', ' ')}"
    return f"**{number(row, 'ratio'):.2f}x**{to} ({low:.2f} to {high:.2f})"


def _on_gpus(entry: Entry) -> str:
    cells = []
    for rows in entry.gpus:
        times = ", ".join(f"{name} {_time(row)} ms" for name, row in rows.items())
        ratio = _ratio(rows.get("fused"))
        cells.append(f"{next(iter(rows.values()))['device']}: {times}{ratio and f', {ratio}'}")
    return "; ".join(cells) or NOT_RUN
