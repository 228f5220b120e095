"""The first convolution of two pictures, of 3x3 and few channels, its ReLU and their L1 distance.

Its results are many times the size of the pictures: on a GPU one kernel reads the pictures as they
lie, in any dtype and memory format, and writes only what is read later. On the CPU it is the
library's convolution and the pass of `relu_codes`. No gradients: `ops.perceptual_l1` is composed of
these. The weight is [C, 3, 3, K], dense, so that the channels of a result lie next to each other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import pix2pixhd_fast.ops.conv3x3
import pix2pixhd_fast.ops.relu_codes  # noqa: F401  (these define what runs on the CPU)
from pix2pixhd_fast._launches import Launch, bytes_of, register_launches
from pix2pixhd_fast._library import define, kernel, reference, register_cpu, register_triton
from pix2pixhd_fast.ops.channel_statistics import wide
from pix2pixhd_fast.ops.memory_format import to_channels_last


def first_relu_ref(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """relu(conv(x) + bias) in channels_last and the dtype, computed in float32 or float64."""
    x = wide(x)
    weight, bias = (t.to(x.dtype) for t in (_plain(weight), bias))
    z = F.conv2d(x, weight, bias, 1, 1).relu_()
    return z.to(dtype).contiguous(memory_format=torch.channels_last)


def first_l1_ref(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    factor: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`first_relu` of x, and sums and codes as by `relu_l1_` of what is not rounded to the dtype.

    x, y [N, C, H, W]; factor is the weight of the distance.
    """
    a, b = (first_relu_ref(t, weight, bias, wide(t).dtype) for t in (x, y))
    none = a.new_zeros(a.shape[1])
    sums, codes = reference("relu_l1_")(a, b, none, None, factor, False, False, keep)
    return a.to(dtype), sums, codes


def _plain(weight: Tensor) -> Tensor:
    return weight.permute(3, 0, 1, 2)


def _convolved(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    x = to_channels_last(x.to(dtype))
    return kernel("conv3x3", x, _plain(weight).to(dtype))


def _first_relu_cpu(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    z = _convolved(x, weight, dtype)
    kernel("relu_bits_", z, bias, 0)
    return z


def _first_l1_cpu(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    factor: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    a, b = (_convolved(t, weight, dtype) for t in (x, y))
    return a, *kernel("relu_l1_", a, b, bias, None, factor, True, False, keep)


def _first_relu_launches(x, weight, bias, dtype, result) -> list[Launch]:
    if result.numel() == 0:
        return []
    read, flops = bytes_of(x, weight, bias), _flops(result, weight)
    return [Launch("first_l1.first_l1", read, bytes_of(result), flops)]


def _first_l1_launches(x, y, weight, bias, dtype, factor, keep, result) -> list[Launch]:
    read, flops = bytes_of(x, y, weight, bias), 2 * _flops(result[0], weight)
    return [Launch("first_l1.first_l1", read, bytes_of(*result), flops)]


def _flops(result: Tensor, weight: Tensor) -> int:
    return 2 * result.numel() * weight[..., 0].numel()


define(
    "first_relu",
    "(Tensor x, Tensor weight, Tensor bias, ScalarType dtype) -> Tensor",
    first_relu_ref,
)
define(
    "first_l1",
    "(Tensor x, Tensor y, Tensor weight, Tensor bias, ScalarType dtype, float factor, bool keep)"
    " -> (Tensor a, Tensor sums, Tensor codes)",
    first_l1_ref,
)
register_launches("first_relu", _first_relu_launches)
register_launches("first_l1", _first_l1_launches)
register_cpu("first_relu", _first_relu_cpu)
register_cpu("first_l1", _first_l1_cpu)
register_triton("first_relu", "pix2pixhd_fast.kernels.first_l1:first_relu")
register_triton("first_l1", "pix2pixhd_fast.kernels.first_l1:first_l1")
