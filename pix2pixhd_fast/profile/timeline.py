"""A picture of the memory over a step, with its peak explained."""

from pathlib import Path

import numpy as np

from pix2pixhd_fast.profile.summary import Summary
from pix2pixhd_fast.profile.tracer import KINDS, Recording
from pix2pixhd_fast.report.files import replace_file

GIB = 2**30
_COLORS = dict(
    zip(KINDS, ("#444444", "#009e73", "#7f5539", "#cc79a7", "#0072b2", "#e69f00"), strict=True)
)
_PHASE_GREYS = {"forward": "#f2f4f7", "backward": "#ffffff", "optimiser": "#e4e8ee"}


def draw_timeline(recording: Recording, summary: Summary, path: Path | str) -> None:
    """Draw live memory by kind over the ops of the step into a PNG, 1560 x 728 pixels.

    The file is replaced in one step. Raises `InputError` where it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.6), dpi=130, facecolor="white", layout="constrained")
    panel = figure.subplots()
    _draw_phases(panel, recording)
    layers = _by_kind(recording)
    shown = [kind for kind in KINDS if layers[kind].any()]
    panel.stackplot(
        np.array(recording.launch_at),
        [layers[kind] for kind in shown],
        labels=shown,
        colors=[_COLORS[kind] for kind in shown],
        linewidth=0,
    )
    _explain_peak(panel, summary)
    panel.set_title(f"Memory of one {summary.subject}", fontsize=12, loc="left", fontweight="bold")
    panel.set_xlabel("ops so far")
    panel.set_ylabel("GiB")
    panel.set_xlim(0, len(recording.launches))
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="upper right", frameon=True, edgecolor="none", fontsize=10)
    with replace_file(Path(path)) as file:
        FigureCanvasAgg(figure).print_png(file)


def _by_kind(recording: Recording) -> dict[str, np.ndarray]:
    """GiB of each kind after each change [changes]."""
    steps = {kind: np.zeros(len(recording.changes) + 1) for kind in KINDS}
    for block in recording.blocks:
        steps[block.kind][max(block.born, 0)] += block.bytes / GIB
        if block.died is not None:
            steps[block.kind][block.died] -= block.bytes / GIB
    return {kind: values.cumsum()[:-1] for kind, values in steps.items()}


def _draw_phases(panel, recording: Recording) -> None:
    phases = [launch.phase for launch in recording.launches]
    start = 0
    for n in range(1, len(phases) + 1):
        if n == len(phases) or phases[n] != phases[start]:
            panel.axvspan(start, n, color=_PHASE_GREYS.get(phases[start], "#ffffff"), zorder=0)
            start = n


def _explain_peak(panel, summary: Summary) -> None:
    peak = summary.peak
    lines = [f"peak {peak.bytes / GIB:.2f} GiB: {peak.op} of {peak.module}, {peak.phase}"]
    lines += [f"{count / GIB:6.2f}  {module}, {kind}" for module, kind, count in peak.largest]
    top = peak.bytes / GIB
    panel.axhline(top, color="#d55e00", linewidth=1, linestyle="--")
    panel.plot([peak.launch + 1], [top], "o", color="#d55e00", zorder=5)
    panel.set_ylim(0, top * 1.42)
    panel.text(
        0.01, 0.985, "\n".join(lines), transform=panel.transAxes, va="top", fontsize=9,
        family="monospace",
    )  # fmt: skip
