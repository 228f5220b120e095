"""channel_statistics in Triton: parts of an image each in one pass, then all parts of an image."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pix2pixhd_fast.kernels.blocks import per_channel, program_of
from pix2pixhd_fast.kernels.layers import LAYERS
from pix2pixhd_fast.kernels.variants import Variant, launches
from torch import Tensor

from pix2pixhd_fast.ops.blocks import Plan


@triton.jit
def _statistics_kernel(
    x,  # [images, pixels, channels]
    means,  # [images, splits, channels]: of the pixels of a split
    squares,  # the same: the sums of the squared distances from them; WHOLE: rstd
    eps,
    pixels,
    channels,
    splits,
    split_pixels,
    WHOLE: tl.constexpr,  # there is one split
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
    if WHOLE:
        square = 1 / tl.sqrt(square / pixels + eps)
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


def launch(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    plan = Plan(x, *x.shape[2:], sums=True)
    mean, rstd = per_channel(x)
    if x.numel() == 0:
        return mean, rstd
    x = x.contiguous(memory_format=plan.layout)
    plan.rows(x)
    splits, split_pixels = plan.splits(plan.pixels)
    shape = (plan.pixels, plan.channels, splits, split_pixels)
    means, squares = (mean, rstd) if splits == 1 else plan.partial(x, splits)
    with torch.cuda.device_of(x):
        _statistics_kernel[(plan.columns * splits,)](
            x, means, squares, eps, *shape, WHOLE=splits == 1, BLOCK_P=plan.block_p,
            BLOCK_C=plan.block_c,
        )  # fmt: skip
        if splits > 1:
            _combine_statistics_kernel[(plan.columns,)](
                means, squares, mean, rstd, eps, *shape, BLOCK_S=plan.block_p, BLOCK_C=plan.block_c
            )
    return mean, rstd


def variants() -> Iterator[Variant]:
    for layer in LAYERS:
        yield from launches(launch, layer.picture(), 1e-5)
