"""What norm_act_conv and its backward launch on a GPU, for the profiler. Knows no Triton."""

import math
from typing import NamedTuple

from pix2pixhd_fast.kernels.conv_engine import Sizes, engine, sizes
from pix2pixhd_fast.kernels.norm_act_conv_plan import Layer, plan
from torch import Tensor


class Launch(NamedTuple):
    """One kernel: bytes read and written, arithmetic, bytes that only the op holds meanwhile."""

    name: str
    read: int
    written: int
    flops: int = 0
    scratch: int = 0


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
) -> list[Launch]:  # fmt: skip
    """Of the op norm_act_conv with these arguments, by the engine for its shapes, in their order.

    x and, for the library, the weights are taken to be channels_last.
    """
    layer = layer_of(
        x, mean, gamma, beta, weight, bias, act, padding, pad, stride, transposed, output_padding,
        dead_bias, eps,
    )  # fmt: skip
    if x.numel() == 0:
        return []
    return forward_launches(layer, engine(layer))


def forward_launches(layer: Layer, chosen: str) -> list[Launch]:
    """`chosen`: "triton" or "library", which is the composition, on the CPU as well.

    The parts of the library's statistics are left out: less than 1 MB.
    """
    moved = sizes(layer)
    return _by_triton(layer, moved) if chosen == "triton" else _by_library(layer, moved)


def _by_triton(layer: Layer, moved: Sizes) -> list[Launch]:
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


def _by_library(layer: Layer, moved: Sizes) -> list[Launch]:
    found = []
    if moved.p:
        found.append(_apply(moved))
    read = (moved.p or moved.x) + moved.weight + moved.bias
    found.append(Launch("aten::convolution", read, moved.y, layer.flops, moved.p))
    if layer.statistics:
        found.append(Launch("channel_statistics.statistics", moved.y, 0, scratch=moved.p))
        found.append(Launch("channel_statistics.combine", 0, moved.statistics, scratch=moved.p))
    return found


def _apply(moved: Sizes) -> Launch:
    read = moved.x + moved.parameters
    return Launch("norm_act_pad.apply", read, moved.p, scratch=moved.p)


def backward_launches(
    dy, x, mean, rstd, gamma, beta, weight, norm, act, slope, padding, pad,
    stride, transposed, output_padding, needs_x, needs_weight, needs_bias, result=None,
) -> list[Launch]:  # fmt: skip
    """Of the op norm_act_conv_backward with these arguments: the composition, for either engine."""
    layer = layer_of(
        x, mean, gamma, beta, weight, None, act, padding, pad, stride, transposed, output_padding,
        False, None,
    )  # fmt: skip
    if x.numel() == 0:
        return []
    sums = norm in ("instance", "batch") or gamma is not None or beta is not None
    found = _gradients(layer, needs_x, needs_weight, needs_bias)
    return found + (_back_to_x(layer, sums) if needs_x else [])


def _gradients(layer: Layer, x: bool, weight: bool, bias: bool) -> list[Launch]:
    """The padded input once more, then of the library's convolution the gradients that are asked
    for: one launch each, those of padded input and weights as dear as the forward."""
    moved = sizes(layer)
    p = moved.p or moved.x
    # Without a pass of its own, the gradient of p is that of x.
    dp = moved.p if x else 0
    found = [_apply(moved)] if moved.p else []
    scratch = moved.p + dp
    if x:
        name, read = "aten::convolution_backward input", moved.y + moved.weight
        found.append(Launch(name, read, p, layer.flops, scratch))
    if weight:
        name = "aten::convolution_backward weight"
        found.append(Launch(name, moved.y + p, moved.weight, layer.flops, scratch))
    if bias:
        written = layer.channels * layer.dtype.itemsize
        found.append(Launch("aten::sum", moved.y, written, scratch=scratch))
    return found


def _back_to_x(layer: Layer, sums: bool) -> list[Launch]:
    """From the gradient of the padded input to that of x; p lives on to the end of the op."""
    moved = sizes(layer)
    scratch = 2 * moved.p
    if not moved.p:
        return []
    if not layer.normed and layer.act == "none":
        fold = Launch("norm_act_pad_backward.fold", moved.p, moved.x, scratch=scratch)
        return [fold] if layer.pad else []
    found = []
    means = 8 * layer.x[0] * layer.x[1] if sums else 0
    read = moved.p + moved.x + moved.parameters
    if sums:
        found = [
            Launch("norm_act_pad_backward.reduce_backward", read, 0, scratch=scratch),
            Launch("norm_act_pad_backward.combine_backward", 0, means, scratch=scratch + means),
        ]
    name = "norm_act_pad_backward.apply_backward"
    found.append(Launch(name, read + means, moved.x, scratch=scratch + means))
    return found
