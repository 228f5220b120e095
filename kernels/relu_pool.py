"""relu_pool and its backward in Triton: one pass over windows of 2x2."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pix2pixhd_fast.kernels.relu_codes import (
    GROUPS,
    blocks_of,
    cases,
    check_picture,
    elements,
    leads,
    located,
    new_codes,
    picture,
    rectified,
    store_codes,
)
from pix2pixhd_fast.kernels.variants import Variant, launches
from torch import Tensor

from pix2pixhd_fast.ops.relu_codes import BLOCK, GROUP, new_pooled


@triton.jit
def _relu_pool_kernel(
    x,  # [images, height, width, channels]
    bias,  # [channels]
    y,  # [images, height / 2, width / 2, channels]
    codes,  # a word for 8 results, or None
    count,
    coded,  # the first so many of them have codes
    height,
    width,
    channels,
    WHOLE: tl.constexpr,
    GROUPS: tl.constexpr,
):
    block = tl.program_id(0)
    start, at, mask = elements(block, count, GROUPS)
    lead, rest = leads(at, GROUPS, WHOLE)
    image, row, column, c = located(start, lead, height // 2, width // 2, channels, WHOLE)
    first = (image * height + row * 2).to(tl.int64) * (width * channels)
    first += column * (2 * channels) + c + rest
    shift = tl.load(bias + c + rest, mask=mask, other=0.0).to(tl.float32)
    largest = tl.load(x + first, mask=mask, other=0.0).to(tl.float32) + shift
    choice = tl.full([GROUPS, 8], 1, tl.int32)
    for k in tl.static_range(1, 4):
        place = first + (k // 2 * width + k % 2) * channels
        other = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) + shift
        larger = (other > largest) | (other != other)
        largest = tl.where(larger, other, largest)
        choice = tl.where(larger, 1 << k, choice)
    tl.store(y + start + at, rectified(largest).to(y.dtype.element_ty), mask=mask)
    if codes is not None:
        choice = tl.where((at < coded - start) & ~(largest <= 0), choice, 0)
        store_codes(codes, block, choice, coded, 4, GROUPS)


@triton.jit
def _relu_pool_backward_kernel(
    g,  # [images, height / 2, width / 2, channels]
    codes,  # 4 bits for each of g
    dx,  # [images, height, width, channels]
    count,
    height,
    width,
    channels,
    WHOLE: tl.constexpr,
    GROUPS: tl.constexpr,
):
    # Windows that the last row and the last column of odd sides leave open are windows here.
    block = tl.program_id(0)
    start, at, mask = elements(block, count, GROUPS)
    lead, rest = leads(at, GROUPS, WHOLE)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    image, row, column, c = located(start, lead, rows, columns, channels, WHOLE)
    whole = mask & (row < height // 2) & (column < width // 2)
    source = (image * (height // 2) + row).to(tl.int64) * (width // 2 * channels)
    source += column * channels + c + rest
    values = tl.load(g + source, mask=whole, other=0.0)
    word = tl.load(codes + (source >> 1), mask=whole, other=0).to(tl.int32)
    choice = word >> (source & 1).to(tl.int32) * 4
    first = (image * height + row * 2).to(tl.int64) * (width * channels)
    first += column * (2 * channels) + c + rest
    for k in tl.static_range(4):
        there = (row * 2 + k // 2 < height) & (column * 2 + k % 2 < width)
        place = first + (k // 2 * width + k % 2) * channels
        taken = tl.where((choice >> k & 1) > 0, values, 0.0)
        tl.store(dx + place, taken, mask=mask & there)


def relu_pool(x: Tensor, bias: Tensor, coded: int, room: int) -> tuple[Tensor, Tensor]:
    y = new_pooled(x, room)
    coded *= y[0].numel() if coded else 0
    codes, words = new_codes(y, coded, 4)
    _pool(x, bias, y[: x.shape[0]], words, coded)
    return y, codes


def relu_pool_into(x: Tensor, bias: Tensor, y: Tensor) -> None:
    check_picture(y)
    _pool(x, bias, y, None, 0)


def _pool(x: Tensor, bias: Tensor, y: Tensor, words: Tensor | None, coded: int) -> None:
    check_picture(x)
    c, h, w = x.shape[1:]
    if y.numel() > 0:
        with torch.cuda.device_of(x):
            _relu_pool_kernel[(blocks_of(y),)](
                x, bias.contiguous(), y, words, y.numel(), coded, h, w, c, WHOLE=c % GROUP == 0,
                GROUPS=GROUPS,
            )  # fmt: skip


def relu_pool_backward(g: Tensor, codes: Tensor, height: int, width: int) -> Tensor:
    check_picture(g)
    n, c = g.shape[:2]
    dx = torch.empty(
        (n, c, height, width), dtype=g.dtype, device=g.device, memory_format=torch.channels_last
    )
    if dx.numel() > 0:
        windows = n * c * ((height + 1) // 2) * ((width + 1) // 2)
        with torch.cuda.device_of(g):
            _relu_pool_backward_kernel[(triton.cdiv(windows, BLOCK),)](
                g, codes, dx, windows, height, width, c, WHOLE=c % GROUP == 0, GROUPS=GROUPS
            )
    return dx


def variants() -> Iterator[Variant]:
    for x, bias, first in cases():
        n, c, h, w = x.shape
        for coded in (1, 0) if first else (1,):
            yield from launches(relu_pool, x, bias, coded, n)
        g = picture((n, c, h // 2, w // 2), x.dtype)
        codes, _ = new_codes(g, g.numel(), 4)
        yield from launches(relu_pool_backward, g, codes, h, w)
