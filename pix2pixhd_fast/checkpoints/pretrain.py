"""Starting a model from a coarser one's networks: G1 into G1+G2, fewer scales of D into more."""

import os
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pix2pixhd_fast.checkpoints.explain import Difference, difference, misfit
from pix2pixhd_fast.checkpoints.folder import CheckpointFolder
from pix2pixhd_fast.checkpoints.layout import Shapes, enhancer_of, output_head, scale_of, shapes_of
from pix2pixhd_fast.checkpoints.reading import make_current
from pix2pixhd_fast.options import Options


@dataclass(frozen=True)
class PretrainReport:
    """What `load_pretrained` did with one network; `str` gives one line for the console."""

    letter: str  # G, D or E
    path: Path
    found: bool  # whether there was such a file; without one the network is unchanged
    loaded: int = 0  # tensors
    fresh: tuple[str, ...] = ()  # enhancers of G, scales of D that keep their initial values
    dropped: tuple[str, ...] = ()  # layers of the file that the model does not have

    def __str__(self) -> str:
        if not self.found:
            return f"{self.letter}: starts fresh, there is no {self.path}"
        line = f"{self.letter}: {self.loaded} tensors from {self.path}"
        if self.fresh:
            line += f"; start fresh: {', '.join(self.fresh)}"
        if self.dropped:
            line += f"; not used: {', '.join(self.dropped)}"
        return line


def load_pretrained(
    folder: str | os.PathLike,
    label: str,
    letter: str,
    module: nn.Module,
    options: Options | None = None,
) -> PretrainReport:
    """Start `module` (network `letter`: G, D, E) from a checkpoint of the same or a coarser model.

    The checkpoint may lack the outermost enhancers of G, then its own output layer is not used; it
    may lack whole scales of D. What it lacks keeps its values. Everything else must be there with
    its shape. D and E may have no file. Raises `InputError`, as `CheckpointFolder.load` does,
    before the module changes.
    """
    checkpoints = CheckpointFolder(folder)
    path = checkpoints.folder / f"{label}_net_{letter}.pth"
    if letter != "G" and label not in checkpoints.labels(letter) and checkpoints.folder.is_dir():
        return PretrainReport(letter, path, found=False)
    _, tensors = checkpoints.read_network(label, letter)
    make_current(tensors, module, path)
    file, model = shapes_of(tensors), shapes_of(module.state_dict())
    remaining, fresh, head = _set_aside(difference(file, model), file, letter)
    if remaining:
        raise misfit(remaining, file, model, letter, path, options, coarse=True)
    for name in head:
        del tensors[name]
    module.load_state_dict(tensors, strict=not fresh)
    dropped = tuple(dict.fromkeys(name.rpartition(".")[0] for name in head))
    return PretrainReport(letter, path, True, len(tensors), fresh, dropped)


def _set_aside(
    found: Difference, file: Shapes, letter: str
) -> tuple[Difference, tuple[str, ...], list[str]]:
    """Differences that a coarser checkpoint does not explain, what starts fresh, its head."""
    if letter == "G":
        finest = max(map(enhancer_of, file), default=0)
        group_of = {n: f"model{enhancer_of(n)}" for n in found.missing if enhancer_of(n) > finest}
    elif letter == "D":
        scales = set(map(scale_of, file))
        group_of = {n: scale_of(n) for n in found.missing if scales and scale_of(n) not in scales}
    else:
        group_of = {}
    layer = output_head(file) if letter == "G" and group_of else None
    head = [name for name in found.unexpected if name.rpartition(".")[0] == layer]
    remaining = Difference(
        missing=[name for name in found.missing if name not in group_of],
        unexpected=[name for name in found.unexpected if name not in head],
        reshaped=found.reshaped,
    )
    return remaining, tuple(dict.fromkeys(group_of.values())), head
