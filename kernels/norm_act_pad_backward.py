"""The backward of norm_act_pad_apply in Triton: sums for each channel, one pass over the input, and
the gradient of a padding.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pix2pixhd_fast.kernels.blocks import counters, dense, is_last, per_channel, program_of
from pix2pixhd_fast.kernels.layers import LAYERS
from pix2pixhd_fast.kernels.norm_act_pad import activate, parameter, sources
from pix2pixhd_fast.kernels.variants import Variant, launches
from torch import Tensor

from pix2pixhd_fast.ops.blocks import Plan
from pix2pixhd_fast.ops.norm_act_pad_kernels import inner


@triton.jit
def activate_backward(g, z, slope, ACT: tl.constexpr):
    if ACT == "relu":
        return tl.where(z <= 0, 0.0, g)
    elif ACT == "leaky_relu":
        return tl.where(z <= 0, g * slope, g)
    elif ACT == "tanh":
        y = activate(z, slope, ACT)
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
def _load_gradient(dy, row, column, c, inside, height, width, channels, pad, PADDING: tl.constexpr):
    """The gradient of the padding at pixels: the sum over all copies of each. float32."""
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
def _normalised(x, minus, x_at, minus_at, m, r, mask):
    """x - minus where minus is given, otherwise (x - m) * r."""
    values = tl.load(x + x_at, mask=mask, other=0.0).to(tl.float32)
    if minus is not None:
        return values - tl.load(minus + minus_at, mask=mask, other=0.0).to(tl.float32)
    else:
        return (values - m) * r


@triton.jit
def _sum_parts(parts, at, channels, splits, mask, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):
    """The sums of `splits` rows of `parts`, which other programs have stored, in their order."""
    total = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, splits, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        places = parts + s[:, None] * channels + at[None, :]
        there = (s < splits)[:, None] & mask[None, :]
        total += tl.sum(tl.load(places, mask=there, other=0.0, cache_modifier=".cg"), 0)
    return total


@triton.jit
def _store_means(
    total, dot, mean_g, mean_dot, parts, parts_dot, counters, image, split, c, channels, splits,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Store what a split found, or as the last program of an image the sums over its splits."""
    own = image * channels + c
    there = c < channels
    if parts is None:
        tl.store(mean_g + own, total, mask=there)
        tl.store(mean_dot + own, dot, mask=there)
    else:
        parts += image * splits * channels
        tl.store(parts + split * channels + c, total, mask=there)
        tl.store(parts + parts_dot + split * channels + c, dot, mask=there)
        if is_last(counters + tl.program_id(0) // splits, splits):
            total = _sum_parts(parts, c, channels, splits, there, BLOCK_S, BLOCK_C)
            dot = _sum_parts(parts + parts_dot, c, channels, splits, there, BLOCK_S, BLOCK_C)
            tl.store(mean_g + own, total, mask=there)
            tl.store(mean_dot + own, dot, mask=there)


@triton.jit
def _reduce_kernel(
    dy,  # [images, (height + 2 pad) * (width + 2 pad), channels]
    x,  # [images, height, width, channels]
    x_image, x_row,
    minus,  # like x, or None
    minus_image, minus_row,
    mean, rstd,  # [images, channels] or None
    gamma, beta,  # [groups, channels] or None
    mean_g,  # [images, channels]: of g = dy through the padding and the activation
    mean_dot,  # the same: of g * xhat
    parts,  # [2, images, splits, channels]: the sums of each split; None where there is one
    counters,  # [images * channel blocks], as `is_last` has them
    slope, height, width, channels, groups, pad, splits, split_pixels,
    parts_dot,  # where in `parts` those of mean_dot begin
    ACT: tl.constexpr, PADDING: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # A sum over the copies of a pixel is a sum over the padded image: no border is special.
    image, c, split = program_of(splits, channels, BLOCK_C)
    padded_pixels = (height + 2 * pad) * (width + 2 * pad)
    own = image * channels + c
    there = c < channels
    m = parameter(mean, own, there, 0.0)
    r = parameter(rstd, own, there, 1.0)
    scale = parameter(gamma, image % groups * channels + c, there, 1.0)
    shift = parameter(beta, image % groups * channels + c, there, 0.0)
    total, dot = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    x += image * x_image
    dy += image * padded_pixels * channels
    last = tl.minimum(split * split_pixels + split_pixels, padded_pixels)
    for start in range(split * split_pixels, last, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        row, column, real = sources(p, height, width, pad, PADDING)
        mask = (real & (p < last))[:, None] & there[None, :]
        x_at = (row * x_row + column * channels)[:, None] + c[None, :]
        less_at = image * minus_image + (row * minus_row + column * channels)[:, None] + c[None, :]
        xhat = _normalised(x, minus, x_at, less_at, m, r, mask)
        # Zero outside, and so is all that is summed.
        at = p[:, None] * channels + c[None, :]
        g = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
        g = activate_backward(g, xhat * scale + shift, slope, ACT)
        total += tl.sum(g, 0)
        dot += tl.sum(g * xhat, 0)
    _store_means(
        total / (height * width), dot / (height * width), mean_g, mean_dot, parts, parts_dot,
        counters, image, split, c, channels, splits, BLOCK_P, BLOCK_C,
    )  # fmt: skip


@triton.jit
def _backward_kernel(
    dy,  # [images, (height + 2 pad) * (width + 2 pad), channels]
    x,  # [images, height, width, channels]
    x_image,
    x_row,
    minus,  # like x, or None
    minus_image,
    minus_row,
    mean,  # [images, channels] or None
    rstd,
    gamma,  # [groups, channels] or None
    beta,
    mean_g,  # [images, channels] or None
    mean_dot,
    dx,  # [images, height * width, channels]
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
    dy += image * (height + 2 * pad) * (width + 2 * pad) * channels
    own = image * channels + c
    m = parameter(mean, own, c < channels, 0.0)
    r = parameter(rstd, own, c < channels, 1.0)
    scale = parameter(gamma, image % groups * channels + c, c < channels, 1.0)
    shift = parameter(beta, image % groups * channels + c, c < channels, 0.0)
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column, inside = p // width, p % width, p < height * width
    g = _load_gradient(dy, row, column, c, inside, height, width, channels, pad, PADDING)
    mask = inside[:, None] & (c < channels)[None, :]
    x_at = (row * x_row + column * channels)[:, None] + c[None, :]
    less_at = image * minus_image + (row * minus_row + column * channels)[:, None] + c[None, :]
    xhat = _normalised(x + image * x_image, minus, x_at, less_at, m, r, mask)
    g = activate_backward(g, xhat * scale + shift, slope, ACT)
    g = g - parameter(mean_g, own, c < channels, 0.0)
    g = scale * r * (g - xhat * parameter(mean_dot, own, c < channels, 0.0))
    at = image * height * width * channels + p[:, None] * channels + c[None, :]
    tl.store(dx + at, g.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def _fold_kernel(
    dy,  # [images, (height + 2 pad) * (width + 2 pad), channels]
    dx,  # [images, height, width, channels]
    dx_image,
    dx_row,
    height,
    width,
    channels,
    pad,
    blocks,
    ADD: tl.constexpr,  # to what is in dx
    PADDING: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, c, block = program_of(blocks, channels, BLOCK_C)
    dy += image * (height + 2 * pad) * (width + 2 * pad) * channels
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column, inside = p // width, p % width, p < height * width
    g = _load_gradient(dy, row, column, c, inside, height, width, channels, pad, PADDING)
    mask = inside[:, None] & (c < channels)[None, :]
    at = dx + image * dx_image + (row * dx_row + column * channels)[:, None] + c[None, :]
    if ADD:
        g += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, g.to(dx.dtype.element_ty), mask=mask)


def reduce(
    dy: Tensor,
    x: Tensor,
    minus: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    act: str,
    slope: float,
    padding: str,
    pad: int,
) -> tuple[Tensor, Tensor]:
    plan = Plan(x, *x.shape[2:], sums=True)
    mean_g, mean_dot = per_channel(x)
    if x.numel() == 0:
        return mean_g, mean_dot
    dy = dy.contiguous(memory_format=plan.layout)
    plan.rows(dy)
    splits, split_pixels = plan.splits(dy.shape[2] * dy.shape[3])
    parts = (None, None) if splits == 1 else (plan.partial(x, splits), counters(x))
    with torch.cuda.device_of(x):
        _reduce_kernel[(plan.columns * splits,)](
            dy, *plan.rows(x), *plan.optional_rows(minus), *dense(mean, rstd, gamma, beta), mean_g,
            mean_dot, *parts, slope, plan.height, plan.width, plan.channels, plan.groups, pad,
            splits, split_pixels, plan.images * splits * plan.channels, ACT=act, PADDING=padding,
            BLOCK_P=plan.block_p, BLOCK_C=plan.block_c,
        )  # fmt: skip
    return mean_g, mean_dot


def backward(
    dy: Tensor,
    x: Tensor,
    minus: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean_g: Tensor | None,
    mean_dot: Tensor | None,
    act: str,
    slope: float,
    padding: str,
    pad: int,
) -> Tensor:
    plan = Plan(x, *x.shape[2:])
    dx = plan.new(x)
    if x.numel() == 0:
        return dx
    dy = dy.contiguous(memory_format=plan.layout)
    plan.rows(dy)
    blocks = plan.blocks(plan.pixels)
    with torch.cuda.device_of(x):
        _backward_kernel[(plan.columns * blocks,)](
            dy, *plan.rows(x), *plan.optional_rows(minus),
            *dense(mean, rstd, gamma, beta, mean_g, mean_dot), dx, slope, plan.height, plan.width,
            plan.channels, plan.groups, pad, blocks, ACT=act, PADDING=padding,
            BLOCK_P=plan.block_p, BLOCK_C=plan.block_c,
        )  # fmt: skip
    return dx


def _fold_into(plan: Plan, dx: Tensor, dy: Tensor, padding: str, pad: int, add: bool) -> None:
    dy = dy.contiguous(memory_format=plan.layout)
    plan.rows(dy)
    rows = plan.rows(dx)
    blocks = plan.blocks(plan.pixels)
    with torch.cuda.device_of(dy):
        _fold_kernel[(plan.columns * blocks,)](
            dy, *rows, plan.height, plan.width, plan.channels, pad, blocks, ADD=add,
            PADDING=padding, BLOCK_P=plan.block_p, BLOCK_C=plan.block_c,
        )  # fmt: skip
    if rows.tensor is not dx:
        dx.copy_(rows.tensor)


def fold(dy: Tensor, padding: str, pad: int) -> Tensor:
    plan = Plan(dy, dy.shape[2] - 2 * pad, dy.shape[3] - 2 * pad)
    dx = plan.new(dy)
    if dx.numel() > 0:
        _fold_into(plan, dx, dy, padding, pad, add=False)
    return dx


def fold_add(dx: Tensor, dy: Tensor, border: int, padding: str, pad: int) -> None:
    into = inner(dx, border)
    if into.numel() > 0:
        _fold_into(Plan(dx, *into.shape[2:]), into, dy, padding, pad, add=True)


def variants() -> Iterator[Variant]:
    for layer in LAYERS:
        x = layer.inner_picture() if layer.added else layer.picture()
        dy, minus = layer.picture(layer.pad), x if layer.added else None
        tensors = (dy, x, minus, *layer.prologue(layer.added))
        sums = (layer.per_channel(),) * 2 if layer.norm != "none" else (None, None)
        yield from launches(reduce, *tensors, *layer.options)
        yield from launches(backward, *tensors, *sums, *layer.options)
        if layer.added:
            rest = (dy, int(layer.last), layer.padding, layer.pad)
            yield from launches(fold_add, layer.picture(int(layer.last)), *rest)
        elif layer.pad:
            yield from launches(fold, dy, layer.padding, layer.pad)
