"""relu_bits_ and its backward in Triton: one pass in place."""

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
    words_of,
)
from pix2pixhd_fast.kernels.variants import Variant, launches
from torch import Tensor


@triton.jit
def _relu_bits_kernel(
    x,  # [pixels, channels]
    bias,  # [channels]
    codes,  # a word for 8 elements, or None
    count,
    coded,  # the first so many of them have codes
    channels,
    GROUPS: tl.constexpr,
):
    block = tl.program_id(0)
    start, at, mask = elements(block, count, GROUPS)
    z = biased(x, bias, start, at, mask, channels)
    tl.store(x + start + at, rectified(z).to(x.dtype.element_ty), mask=mask)
    if codes is not None:
        passes = tl.where((at < coded - start) & ~(z <= 0), 1, 0)
        store_codes(codes, block, passes, coded, 1, GROUPS)


@triton.jit
def _relu_bits_backward_kernel(
    g,  # [pixels, channels]
    codes,
    count,
    GROUPS: tl.constexpr,
):
    block = tl.program_id(0)
    start, at, mask = elements(block, count, GROUPS)
    passes = load_codes(codes, block, count, 1, GROUPS) > 0
    values = tl.load(g + start + at, mask=mask, other=0.0)
    tl.store(g + start + at, tl.where(passes, values, 0.0), mask=mask)


def relu_bits(x: Tensor, bias: Tensor, coded: int) -> Tensor:
    check_picture(x)
    coded *= x[0].numel() if coded else 0
    codes, words = new_codes(x, coded, 1)
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            _relu_bits_kernel[(blocks_of(x),)](
                x, bias.contiguous(), words, x.numel(), coded, x.shape[1], GROUPS=GROUPS
            )
    return codes


def relu_bits_backward(g: Tensor, bits: Tensor) -> None:
    check_picture(g)
    if g.numel() > 0:
        with torch.cuda.device_of(g):
            _relu_bits_backward_kernel[(blocks_of(g),)](
                g, words_of(bits, 1), g.numel(), GROUPS=GROUPS
            )


def variants() -> Iterator[Variant]:
    for x, bias, first in cases():
        for coded in (1, 0) if first else (1,):
            yield from launches(relu_bits, x, bias, coded)
        codes, _ = new_codes(x, x.numel(), 1)
        yield from launches(relu_bits_backward, x, codes)
