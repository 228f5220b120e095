"""norm_act_pad_backward in Triton: two sums for each channel, then one pass over the input.

Memory and blocks are those of norm_act_pad.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pix2pixhd_fast.kernels.norm_act_pad import (
    activate,
    layers,
    places_in_image,
    program_of,
)
from pix2pixhd_fast.kernels.variants import Variant, launches
from torch import Tensor

from pix2pixhd_fast.ops.norm_act_pad_plan import Plan


@triton.jit
def _activate_backward(g, xhat, slope, ACT: tl.constexpr):
    if ACT == "relu":
        return tl.where(xhat <= 0, 0.0, g)
    elif ACT == "leaky_relu":
        return tl.where(xhat <= 0, g * slope, g)
    elif ACT == "tanh":
        y = activate(xhat, slope, ACT)
        return g * (1 - y * y)
    else:
        return g


@triton.jit
def _copy(index, k, size, pad, PADDING: tl.constexpr):
    """Where in the padded row the k-th copy of `index` is, and whether there is one; 0: itself."""
    if PADDING == "reflect":
        before = (k == 1) & (index >= 1) & (index <= pad)
        after = (k == 2) & (index <= size - 2) & (index >= size - 1 - pad)
        place = tl.where(k == 1, pad - index, pad + 2 * (size - 1) - index)
    else:
        before = (k >= 1) & (k <= pad) & (index == 0)
        after = (k > pad) & (index == size - 1)
        place = tl.where(k <= pad, k - 1, size + k - 1)
    return tl.where(k == 0, index + pad, place), (k == 0) | before | after


@triton.jit
def _load_gradient(dy, p, c, inside, height, width, channels, pad, PADDING: tl.constexpr):
    """The gradient of the padding at the pixels p: the sum over all copies of each. float32."""
    row = p // width
    column = p % width
    padded_width = width + 2 * pad
    place = (row + pad) * padded_width + column + pad
    mask = inside[:, None] & (c < channels)[None, :]
    g = tl.load(dy + place[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
    if PADDING == "reflect" or PADDING == "replicate":
        copies = 3 if PADDING == "reflect" else 2 * pad + 1
        near = (row <= pad) | (row >= height - 1 - pad)
        near = inside & (near | (column <= pad) | (column >= width - 1 - pad))
        # Most blocks are far from the border and have one copy of each pixel.
        if (tl.max(near.to(tl.int32), 0) > 0) & (pad > 0):
            for k in range(1, copies * copies):
                r, there = _copy(row, k // copies, height, pad, PADDING)
                q, there_too = _copy(column, k % copies, width, pad, PADDING)
                there = there & there_too
                place = r * padded_width + q
                more = dy + place[:, None] * channels + c[None, :]
                g += tl.load(more, mask=mask & there[:, None], other=0.0).to(tl.float32)
    return g


@triton.jit
def _reduce_backward_kernel(
    dy,  # [images, (height + 2 pad) * (width + 2 pad), channels]
    x,  # [images, height * width, channels]
    mean,  # [images, channels]
    rstd,
    sums,  # [images, splits, channels]: of g = dy through the padding and the activation
    dots,  # the same: of g * xhat
    slope,
    height,
    width,
    channels,
    pad,
    splits,
    split_pixels,
    ACT: tl.constexpr,
    PADDING: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # A sum over the copies of a pixel is a sum over the padded image: no border is special.
    image, c, split = program_of(splits, channels, BLOCK_C)
    padded_width = width + 2 * pad
    padded_pixels = (height + 2 * pad) * padded_width
    x += image * height * width * channels
    dy += image * padded_pixels * channels
    m = tl.load(mean + image * channels + c, mask=c < channels, other=0.0)
    r = tl.load(rstd + image * channels + c, mask=c < channels, other=0.0)
    first = split * split_pixels
    last = tl.minimum(first + split_pixels, padded_pixels)
    total = tl.zeros([BLOCK_C], tl.float32)
    dot = tl.zeros([BLOCK_C], tl.float32)
    for start in range(first, last, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        place, real = places_in_image(p, height, width, pad, PADDING)
        mask = (real & (p < last))[:, None] & (c < channels)[None, :]
        at = place[:, None] * channels + c[None, :]
        xhat = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - m[None, :]) * r[None, :]
        at = p[:, None] * channels + c[None, :]
        # Zero outside, and so is all that is summed.
        g = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
        g = _activate_backward(g, xhat, slope, ACT)
        total += tl.sum(g, 0)
        dot += tl.sum(g * xhat, 0)
    at = (image * splits + split) * channels + c
    tl.store(sums + at, total, mask=c < channels)
    tl.store(dots + at, dot, mask=c < channels)


@triton.jit
def _combine_backward_kernel(
    sums,  # [images, splits, channels]
    dots,
    mean_g,  # [images, channels]
    mean_dot,
    pixels,
    channels,
    splits,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, c, _ = program_of(1, channels, BLOCK_C)
    sums += image * splits * channels
    dots += image * splits * channels
    total = tl.zeros([BLOCK_C], tl.float32)
    dot = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, splits, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        mask = (s < splits)[:, None] & (c < channels)[None, :]
        at = s[:, None] * channels + c[None, :]
        total += tl.sum(tl.load(sums + at, mask=mask, other=0.0), 0)
        dot += tl.sum(tl.load(dots + at, mask=mask, other=0.0), 0)
    tl.store(mean_g + image * channels + c, total / pixels, mask=c < channels)
    tl.store(mean_dot + image * channels + c, dot / pixels, mask=c < channels)


@triton.jit
def _apply_backward_kernel(
    dy,  # [images, (height + 2 pad) * (width + 2 pad), channels]
    x,  # [images, height * width, channels]
    mean,  # [images, channels]
    rstd,
    mean_g,
    mean_dot,
    dx,  # [images, height * width, channels]
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
    pixels = height * width
    x += image * pixels * channels
    dx += image * pixels * channels
    dy += image * (height + 2 * pad) * (width + 2 * pad) * channels
    parameters = image * channels + c
    m = tl.load(mean + parameters, mask=c < channels, other=0.0)[None, :]
    r = tl.load(rstd + parameters, mask=c < channels, other=0.0)[None, :]
    mg = tl.load(mean_g + parameters, mask=c < channels, other=0.0)[None, :]
    md = tl.load(mean_dot + parameters, mask=c < channels, other=0.0)[None, :]
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = p < pixels
    g = _load_gradient(dy, p, c, inside, height, width, channels, pad, PADDING)
    mask = inside[:, None] & (c < channels)[None, :]
    at = p[:, None] * channels + c[None, :]
    xhat = (tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - m) * r
    g = _activate_backward(g, xhat, slope, ACT)
    tl.store(dx + at, (r * (g - mg - xhat * md)).to(dx.dtype.element_ty), mask=mask)


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    act: str,
    slope: float,
    padding: str,
    pad: int,
) -> Tensor:
    plan = Plan(x, pad)
    plan.refuse_too_large()
    x, dy = (t.contiguous(memory_format=plan.layout) for t in (x, dy))
    mean, rstd = mean.contiguous(), rstd.contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=plan.layout)
    if x.numel() == 0:
        return dx
    shape = (plan.height, plan.width, plan.channels, pad)
    block = {"ACT": act, "PADDING": padding, "BLOCK_P": plan.block_p, "BLOCK_C": plan.block_c}
    splits, split_pixels = plan.splits(plan.padded_pixels)
    sums, dots = torch.empty(plan.partial_shape(splits), dtype=torch.float32, device=x.device)
    mean_g, mean_dot = torch.empty_like(mean), torch.empty_like(mean)
    with torch.cuda.device_of(x):
        _reduce_backward_kernel[(plan.columns * splits,)](
            dy, x, mean, rstd, sums, dots, slope, *shape, splits, split_pixels, **block
        )
        _combine_backward_kernel[(plan.columns,)](
            sums, dots, mean_g, mean_dot, plan.pixels, plan.channels, splits,
            BLOCK_S=plan.block_p, BLOCK_C=plan.block_c,
        )  # fmt: skip
        blocks = plan.blocks(plan.pixels)
        _apply_backward_kernel[(plan.columns * blocks,)](
            dy, x, mean, rstd, mean_g, mean_dot, dx, slope, *shape, blocks, **block
        )
    return dx


def variants() -> Iterator[Variant]:
    for x, act, padding, pad in layers():
        n, c, h, w = x.shape
        dy = x.new_empty(n, c, h + 2 * pad, w + 2 * pad)
        mean = x.new_empty(n, c, dtype=torch.float32)
        yield from launches(backward, dy, x, mean, mean, act, 0.2, padding, pad)
