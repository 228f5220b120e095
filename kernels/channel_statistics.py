"""channel_statistics in Triton: one pass over parts of images, the last of which combines them."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pix2pixhd_fast.kernels.blocks import counters, is_last, per_channel, program_of
from pix2pixhd_fast.kernels.layers import LAYERS
from pix2pixhd_fast.kernels.variants import Variant, launches
from torch import Tensor

from pix2pixhd_fast.ops.blocks import Plan


@triton.jit
def _load_part(parts, s, c, channels, splits):
    """What splits s [BLOCK_S] have stored for channels c, 0 where there is no such; and where."""
    mask = (s < splits)[:, None] & (c < channels)[None, :]
    at = parts + s[:, None] * channels + c[None, :]
    return tl.load(at, mask=mask, other=0.0, cache_modifier=".cg"), mask


@triton.jit
def _combine(
    means, squares, c, pixels, channels, splits, split_pixels,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean and variance of an image, of what all its splits have stored, in their order."""
    total = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, splits, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        n = tl.minimum(pixels - s * split_pixels, split_pixels).to(tl.float32)
        part, _ = _load_part(means, s, c, channels, splits)
        total += tl.sum(part * (n / pixels)[:, None], 0)
    spread = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, splits, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        n = tl.minimum(pixels - s * split_pixels, split_pixels).to(tl.float32)
        part, mask = _load_part(means, s, c, channels, splits)
        square, _ = _load_part(squares, s, c, channels, splits)
        distance = tl.where(mask, part - total[None, :], 0.0)
        spread += tl.sum(square / pixels + distance * distance * (n / pixels)[:, None], 0)
    return total, spread


@triton.jit
def _statistics_kernel(
    x,  # [images, pixels, channels]
    mean,  # [images, channels]
    rstd,
    parts,  # [2, images, splits, channels]; None where there is one split
    counters,  # [images * channel blocks], as `is_last` has them
    eps,
    pixels,
    channels,
    splits,
    split_pixels,
    parts_squares,  # where in `parts` the second of the two begins
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, c, split = program_of(splits, channels, BLOCK_C)
    there = c < channels
    x += image * pixels * channels
    first = split * split_pixels
    last = tl.minimum(first + split_pixels, pixels)
    # Of the pixels of this split: their mean, the sum of the squared distances from it.
    own_mean = tl.zeros([BLOCK_C], tl.float32)
    square = tl.zeros([BLOCK_C], tl.float32)
    count = 0.0
    for start in range(first, last, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < last)[:, None] & there[None, :]
        at = x + p[:, None] * channels + c[None, :]
        values = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        n = tl.minimum(last - start, BLOCK_P).to(tl.float32)
        block_mean = tl.sum(values, 0) / n
        centred = tl.where(mask, values - block_mean[None, :], 0.0)
        distance = block_mean - own_mean
        total = count + n
        own_mean += distance * (n / total)
        square += tl.sum(centred * centred, 0) + distance * distance * (count * n / total)
        count = total
    own = image * channels + c
    if parts is None:
        tl.store(mean + own, own_mean, mask=there)
        tl.store(rstd + own, 1 / tl.sqrt(square / pixels + eps), mask=there)
    else:
        means = parts + image * splits * channels
        squares = means + parts_squares
        tl.store(means + split * channels + c, own_mean, mask=there)
        tl.store(squares + split * channels + c, square, mask=there)
        if is_last(counters + tl.program_id(0) // splits, splits):
            whole, spread = _combine(
                means, squares, c, pixels, channels, splits, split_pixels, BLOCK_P, BLOCK_C
            )
            tl.store(mean + own, whole, mask=there)
            tl.store(rstd + own, 1 / tl.sqrt(spread + eps), mask=there)


def launch(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    plan = Plan(x, *x.shape[2:], sums=True)
    mean, rstd = per_channel(x)
    if x.numel() == 0:
        return mean, rstd
    x = x.contiguous(memory_format=plan.layout)
    plan.rows(x)
    splits, split_pixels = plan.splits(plan.pixels)
    parts = (None, None) if splits == 1 else (plan.partial(x, splits), counters(x))
    with torch.cuda.device_of(x):
        _statistics_kernel[(plan.columns * splits,)](
            x, mean, rstd, *parts, eps, plan.pixels, plan.channels, splits, split_pixels,
            plan.images * splits * plan.channels, BLOCK_P=plan.block_p, BLOCK_C=plan.block_c,
        )  # fmt: skip
    return mean, rstd


def variants() -> Iterator[Variant]:
    for layer in LAYERS:
        yield from launches(launch, layer.picture(), 1e-5)
