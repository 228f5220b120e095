"""How far a run is, and the bar that shows it."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from tqdm import tqdm


@dataclass
class Position:
    """How far a training is: `epoch` (from 1) and the images of it that are done."""

    epoch: int = 1
    images: int = 0


def progress_bar(
    total: int, done: int = 0, unit: str = "img", description: str = "", shown: bool = True
) -> tqdm:
    """A bar on stderr with rate and time left; in a log file it prints a line every ten seconds."""
    return tqdm(
        total=total,
        initial=done,
        unit=unit,
        desc=description,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 10,
        smoothing=0.05,
        disable=not shown,
    )


def losses_text(losses: dict[str, float], names: Iterable[str]) -> str:
    """The losses in `names`, for the end of the bar."""
    return " ".join(f"{name} {losses[name]:.3f}" for name in names)
