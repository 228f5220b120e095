"""3x3 convolutions that pad one zero, without bias, and the gradient of their input."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd_fast._launches import Launch, bytes_of, register_launches
from pix2pixhd_fast._library import define, register_cpu
from pix2pixhd_fast.ops import winograd
from pix2pixhd_fast.ops.memory_format import to_channels_last

aten = torch.ops.aten


def conv3x3_ref(x: Tensor, weight: Tensor) -> Tensor:
    """x [N, C, H, W], weight [K, C, 3, 3] of one dtype -> [N, K, H, W] in channels_last."""
    return F.conv2d(x, weight, None, 1, 1).contiguous(memory_format=torch.channels_last)


def conv3x3_input_gradient_ref(dy: Tensor, weight: Tensor) -> Tensor:
    """dx [N, C, H, W] in channels_last of dy [N, K, H, W]: reads neither x nor a turned weight."""
    dx = aten.convolution(dy, weight, None, [1, 1], [1, 1], [1, 1], True, [0, 0], 1)
    return dx.contiguous(memory_format=torch.channels_last)


def _conv3x3_cpu(x: Tensor, weight: Tensor) -> Tensor:
    if winograd.suits(x, weight, 1, 1, False):
        return winograd.convolve(x, weight, None, 1, 1)
    return to_channels_last(F.conv2d(x, weight, None, 1, 1))


def _conv3x3_input_gradient_cpu(dy: Tensor, weight: Tensor) -> Tensor:
    """By Winograd's method where that suits, else a convolution by the weight turned round.

    Measured on one core (AVX-512, noisy), ms, turned round and by aten::convolution_backward,
    128 -> 256 channels, 64x128: float32 177, 195; bfloat16 728, 5798.
    """
    if winograd.suits_gradients(dy, weight, 1, 1, False):
        return winograd.input_gradient(dy, dy.shape[2:], weight, 1, 1)
    return _conv3x3_cpu(dy, weight.flip(2, 3).transpose(0, 1))


def _launches(x: Tensor, weight: Tensor, result: Tensor) -> list[Launch]:
    if result.numel() == 0:
        return []
    flops = 2 * (x.numel() // x.shape[1]) * weight.numel()
    return [Launch("aten::convolution", bytes_of(x, weight), bytes_of(result), flops)]


define("conv3x3", "(Tensor x, Tensor weight) -> Tensor", conv3x3_ref)
define("conv3x3_input_gradient", "(Tensor dy, Tensor weight) -> Tensor", conv3x3_input_gradient_ref)
register_launches("conv3x3", _launches)
register_launches("conv3x3_input_gradient", _launches)
register_cpu("conv3x3", _conv3x3_cpu)
register_cpu("conv3x3_input_gradient", _conv3x3_input_gradient_cpu)
