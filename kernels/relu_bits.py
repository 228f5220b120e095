"""relu_bits_ and its backward in Triton: one pass in place."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pix2pixhd_fast.kernels.relu_codes import (
    GROUPS,
    biased,
    blocks_of,
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
    channels,
    GROUPS: tl.constexpr,
):
    block = tl.program_id(0)
    start, at, mask = elements(block, count, GROUPS)
    z = biased(x, bias, start, at, mask, channels)
    tl.store(x + start + at, rectified(z).to(x.dtype.element_ty), mask=mask)
    if codes is not None:
        passes = tl.where(mask & ~(z <= 0), 1, 0)
        store_codes(codes, block, passes, count, 1, GROUPS)


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


def relu_bits(x: Tensor, bias: Tensor, keep: bool) -> Tensor:
    check_picture(x)
    codes, words = new_codes(x, 1, keep)
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            _relu_bits_kernel[(blocks_of(x),)](
                x, bias.contiguous(), words, x.numel(), x.shape[1], GROUPS=GROUPS
            )
    return codes


def relu_bits_backward(g: Tensor, bits: Tensor) -> None:
    check_picture(g)
    if g.numel() > 0:
        with torch.cuda.device_of(g):
            _relu_bits_backward_kernel[(blocks_of(g),)](
                g, words_of(bits, 1), g.numel(), GROUPS=GROUPS
            )


def picture(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """Without memory."""
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)


# Of VGG19 at 2048x1024, and channels and sides that nothing divides.
PICTURES = (
    ((1, 64, 1024, 2048), torch.bfloat16),
    ((1, 512, 64, 128), torch.float32),
    ((2, 3, 33, 65), torch.float16),
)


def cases() -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Pictures and biases that variants are made of, and whether all options are tried on them."""
    for shape, dtype in PICTURES:
        first = dtype == torch.bfloat16
        yield picture(shape, dtype), torch.empty(shape[1], device="meta"), first


def variants() -> Iterator[Variant]:
    for x, bias, first in cases():
        for keep in (True, False) if first else (True,):
            yield from launches(relu_bits, x, bias, keep)
        codes, _ = new_codes(x, 1, True)
        yield from launches(relu_bits_backward, x, codes)
