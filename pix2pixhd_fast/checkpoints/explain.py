"""Why a state_dict does not fit a network: what differs, and the options that would fit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from pix2pixhd_fast.checkpoints.layout import (
    INPUT_CHANNELS,
    Shapes,
    input_changes,
    layout,
    shapes_of,
)
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import Options

_NAMES_SHOWN = 4
_NETWORKS = {"G": "generator", "D": "discriminator", "E": "encoder"}


@dataclass(frozen=True)
class Difference:
    """What a state_dict ("file") and a network ("model") do not share, in their own orders."""

    missing: list[str]  # in the model only
    unexpected: list[str]  # in the file only
    reshaped: list[str]  # in both, with different shapes

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)


def difference(file: Shapes, model: Shapes) -> Difference:
    """Compare names and shapes."""
    return Difference(
        missing=[name for name in model if name not in file],
        unexpected=[name for name in file if name not in model],
        reshaped=[name for name in model if name in file and file[name] != model[name]],
    )


def require_fit(
    tensors: Mapping[str, Tensor],
    module: nn.Module,
    letter: str,
    path: Path,
    options: Options | None,
) -> None:
    """Raise the `InputError` of `misfit` unless the tensors are exactly those of the module."""
    file, model = shapes_of(tensors), shapes_of(module.state_dict())
    if found := difference(file, model):
        raise misfit(found, file, model, letter, path, options)


def misfit(
    found: Difference,
    file: Shapes,
    model: Shapes,
    letter: str,
    path: Path,
    options: Options | None,
    coarse: bool = False,
) -> InputError:
    """The error for these differences: a sentence, then options that would fit, then names.

    `coarse`: the file is to start a model that may have more enhancers or scales.
    """
    shapes = [f"{n} {list(file[n])} (here {list(model[n])})" for n in found.reshaped]
    kinds = {
        "of another shape": shapes,
        "missing": found.missing,
        "not expected": found.unexpected,
    }
    kinds = {kind: names for kind, names in kinds.items() if names}
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items())
    lines = [f"{path} does not fit this {_NETWORKS[letter]} of {len(model)} tensors: {counts}"]
    lines += _option_lines(file, model, letter, options, coarse)
    for kind, names in kinds.items():
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        lines.append(f"{kind}: {', '.join(names[:_NAMES_SHOWN])}{more}")
    return InputError("\n  ".join(lines))


def _option_lines(
    file: Shapes, model: Shapes, letter: str, options: Options | None, coarse: bool
) -> Iterator[str]:
    theirs, ours = layout(file, letter), layout(model, letter)
    if coarse and theirs and ours:
        _ignore_fineness(theirs, ours)
    for name, value in theirs.items():
        if name not in ours or value == ours[name] or (name == "n_local_enhancers" and value == 0):
            continue
        if name != INPUT_CHANNELS:
            yield f"{name}: {value} fits the file, this {_NETWORKS[letter]} has {ours[name]}"
            continue
        line = f"the first layer takes {value} channels in the file, {ours[name]} here"
        changes = input_changes(letter, options, value) if options else []
        fitting = [" and ".join(_option(*pair) for pair in change.items()) for change in changes]
        yield f"{line}; what would fit: {'; or '.join(fitting)}" if fitting else line


def _ignore_fineness(theirs: dict, ours: dict) -> None:
    """Leave out what may differ between a coarse file and a finer model."""
    if theirs.get("num_D", 0) < ours.get("num_D", 0):
        del theirs["num_D"]
    if theirs.get("n_local_enhancers", 0) < ours.get("n_local_enhancers", 0):
        finer = ours["n_local_enhancers"] - theirs["n_local_enhancers"]
        theirs["ngf"] >>= finer  # each enhancer halves the channels of its outer neighbour
        del theirs["netG"], theirs["n_local_enhancers"]


def _option(name: str, value: str | int | bool) -> str:
    if isinstance(value, bool):
        return name if value else f"without {name}"
    return f"{name} {value}"
