"""norm_act_pad in Triton: the statistics of x, then one pass over the output.

Memory is [images, pixels, channels]: the channels_last format, or the default one as N * C images
of one channel. A program works on blocks of [BLOCK_P pixels, BLOCK_C channels] of one image.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pix2pixhd_fast.kernels.variants import Variant, launches
from torch import Tensor

from pix2pixhd_fast.ops.norm_act_pad_plan import Plan

# What the variants are made of: [C, H, W], dtype, channels_last, act, padding, pad. Of G at
# 2048x1024 its outer layers and its residual blocks, of D a layer; then three channels, the default
# memory format, and sides that are odd.
LAYERS = (
    ((32, 1024, 2048), torch.bfloat16, True, "relu", "reflect", 3),
    ((64, 512, 1024), torch.float32, True, "relu", "zero", 1),
    ((1024, 32, 64), torch.bfloat16, True, "relu", "reflect", 1),
    ((1024, 32, 64), torch.bfloat16, True, "none", "none", 0),
    ((64, 257, 513), torch.float16, True, "leaky_relu", "zero", 2),
    ((64, 65, 129), torch.float32, True, "tanh", "reflect", 1),
    ((3, 65, 129), torch.float32, True, "tanh", "replicate", 1),
    ((32, 512, 1024), torch.float32, False, "relu", "reflect", 3),
    ((32, 512, 1024), torch.bfloat16, False, "leaky_relu", "replicate", 1),
)


@triton.jit
def activate(xhat, slope, ACT: tl.constexpr):
    if ACT == "relu":
        return tl.where(xhat <= 0, 0.0, xhat)
    elif ACT == "leaky_relu":
        return tl.where(xhat <= 0, xhat * slope, xhat)
    elif ACT == "tanh":
        e = tl.exp(-2 * tl.abs(xhat))
        size = (1 - e) / (1 + e)
        return tl.where(xhat < 0, -size, size)
    else:
        return xhat


@triton.jit
def program_of(parts, channels, BLOCK_C: tl.constexpr):
    """Of the grid [images, channel blocks, parts]: the image, its channels, the part."""
    program = tl.program_id(0)
    block = program // parts
    blocks = tl.cdiv(channels, BLOCK_C)
    c = (block % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return (block // blocks).to(tl.int64), c, program % parts


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
def places_in_image(p, height, width, pad, PADDING: tl.constexpr):
    """Which pixels the pixels p of the padded image are copies of, and whether they are of any."""
    padded_width = width + 2 * pad
    row = _source(p // padded_width, height, pad, PADDING)
    column = _source(p % padded_width, width, pad, PADDING)
    real = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return row * width + column, real


@triton.jit
def _statistics_kernel(
    x,  # [images, pixels, channels]
    means,  # [images, splits, channels]: of the pixels of a split
    squares,  # the same: the sums of the squared distances from them
    pixels,
    channels,
    splits,
    split_pixels,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, c, split = program_of(splits, channels, BLOCK_C)
    x += image * pixels * channels
    first = split * split_pixels
    last = tl.minimum(first + split_pixels, pixels)
    mean = tl.zeros([BLOCK_C], tl.float32)
    square = tl.zeros([BLOCK_C], tl.float32)
    count = 0.0
    for start in range(first, last, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < last)[:, None] & (c < channels)[None, :]
        at = x + p[:, None] * channels + c[None, :]
        values = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        n = tl.minimum(last - start, BLOCK_P).to(tl.float32)
        block_mean = tl.sum(values, 0) / n
        centred = tl.where(mask, values - block_mean[None, :], 0.0)
        distance = block_mean - mean
        total = count + n
        mean += distance * (n / total)
        square += tl.sum(centred * centred, 0) + distance * distance * (count * n / total)
        count = total
    at = (image * splits + split) * channels + c
    tl.store(means + at, mean, mask=c < channels)
    tl.store(squares + at, square, mask=c < channels)


@triton.jit
def _combine_statistics_kernel(
    means,  # [images, splits, channels]
    squares,
    mean,  # [images, channels]
    rstd,
    eps,
    pixels,
    channels,
    splits,
    split_pixels,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, c, _ = program_of(1, channels, BLOCK_C)
    means += image * splits * channels
    squares += image * splits * channels
    total = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, splits, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        mask = (s < splits)[:, None] & (c < channels)[None, :]
        n = tl.minimum(pixels - s * split_pixels, split_pixels).to(tl.float32)
        part = tl.load(means + s[:, None] * channels + c[None, :], mask=mask, other=0.0)
        total += tl.sum(part * (n / pixels)[:, None], 0)
    spread = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, splits, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        mask = (s < splits)[:, None] & (c < channels)[None, :]
        n = tl.minimum(pixels - s * split_pixels, split_pixels).to(tl.float32)
        part = tl.load(means + s[:, None] * channels + c[None, :], mask=mask, other=0.0)
        square = tl.load(squares + s[:, None] * channels + c[None, :], mask=mask, other=0.0)
        distance = tl.where(mask, part - total[None, :], 0.0)
        spread += tl.sum(square / pixels + distance * distance * (n / pixels)[:, None], 0)
    tl.store(mean + image * channels + c, total, mask=c < channels)
    tl.store(rstd + image * channels + c, 1 / tl.sqrt(spread + eps), mask=c < channels)


@triton.jit
def _apply_kernel(
    x,  # [images, height * width, channels]
    mean,  # [images, channels]
    rstd,
    y,  # [images, (height + 2 pad) * (width + 2 pad), channels]
    slope,
    height,
    width,
    channels,
    pad,
    blocks,
    ACT: tl.constexpr,
    PADDING: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, c, block = program_of(blocks, channels, BLOCK_C)
    padded_pixels = (height + 2 * pad) * (width + 2 * pad)
    x += image * height * width * channels
    y += image * padded_pixels * channels
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    place, real = places_in_image(p, height, width, pad, PADDING)
    inside = (p < padded_pixels)[:, None] & (c < channels)[None, :]
    there = inside & real[:, None]
    at = x + place[:, None] * channels + c[None, :]
    values = tl.load(at, mask=there, other=0.0).to(tl.float32)
    m = tl.load(mean + image * channels + c, mask=c < channels, other=0.0)
    r = tl.load(rstd + image * channels + c, mask=c < channels, other=0.0)
    values = activate((values - m[None, :]) * r[None, :], slope, ACT)
    values = tl.where(there, values, 0.0)
    at = y + p[:, None] * channels + c[None, :]
    tl.store(at, values.to(y.dtype.element_ty), mask=inside)


def forward(
    x: Tensor, act: str, slope: float, padding: str, pad: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    plan = Plan(x, pad)
    plan.refuse_too_large()
    x = x.contiguous(memory_format=plan.layout)
    n, c, h, w = x.shape
    shape = (n, c, h + 2 * pad, w + 2 * pad)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=plan.layout)
    mean, rstd = (torch.empty(n, c, dtype=torch.float32, device=x.device) for _ in range(2))
    if x.numel() == 0:
        return y, mean, rstd
    splits, split_pixels = plan.splits(plan.pixels)
    means, squares = torch.empty(plan.partial_shape(splits), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        _statistics_kernel[(plan.columns * splits,)](
            x, means, squares, plan.pixels, plan.channels, splits, split_pixels,
            BLOCK_P=plan.block_p, BLOCK_C=plan.block_c,
        )  # fmt: skip
        _combine_statistics_kernel[(plan.columns,)](
            means, squares, mean, rstd, eps, plan.pixels, plan.channels, splits, split_pixels,
            BLOCK_S=plan.block_p, BLOCK_C=plan.block_c,
        )  # fmt: skip
        blocks = plan.blocks(plan.padded_pixels)
        _apply_kernel[(plan.columns * blocks,)](
            x, mean, rstd, y, slope, h, w, plan.channels, pad, blocks, ACT=act, PADDING=padding,
            BLOCK_P=plan.block_p, BLOCK_C=plan.block_c,
        )  # fmt: skip
    return y, mean, rstd


def layers() -> Iterator[tuple[Tensor, str, str, int]]:
    """x without memory, act, padding and pad of each of LAYERS."""
    for shape, dtype, last, act, padding, pad in LAYERS:
        layout = torch.channels_last if last else torch.contiguous_format
        x = torch.empty(1, *shape, dtype=dtype, device="meta", memory_format=layout)
        yield x, act, padding, pad


def variants() -> Iterator[Variant]:
    for x, act, padding, pad in layers():
        yield from launches(forward, x, act, 0.2, padding, pad, 1e-5)
