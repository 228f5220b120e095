"""The results in a Markdown file: charts and tables between two markers."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pix2pixhd_fast.benchmark.charts import THEMES, draw_modelled, draw_speed_ups
from pix2pixhd_fast.benchmark.modelled import Modelled, modelled_steps
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
    "fused",
)
_GROUP = ("target", "case", "pass", "size", "batch", "dtype")

Group = tuple[tuple[str, ...], dict[str, Row]]


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
    groups = list(_groups([row for row in latest(rows) if not on_gpu(row)]))
    gpu = dict(_groups([row for row in latest(rows) if on_gpu(row)]))
    modelled = steps()
    images = _images_folder(file)
    make_folder(images)
    written = []
    for theme in THEMES:
        paths = [images / f"bench_{name}_{theme.name}.png" for name in ("cpu", "gpu")]
        draw_speed_ups(
            [(_title(key), found) for key, found in groups if "fused" in found], paths[0], theme
        )
        draw_modelled(modelled, paths[1], theme)
        written += paths
    block = [*_measured(groups, gpu, images, file), "", *_modelled(modelled, images, file)]
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


def _groups(rows: list[Row]) -> Iterator[Group]:
    """What was asked of several backends, with its rows by backend."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        if row["status"] in (OK, WRONG):
            found.setdefault(tuple(row[name] for name in _GROUP), {})[row["backend"]] = row
    order = ("norm_act_pad", "instance_boundaries")
    yield from sorted(found.items(), key=lambda item: item[0][0] not in order)


def _title(key: tuple[str, ...]) -> str:
    target, case, pass_name, size, batch, dtype = key
    passes = {"forward": "", "forward+backward": " fwd+bwd"}
    layout = f" {case.split()[-1]}" if target == "norm_act_pad" else ""
    images = "" if batch == "1" else f" batch {batch}"
    return f"{target}{passes.get(pass_name, '')} {size}{images}{layout} {dtype}"


def _measured(
    groups: list[Group], gpu: dict[tuple[str, ...], dict[str, Row]], images: Path, file: Path
) -> Iterator[str]:
    backends = [name for name in _COLUMNS if any(name in rows for _, rows in groups)]
    rows = [row for _, found in groups for row in found.values()]
    yield f"**Measured here (CPU)**: {_where(rows)}."
    yield "Milliseconds per image are the median of repeats that the backends took in turn; the"
    yield "speed-up is the median of each repeat's ratio, with its 20th and 80th percentile."
    yield ""
    yield from _picture(
        "bench_cpu", "speed-up over eager PyTorch, measured here (CPU)", images, file
    )
    yield ""
    times = " | ".join(f"{name.replace('_', ' ')}, ms (CPU)" for name in backends)
    yield f"| what | pass | dtype | {times} | fused over eager (CPU) | measured (GPU) |"
    yield "|---|---|---" + "|--:" * (len(backends) + 1) + "|---|"
    for key, found in groups:
        target, case, pass_name, size, batch, dtype = key
        batch = "" if batch == "1" else f", batch {batch}"
        what = f"`{target}` {size}{batch}: {case}"
        cells = [_time(found.get(name)) for name in backends]
        line = [what, pass_name, dtype, *cells, _ratio(found.get("fused")), _on_gpu(gpu.get(key))]
        yield f"| {' | '.join(line)} |"


def _modelled(steps: list[Modelled], images: Path, file: Path) -> Iterator[str]:
    yield "**Modelled (GPU)**: nothing was run. Bytes and arithmetic of a traced step (G1+G2, fp32"
    yield "with TF32, one picture) over the rates of cards: a lower bound, not a measurement."
    yield ""
    yield from _picture("bench_gpu", "time per card, modelled (GPU)", images, file)
    yield ""
    cards = [card for card in _CARDS if card in steps[0].seconds]
    yield f"| modelled (GPU) | backend | peak | {' | '.join(f'{card}, ms' for card in cards)} |"
    yield "|---|---|--:" + "|--:" * len(cards) + "|"
    for step in steps:
        times = " | ".join(short(step.seconds[card] * 1e3) for card in cards)
        yield f"| {step.what} | {step.backend} | {step.peak / GIB:.2f} GiB | {times} |"


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
    if row is None or row["status"] != OK or row["ratio_to"] != "eager":
        return ""
    low, high = number(row, "ratio_p20"), number(row, "ratio_p80")
    return f"**{number(row, 'ratio'):.2f}x** ({low:.2f} to {high:.2f})"


def _on_gpu(found: dict[str, Row] | None) -> str:
    if not found or "fused" not in found:
        return NOT_RUN
    device = found["fused"]["device"]
    times = f"{_time(found.get('eager'))} -> {_time(found['fused'])} ms"
    return f"{times}, {_ratio(found['fused'])} ({device})"
