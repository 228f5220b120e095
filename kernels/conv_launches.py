"""What the Triton kernel of norm_act_conv launches, for the profiler. Knows no Triton."""

from collections.abc import Iterable

import torch
from pix2pixhd_fast.kernels.conv_engine import engine, sizes
from pix2pixhd_fast.kernels.norm_act_conv_plan import Layer, plan
from torch import Tensor

from pix2pixhd_fast._launches import Launch, copies_of, scratch_of


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

    x is taken to be channels_last; a weight that is not is copied.
    """
    layer = layer_of(
        x, mean, gamma, beta, weight, bias, act, padding, pad, stride, transposed, output_padding,
        dead_bias, eps,
    )  # fmt: skip
    if x.numel() == 0 or engine(layer) != "triton":
        return None
    last = weight.is_contiguous(memory_format=torch.channels_last)
    return kernel_launches(layer, copies_of([] if last else [weight]))


def kernel_launches(layer: Layer, copies: Iterable[Launch] = ()) -> list[Launch]:
    """The copies first, the convolution, the combination of the tiles' statistics."""
    moved, copies = sizes(layer), list(copies)
    parts = 8 * layer.x[0] * layer.channels * plan(layer).tiles if layer.statistics else 0
    read = moved.x + moved.weight + moved.parameters + moved.bias
    scratch = scratch_of(copies) + parts
    written = moved.y + parts
    convolution = Launch("implicit_gemm.convolution", read, written, layer.flops, scratch)
    combine = Launch("implicit_gemm.combine", parts, moved.statistics, scratch=scratch)
    return [*copies, convolution, *([combine] if parts else [])]
