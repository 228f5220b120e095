"""Finds out where numbers stop being finite."""

import math

import torch
from torch import Tensor, nn

from pix2pixhd_fast._backend import backend
from pix2pixhd_fast.errors import NotFiniteError
from pix2pixhd_fast.model import Pix2PixHD
from pix2pixhd_fast.nn.norms import keep_running_statistics
from pix2pixhd_fast.training.step import forwards


def check_losses(losses: dict[str, float], model: Pix2PixHD, batch: dict[str, Tensor]) -> None:
    """Raise `NotFiniteError`, which names the first module, unless all losses are finite.

    Costs nothing as long as they are; else the batch runs through the networks once more.
    """
    wrong = [f"{name} {value}" for name, value in losses.items() if not math.isfinite(value)]
    if wrong:
        place = first_not_finite(model, batch)
        raise NotFiniteError(
            f"the losses are not finite any more ({', '.join(wrong)}): {place}; go on from a "
            "checkpoint with a smaller --lr" + _or_wider(model)
        )


def _or_wider(model: Pix2PixHD) -> str:
    return " or without --amp fp16" if model.options.amp == "fp16" else ""


def first_not_finite(model: Pix2PixHD, batch: dict[str, Tensor]) -> str:
    """The first module, in the order of the forward, that makes something not finite, in words.

    The networks run layer by layer (`backend("eager")`) on the batch, without gradients; nothing is
    changed.
    """
    found: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, args: tuple, output: object) -> None:
        if not found and isinstance(output, Tensor) and not output.isfinite().all():
            found.append(_described(names[module], module, args))

    leaves = [m for m in model.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(look) for m in leaves]
    try:
        with torch.no_grad(), backend("eager"), keep_running_statistics(model):
            forwards(model, model.training_inputs(batch))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "all modules give finite numbers on this batch by now"


def _described(name: str, module: nn.Module, args: tuple) -> str:
    weights = [p for p, value in module.named_parameters() if not value.isfinite().all()]
    if weights:
        return f"{name} is the first module whose {' and '.join(weights)} is not finite"
    given = [t for t in args if isinstance(t, Tensor)]
    if all(t.isfinite().all() for t in given):
        return f"{name} is the first module that makes finite numbers overflow"
    return f"the input of {name} is not finite"
