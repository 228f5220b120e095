"""The two charts of the report, each in a light and in a dark edition."""

from dataclasses import dataclass
from pathlib import Path

from pix2pixhd_fast.benchmark.modelled import SIZE, SYNTHESIS, TRAINING, Modelled
from pix2pixhd_fast.benchmark.results import OK, Row, number
from pix2pixhd_fast.benchmark.text import short
from pix2pixhd_fast.report.files import replace_file

GIB = 2**30


@dataclass(frozen=True)
class Theme:
    """Paper, text, soft text and lines of report/theme.py; colours of the backends."""

    name: str
    paper: str
    ink: str
    soft: str
    line: str
    colors: dict[str, str]


_BACKENDS = ("fused", "eager", "compile", "eager_channels_last")
LIGHT = Theme(
    "light", "#ffffff", "#1c2430", "#5c6878", "#dfe3e9",
    dict(zip(_BACKENDS, ("#1f6feb", "#9aa5b4", "#d55e00", "#009e73"), strict=True)),
)  # fmt: skip
DARK = Theme(
    "dark", "#1b2027", "#e6eaf0", "#98a4b3", "#2c343f",
    dict(zip(_BACKENDS, ("#6ea8ff", "#6b7686", "#ff9a4d", "#3fcf9f"), strict=True)),
)  # fmt: skip
THEMES = (LIGHT, DARK)
_MARKS = {"eager_channels_last": "D", "compile": "s"}
# Where the bars of speed-ups begin: from 1 to some hundreds, they want a logarithmic axis.
LEAST_RATIO = 0.3


def draw_speed_ups(groups: list[tuple[str, dict[str, Row]]], path: Path, theme: Theme) -> None:
    """Draw how many times faster than eager each backend is: bars for fused with the range from
    p20 to p80, marks for others. `groups`: titles and the rows by backend.
    """
    figure, panel = _figure(theme, 1.5 + 0.34 * len(groups), 1)
    panel = panel[0]
    for place, (_, rows) in enumerate(groups):
        _draw_ratios(panel, place, rows, theme)
    shown = [name for name in ("fused", *_MARKS) if any(name in rows for _, rows in groups)]
    for name in shown:
        mark = {"marker": _MARKS[name], "ls": ""} if name in _MARKS else {"lw": 7}
        panel.plot([], [], color=theme.colors[name], label=name, **mark)
    panel.axvline(1, color=theme.soft, linewidth=1.2, zorder=1)
    panel.set_yticks(range(len(groups)), [title for title, _ in groups], fontsize=9)
    panel.set_ylim(len(groups) - 0.4, -0.6)
    panel.set_xscale("log")
    ends = (1, 2, 5, 10, 20, 50, 100, 200, 500)
    panel.set_xticks(ends, [str(end) for end in ends], minor=False)
    panel.set_xticks([], minor=True)
    panel.set_xlim(LEAST_RATIO, 1.15 * max([2, *(_highest(rows) for _, rows in groups)]))
    panel.set_xlabel("times as fast as eager PyTorch (1 = eager; whiskers: p20 to p80)")
    panel.set_title(
        "Speed-up over eager: measured here (CPU)", loc="left", fontweight="bold", pad=26
    )
    if shown:
        _legend(panel, theme, len(shown))
    _save(figure, path)


def draw_modelled(steps: list[Modelled], path: Path, theme: Theme) -> None:
    """Draw the modelled time of a synthesis and of a training step per card, both backends.

    Steps of other options are left to the table.
    """
    names = [name for name in (SYNTHESIS, TRAINING) if any(step.what == name for step in steps)]
    figure, panels = _figure(theme, 4.6, len(names))
    for panel, name in zip(panels, names, strict=True):
        chosen = [step for step in steps if step.what == name]
        cards = list(chosen[0].seconds)
        for n, step in enumerate(chosen):
            height = 0.8 / len(chosen)
            places = [place + (n - (len(chosen) - 1) / 2) * height for place in range(len(cards))]
            values = [step.seconds[card] * 1e3 for card in cards]
            color = theme.colors[step.backend]
            bars = panel.barh(places, values, height * 0.9, color=color, label=step.backend)
            labels = [f"{short(value)}" for value in values]
            panel.bar_label(bars, labels, padding=3, fontsize=7.5, color=theme.soft)
        panel.set_yticks(range(len(cards)), cards, fontsize=9)
        panel.set_ylim(len(cards) - 0.4, -0.6)
        panel.margins(x=0.14)
        panel.set_xlabel("ms, modelled lower bound")
        peaks = ", ".join(f"{step.peak / GIB:.2f} GiB {step.backend}" for step in chosen)
        panel.set_title(f"{name}: peak {peaks}", loc="left", fontsize=10, pad=8)
    title = (
        f"One step at {SIZE[0]}x{SIZE[1]}, G1+G2, fp32 with TF32: modelled (GPU), nothing was run"
    )
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=theme.ink)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False,
        labelcolor=theme.ink,
    )  # fmt: skip
    _save(figure, path)


def _draw_ratios(panel, place: int, rows: dict[str, Row], theme: Theme) -> None:
    """One line of the chart; the figure of fused stands in its bar."""
    ratios = {
        name: [number(row, column) for column in ("ratio", "ratio_p20", "ratio_p80")]
        for name, row in rows.items()
        if row["status"] == OK and row["ratio_to"] == "eager" and name in ("fused", *_MARKS)
    }
    for name in ratios.keys() & _MARKS.keys():
        panel.plot(
            [ratios[name][0]], [place], _MARKS[name], color=theme.colors[name], ms=6.5, zorder=4,
            markeredgecolor=theme.paper,
        )  # fmt: skip
    if "fused" not in ratios:
        return
    ratio, low, high = ratios["fused"]
    width = max(ratio - LEAST_RATIO, 0)
    panel.barh(place, width, 0.62, left=LEAST_RATIO, color=theme.colors["fused"], zorder=2)
    panel.errorbar(
        ratio, place, xerr=[[max(ratio - low, 0)], [max(high - ratio, 0)]], color=theme.ink,
        capsize=2.5, lw=1, zorder=3,
    )  # fmt: skip
    panel.annotate(
        f"{ratio:.2f}x", (LEAST_RATIO, place), (6, 0), textcoords="offset points", va="center",
        fontsize=8.5, fontweight="bold", color=theme.paper, zorder=4,
    )  # fmt: skip


def _highest(rows: dict[str, Row]) -> float:
    """The end of the longest bar or whisker of a line."""
    ends = [number(row, "ratio_p80") for row in rows.values() if row["ratio_to"] == "eager"]
    return max((end for end in ends if end is not None), default=1.0)


def _figure(theme: Theme, height: float, columns: int):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), dpi=130, facecolor=theme.paper, layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False, sharey=columns > 1)[0]
    for panel in panels:
        panel.set_facecolor(theme.paper)
        panel.tick_params(colors=theme.ink, labelcolor=theme.ink, length=0)
        panel.grid(axis="x", color=theme.line, linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[:].set_visible(False)
        for text in (panel.xaxis.label, panel._left_title):
            text.set_color(theme.ink)
    return figure, panels


def _legend(panel, theme: Theme, columns: int) -> None:
    panel.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=9,
        borderaxespad=0.1, labelcolor=theme.ink,
    )  # fmt: skip


def _save(figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with replace_file(path) as file:
        FigureCanvasAgg(figure).print_png(file)
