"""relu_l1_ and its backward in Triton: one pass over both pictures, the sums of its programs."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pix2pixhd_fast.kernels.relu_codes import (
    GROUPS,
    biased,
    blocks_of,
    cases,
    check_picture,
    elements,
    load_codes,
    new_codes,
    rectified,
    store_codes,
    store_sum,
    words_of,
)
from pix2pixhd_fast.kernels.variants import Variant, launches
from torch import Tensor

from pix2pixhd_fast.ops.relu_codes import SUM_PROGRAMS, sum_programs


@triton.jit
def _relu_l1_kernel(
    x,  # [pixels, channels]
    y,
    bias,  # [channels]
    codes,  # a word for 8 elements, or None
    before,  # [SUMS], or None
    sums,  # [SUMS]
    weight,
    count,
    channels,
    each,  # blocks of a program
    WRITE_X: tl.constexpr,
    WRITE_Y: tl.constexpr,
    GROUPS: tl.constexpr,
    SUMS: tl.constexpr,
):
    program = tl.program_id(0)
    total = tl.zeros([GROUPS, 8], tl.float32)
    for n in range(each):
        block = program * each + n
        start, at, mask = elements(block, count, GROUPS)
        z = biased(x, bias, start, at, mask, channels)
        a = rectified(z)
        b = rectified(biased(y, bias, start, at, mask, channels))
        total += tl.where(mask, tl.abs(a - b), 0.0)
        if WRITE_X:
            tl.store(x + start + at, a.to(x.dtype.element_ty), mask=mask)
        if WRITE_Y:
            tl.store(y + start + at, b.to(y.dtype.element_ty), mask=mask)
        if codes is not None:
            sign = tl.where(a > b, 3, tl.where(a < b, 1, 2))
            sign = tl.where(mask & ~(z <= 0), sign, 0)
            store_codes(codes, block, sign, count, 2, GROUPS)
    store_sum(total, weight, before, sums, SUMS)


@triton.jit
def _relu_l1_backward_kernel(
    g,  # [pixels, channels]
    codes,
    dloss,  # one number
    weight,
    count,
    ADD: tl.constexpr,
    GROUPS: tl.constexpr,
):
    block = tl.program_id(0)
    start, at, mask = elements(block, count, GROUPS)
    code = load_codes(codes, block, count, 2, GROUPS)
    values = (code - 2).to(tl.float32) * (tl.load(dloss).to(tl.float32) * weight)
    if ADD:
        values += tl.load(g + start + at, mask=mask, other=0.0).to(tl.float32)
    values = tl.where(code > 0, values, 0.0)
    tl.store(g + start + at, values.to(g.dtype.element_ty), mask=mask)


def relu_l1(
    x: Tensor,
    y: Tensor,
    bias: Tensor,
    before: Tensor | None,
    weight: float,
    write_x: bool,
    write_y: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    check_picture(x)
    check_picture(y)
    codes, words = new_codes(x, x.numel() if keep else 0, 2)
    sums = torch.empty(SUM_PROGRAMS, dtype=torch.float32, device=x.device)
    programs, each = sum_programs(x.numel())
    with torch.cuda.device_of(x):
        _relu_l1_kernel[(programs,)](
            x, y, bias.contiguous(), words, before, sums, weight, x.numel(), x.shape[1], each,
            WRITE_X=write_x, WRITE_Y=write_y, GROUPS=GROUPS, SUMS=SUM_PROGRAMS,
        )  # fmt: skip
    return sums, codes


def relu_l1_backward(g: Tensor, codes: Tensor, dloss: Tensor, weight: float, add: bool) -> None:
    check_picture(g)
    if g.numel() > 0:
        with torch.cuda.device_of(g):
            _relu_l1_backward_kernel[(blocks_of(g),)](
                g, words_of(codes, 2), dloss, weight, g.numel(), ADD=add, GROUPS=GROUPS
            )


def variants() -> Iterator[Variant]:
    number, sums = torch.empty((), device="meta"), torch.empty(SUM_PROGRAMS, device="meta")
    for x, bias, first in cases():
        options = [(sums, 0.5, True, True, True)]
        if first:
            options += [(None, 0.5, True, False, True), (sums, 0.5, False, False, True)]
            options += [(sums, 0.5, True, True, False)]
        for option in options:
            yield from launches(relu_l1, x, x, bias, *option)
        codes, _ = new_codes(x, x.numel(), 2)
        for add in (True, False) if first else (True,):
            yield from launches(relu_l1_backward, x, codes, number, 0.5, add)
