"""A picture of the losses of a run."""

from pathlib import Path

import numpy as np

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.report.files import replace_file
from pix2pixhd_fast.report.loss_log import LossRow

# Eight colours that stay apart for colour-blind eyes.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5539", "#444444")
_LEGEND = {"frameon": False, "borderaxespad": 0.2, "borderpad": 0.2, "handlelength": 1.4}
_SMOOTH_FROM = 100  # rows; a shorter log is drawn as it is


def draw_loss_curves(rows: list[LossRow], path: Path | str, images_per_epoch: int) -> None:
    """Draw the losses of generator and discriminator over epochs, a PNG of 1560 x 598 pixels.

    First, where the log goes back (a run was started again), later rows replace earlier ones. Then
    each loss is drawn at `epoch - 1 + iters / images_per_epoch`; from 100 rows on, as a pale line
    and its moving average over a fiftieth of the rows. Losses whose names begin with `D` are the
    discriminator's. The file is replaced in one step. Raises `InputError` for `images_per_epoch`
    below 1, or a file that cannot be written.
    """
    if images_per_epoch < 1:
        raise InputError(f"images_per_epoch must be at least 1, got {images_per_epoch}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), dpi=130, facecolor="white", layout="constrained")
    series = _series(_last_run(rows), images_per_epoch)
    panels = figure.subplots(1, 2)
    for panel, title, discriminator in zip(
        panels, ("Generator", "Discriminator"), (False, True), strict=True
    ):
        chosen = {name: xy for name, xy in series.items() if name.startswith("D") == discriminator}
        _draw_panel(panel, title, chosen)
    with replace_file(Path(path)) as file:
        FigureCanvasAgg(figure).print_png(file)


def _last_run(rows: list[LossRow]) -> list[LossRow]:
    """The rows that no later row went back behind, in rising order of position."""
    kept: list[LossRow] = []
    for row in rows:
        while kept and (kept[-1].epoch, kept[-1].iters) >= (row.epoch, row.iters):
            kept.pop()
        kept.append(row)
    return kept


def _series(rows: list[LossRow], images_per_epoch: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Epochs [n] and values [n] of each loss, in the order in which the losses first appear."""
    names = dict.fromkeys(name for row in rows for name in row.losses)
    series = {}
    for name in names:
        having = [row for row in rows if name in row.losses]
        epochs = np.array([row.epoch - 1 + row.iters / images_per_epoch for row in having])
        series[name] = (epochs, np.array([row.losses[name] for row in having]))
    return series


def _moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over `window` (odd) neighbours, fewer at the ends; what is not finite does not count."""
    finite = np.isfinite(values)
    ones = np.ones(window)
    half = window // 2
    total = np.convolve(np.where(finite, values, 0), ones)[half : half + len(values)]
    count = np.convolve(finite.astype(float), ones)[half : half + len(values)]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _draw_panel(panel, title: str, series: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = []
    for order, (name, (epochs, values)) in enumerate(series.items()):
        color = _COLORS[order % len(_COLORS)]
        values = np.where(np.isfinite(values), values, np.nan)
        line = values
        if len(values) >= _SMOOTH_FROM:
            panel.plot(epochs, values, color=color, alpha=0.22, linewidth=0.8)
            line = _moving_average(values, len(values) // 50 | 1)
        marker = "o" if len(values) < 20 else None
        last = f"{line[-1]:.3f}" if np.isfinite(line[-1]) else "not finite"
        panel.plot(
            epochs, line, color=color, linewidth=1.8, marker=marker, ms=4, label=f"{name}  {last}"
        )
        drawn.append((values, line))
    legend_rows = -(-len(drawn) // 3)
    pad = 8 + 19 * legend_rows  # points: the legend lies between title and axes, over no line
    panel.set_title(title, fontsize=14, loc="left", fontweight="bold", pad=pad)
    panel.set_xlabel("epoch", fontsize=12)
    panel.tick_params(labelsize=11)
    panel.grid(color="#e3e3e3", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=8))
    if drawn:
        _set_range(panel, drawn)
        panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=11, **_LEGEND)
    else:
        panel.text(0.5, 0.5, "no losses yet", transform=panel.transAxes, ha="center", fontsize=12)


def _set_range(panel, drawn: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Show every smooth line and nearly all raw values: a rare spike must not flatten the rest."""
    raw = np.concatenate([values for values, _ in drawn])
    smooth = np.concatenate([line for _, line in drawn])
    raw, smooth = raw[np.isfinite(raw)], smooth[np.isfinite(smooth)]
    if len(raw):
        top = max(smooth.max(), np.percentile(raw, 99.5))
        bottom = min(smooth.min(), np.percentile(raw, 0.5), 0.0)
        panel.set_ylim(bottom, bottom + (top - bottom) * 1.08 or 1.0)
