"""What the Triton kernel of norm_act_conv launches, for the profiler. Knows no Triton."""

import math

from pix2pixhd_fast.kernels.conv_engine import engine, sizes
from pix2pixhd_fast.kernels.norm_act_conv_plan import Layer, plan
from torch import Tensor

from pix2pixhd_fast._launches import Launch


def layer_of(
    x: Tensor, mean, gamma, beta, weight: Tensor, bias, act: str, padding: str, pad: int,
    stride: int, transposed: bool, output_padding: int, dead_bias: bool, eps: float | None,
) -> Layer:  # fmt: skip
    """The layer that a call of the op computes."""
    return Layer(
        tuple(x.shape), tuple(weight.shape), x.dtype,
        any(t is not None for t in (mean, gamma, beta)), act, padding, pad, stride, transposed,
        output_padding, bias is not None and not dead_bias, eps is not None,
    )  # fmt: skip


def launches(
    x, mean, rstd, gamma, beta, weight, bias, norm, act, slope, padding, pad,
    stride, transposed, output_padding, dead_bias, eps, result=None,
) -> list[Launch] | None:  # fmt: skip
    """Of the op norm_act_conv with these arguments; None where the library computes it.

    x is taken to be channels_last.
    """
    layer = layer_of(
        x, mean, gamma, beta, weight, bias, act, padding, pad, stride, transposed, output_padding,
        dead_bias, eps,
    )  # fmt: skip
    return kernel_launches(layer) if x.numel() and engine(layer) == "triton" else None


def kernel_launches(layer: Layer) -> list[Launch]:
    """The packing of the weights, the convolution, the combination of the tiles' statistics."""
    moved = sizes(layer)
    shape = plan(layer)
    packed = math.prod(shape.packed_shape(layer)) * layer.dtype.itemsize
    parts = 8 * layer.x[0] * layer.channels * shape.tiles if layer.statistics else 0
    found = [Launch("aten::new_zeros", 0, packed, scratch=packed)] if shape.pads(layer) else []
    found.append(Launch("aten::copy_", moved.weight, packed, scratch=packed))
    read = moved.x + packed + moved.parameters + moved.bias
    scratch = packed + parts
    written = moved.y + parts
    found.append(Launch("implicit_gemm.convolution", read, written, layer.flops, scratch))
    if parts:
        found.append(Launch("implicit_gemm.combine", parts, moved.statistics, scratch=scratch))
    return found
