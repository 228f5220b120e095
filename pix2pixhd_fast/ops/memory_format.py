"""Pictures from the default memory format to channels_last and back."""

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from pix2pixhd_fast._launches import Launch, bytes_of, register_launches
from pix2pixhd_fast._library import define, kernel


def stands_for_gpu(x: Tensor) -> bool:
    """Whether x is on a GPU, or a fake tensor: whatever their device, those stand for a GPU's."""
    return isinstance(x, FakeTensor) or x.device.type != "cpu"


def to_channels_last(x: Tensor) -> Tensor:
    """x [N, C, H, W] in the channels_last format: itself where it is that, else a copy.

    The same values as `x.contiguous(memory_format=torch.channels_last)`, whose copy takes a
    multiple of the time on the CPU. Not differentiable.
    """
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    return kernel("to_channels_last", x)


def to_default_format(x: Tensor) -> Tensor:
    """x in the default format: itself where it is that, else a copy. Not differentiable."""
    return x if x.is_contiguous() else kernel("to_default_format", x)


def _to_channels_last_ref(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


def _to_default_format_ref(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x)


define("to_channels_last", "(Tensor x) -> Tensor", _to_channels_last_ref)
define("to_default_format", "(Tensor x) -> Tensor", _to_default_format_ref)


def _launches(x: Tensor, result: Tensor) -> list[Launch]:
    return [Launch("aten::clone", bytes_of(x), bytes_of(result))] if x.numel() else []


register_launches("to_channels_last", _launches)
register_launches("to_default_format", _launches)
