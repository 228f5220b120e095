"""norm_act_pad_apply in Triton: one pass over the output."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pix2pixhd_fast.kernels.blocks import dense, program_of
from pix2pixhd_fast.kernels.layers import LAYERS
from pix2pixhd_fast.kernels.variants import Variant, launches
from torch import Tensor

from pix2pixhd_fast.ops.blocks import Plan


@triton.jit
def activate(z, slope, ACT: tl.constexpr):
    if ACT == "relu":
        return tl.where(z <= 0, 0.0, z)
    elif ACT == "leaky_relu":
        return tl.where(z <= 0, z * slope, z)
    elif ACT == "tanh":
        e = tl.exp(-2 * tl.abs(z))
        size = (1 - e) / (1 + e)
        return tl.where(z < 0, -size, size)
    else:
        return z


@triton.jit
def parameter(values, at, mask, otherwise: tl.constexpr):
    """float32 [1, BLOCK_C] at the places `at`, or a number where there is no such parameter."""
    if values is None:
        return otherwise
    else:
        return tl.load(values + at, mask=mask, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _source(index, size, pad, PADDING: tl.constexpr):
    """The index in an unpadded row of the value at `index` of the padded one; outside, for zero."""
    i = index - pad
    if PADDING == "reflect":
        i = tl.abs(i)
        i = (size - 1) - tl.abs(size - 1 - i)
    elif PADDING == "replicate":
        i = tl.minimum(tl.maximum(i, 0), size - 1)
    return i


@triton.jit
def sources(p, height, width, pad, PADDING: tl.constexpr):
    """Row and column that the pixels p of the padded image are copies of; if they are of any."""
    padded_width = width + 2 * pad
    row = _source(p // padded_width, height, pad, PADDING)
    column = _source(p % padded_width, width, pad, PADDING)
    real = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return row, column, real


@triton.jit
def _apply_kernel(
    x,  # [images, height, width, channels]
    x_image,
    x_row,
    residual,  # like x, or None
    residual_image,
    residual_row,
    mean,  # [images, channels] or None
    rstd,
    gamma,  # [groups, channels] or None
    beta,
    y,  # [images, (height + 2 pad) * (width + 2 pad), channels]
    slope,
    height,
    width,
    channels,
    groups,
    pad,
    blocks,
    ACT: tl.constexpr,
    PADDING: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, c, block = program_of(blocks, channels, BLOCK_C)
    padded_pixels = (height + 2 * pad) * (width + 2 * pad)
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column, real = sources(p, height, width, pad, PADDING)
    inside = (p < padded_pixels)[:, None] & (c < channels)[None, :]
    there = inside & real[:, None]
    at = (row * x_row + column * channels)[:, None] + c[None, :]
    values = tl.load(x + image * x_image + at, mask=there, other=0.0).to(tl.float32)
    own = image * channels + c
    values = (values - parameter(mean, own, c < channels, 0.0)) * parameter(
        rstd, own, c < channels, 1.0
    )
    own = image % groups * channels + c
    values = values * parameter(gamma, own, c < channels, 1.0)
    values = activate(values + parameter(beta, own, c < channels, 0.0), slope, ACT)
    if residual is not None:
        at = (row * residual_row + column * channels)[:, None] + c[None, :]
        residual += image * residual_image
        values += tl.load(residual + at, mask=there, other=0.0).to(tl.float32)
    values = tl.where(there, values, 0.0)
    at = y + image * padded_pixels * channels + p[:, None] * channels + c[None, :]
    tl.store(at, values.to(y.dtype.element_ty), mask=inside)


def apply(
    x: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    act: str,
    slope: float,
    padding: str,
    pad: int,
) -> Tensor:
    plan = Plan(x, *x.shape[2:])
    y = plan.new(x, pad)
    if y.numel() == 0:
        return y
    plan.rows(y)
    blocks = plan.blocks(y.shape[2] * y.shape[3])
    with torch.cuda.device_of(x):
        _apply_kernel[(plan.columns * blocks,)](
            *plan.rows(x), *plan.optional_rows(residual), *dense(mean, rstd, gamma, beta), y, slope,
            plan.height, plan.width, plan.channels, plan.groups, pad, blocks, ACT=act,
            PADDING=padding, BLOCK_P=plan.block_p, BLOCK_C=plan.block_c,
        )  # fmt: skip
    return y


def variants() -> Iterator[Variant]:
    for layer in LAYERS:
        residual = layer.inner_picture() if layer.added else None
        yield from launches(apply, layer.picture(), *layer.prologue(), residual, *layer.options)
