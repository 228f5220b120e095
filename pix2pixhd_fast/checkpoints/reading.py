"""Reading what torch.save wrote, never running code from the file; old formats made current."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from pix2pixhd_fast.errors import InputError

_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def read_state_dict(file: BinaryIO, path: Path) -> dict[str, Tensor]:
    """The state_dict in `file`, on the CPU; `path` is its name in errors.

    Both formats of torch.save are read (zip archives, and the older one of the original's published
    networks). Keys that all start with "module." (saved from a DataParallel wrapper) lose it.
    Raises `InputError` for a damaged file, for anything that is not a state_dict, and for a pickle
    that would run code.
    """
    content = _read(file, path, "a state_dict saved with torch.save")
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a state_dict, it holds a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{path} must hold a state_dict (names and tensors), "
                f"its entry {name!r} is a {type(value).__name__}"
            )
    if content and all(name.startswith("module.") for name in content):
        consume_prefix_in_state_dict_if_present(content, "module.")
    return content


def read_state(file: BinaryIO, path: Path) -> dict:
    """The dict of tensors and plain values in `file`; `InputError` as from `read_state_dict`."""
    content = _read(file, path, "the state of a training saved by this package")
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a dict, it holds a {type(content).__name__}")
    return content


def make_current(tensors: dict[str, Tensor], module: nn.Module, path: Path) -> None:
    """Change, in place, what older PyTorch versions saved differently for layers of `module`.

    Batch norms of before 0.4 had no `num_batches_tracked`: it is added, as 0. Instance norms of
    before 0.4 had running statistics, which today's do not use: they are dropped, with a warning.
    """
    own = module.state_dict()
    for name in own:
        layer, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked" and f"{layer}.running_mean" in tensors:
            tensors.setdefault(name, torch.zeros((), dtype=torch.long))
    dropped = [name for name in tensors if _is_old_instance_norm(name, tensors, own, module)]
    for name in dropped:
        del tensors[name]
    if dropped:
        warnings.warn(
            f"{path}: {len(dropped)} running statistics of instance norms, saved by PyTorch "
            f"before 0.4, are not used",
            stacklevel=4,
        )


def _is_old_instance_norm(
    name: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], module: nn.Module
) -> bool:
    """Whether this is a running statistic of a layer that here has no parameters or buffers."""
    layer, _, kind = name.rpartition(".")
    if kind not in _RUNNING or name in own or f"{layer}.weight" in tensors:
        return False
    try:
        return not module.get_submodule(layer).state_dict()
    except AttributeError:
        return False


def _read(file: BinaryIO, path: Path, expected: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # about pickles of other programs; the error says enough
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle or archive raises can be anything
        raise InputError(
            f"cannot read {path}: it must be {expected} (tensors and plain values, no code), "
            f"it is damaged or something else"
        ) from error
