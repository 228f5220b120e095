"""first_l1 and first_relu in Triton: a convolution of few channels, computed where it is read.

The arithmetic is float32, 9 products for each channel of the picture, on the ordinary units: with
27 of them, as for VGG, the writing of the results takes longer (by reckoning; not yet run).
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pix2pixhd_fast.kernels.relu_codes import (
    GROUPS,
    blocks_of,
    elements,
    leads,
    located,
    new_codes,
    rectified,
    store_codes,
    store_sum,
)
from pix2pixhd_fast.kernels.variants import Variant, launches
from torch import Tensor

from pix2pixhd_fast.ops.relu_codes import GROUP, SUM_PROGRAMS, sum_programs


@triton.jit
def _tap(x, n, c, h, w, k, image, row, column, height, width, there):
    """What the k-th of 9 taps of each channel reads at the places, float32; n, c, h, w: strides."""
    row += k % 9 // 3 - 1
    column += k % 3 - 1
    inside = there & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    at = image.to(tl.int64) * n + row.to(tl.int64) * h + column * w + k // 9 * c
    return tl.load(x + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _first_l1_kernel(
    x, xn, xc, xh, xw,  # [images, inputs, height, width] and its strides
    y, yn, yc, yh, yw,  # the same, or None
    weight,  # [taps, channels], 9 taps for each input
    bias,  # [channels]
    a,  # [images, height, width, channels]
    codes,  # a word for 8 elements, or None
    sums,  # [SUMS], or None
    factor,
    count,
    height,
    width,
    channels,
    taps,
    each,  # blocks of a program
    WHOLE: tl.constexpr,
    GROUPS: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    total = tl.zeros([GROUPS, 8], tl.float32)
    for n in range(each):
        block = program * each + n
        start, at, mask = elements(block, count, GROUPS)
        lead, rest = leads(at, GROUPS, WHOLE)
        image, row, column, c = located(start, lead, height, width, channels, WHOLE)
        there = lead < count - start
        z = tl.load(bias + c + rest, mask=mask, other=0.0).to(tl.float32)
        v = z
        for k in range(taps):
            factors = tl.load(weight + k * channels + c + rest, mask=mask, other=0.0)
            factors = factors.to(tl.float32)
            z += factors * _tap(x, xn, xc, xh, xw, k, image, row, column, height, width, there)
            if y is not None:
                v += factors * _tap(y, yn, yc, yh, yw, k, image, row, column, height, width, there)
        found = rectified(z)
        tl.store(a + start + at, found.to(a.dtype.element_ty), mask=mask)
        if y is not None:
            other = rectified(v)
            total += tl.where(mask, tl.abs(found - other), 0.0)
            if codes is not None:
                sign = tl.where(found > other, 3, tl.where(found < other, 1, 2))
                store_codes(codes, block, tl.where(mask & ~(z <= 0), sign, 0), count, 2, GROUPS)
    if y is not None:
        store_sum(total, factor, None, sums, SUMS)


def first_relu(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    a = _new_result(x, weight, dtype)
    if a.numel() > 0:
        _launch((blocks_of(a), 1), x, None, weight, bias, a, None, None, 0.0)
    return a


def first_l1(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    factor: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    a = _new_result(x, weight, dtype)
    codes, words = new_codes(a, a.numel() if keep else 0, 2)
    sums = torch.empty(SUM_PROGRAMS, dtype=torch.float32, device=x.device)
    _launch(sum_programs(a.numel()), x, y, weight, bias, a, words, sums, factor)
    return a, sums, codes


def _new_result(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    if not weight.is_contiguous() or weight.shape[:3] != (x.shape[1], 3, 3):
        raise RuntimeError("first_l1: the weight must be a dense [C, 3, 3, K]")
    size = (x.shape[0], weight.shape[3], *x.shape[2:])
    return torch.empty(size, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def _launch(grid: tuple[int, int], x, y, weight, bias, a, words, sums, factor) -> None:
    programs, each = grid
    height, width, channels = *x.shape[2:], weight.shape[3]
    strides = x.stride() if y is None else y.stride()
    with torch.cuda.device_of(x):
        _first_l1_kernel[(programs,)](
            x, *x.stride(), y, *strides, weight, bias.contiguous(), a, words, sums, factor,
            a.numel(), height, width, channels, weight[..., 0].numel(), each,
            WHOLE=channels % GROUP == 0, GROUPS=GROUPS, SUMS=SUM_PROGRAMS,
        )  # fmt: skip


def variants() -> Iterator[Variant]:
    """Pictures as they are loaded and as G makes them; results as in VGG19, and of odd channels."""
    for dtype, channels, last in (
        (torch.bfloat16, 64, False),
        (torch.float32, 64, True),
        (torch.float16, 6, False),
    ):
        y = torch.empty(1, 3, 1024, 2048, device="meta")
        x = y.to(memory_format=torch.channels_last) if last else y.half()
        weight = torch.empty(3, 3, 3, channels, device="meta")
        bias = torch.empty(channels, device="meta")
        for keep in (True, False):
            yield from launches(first_l1, x, y, weight, bias, dtype, 0.5, keep)
        yield from launches(first_relu, y, weight, bias, dtype)
