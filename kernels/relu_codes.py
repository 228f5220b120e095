"""What the kernels of ops/relu_codes.py share: elements, channels and codes of a block.

A block is [BLOCK / 8, 8] elements of a dense picture in channels_last, the whole of it in a row;
eight elements share a word of codes.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from pix2pixhd_fast.ops.relu_codes import BLOCK, GROUP, code_bytes

GROUPS = BLOCK // GROUP
# An integer with room for the codes of a group, by the bits of a code.
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@triton.jit
def elements(block, count, GROUPS: tl.constexpr):
    """Of a block: where it starts (64-bit), the places of its elements in it, which there are."""
    start = block.to(tl.int64) * (GROUPS * 8)
    at = tl.arange(0, GROUPS)[:, None] * 8 + tl.arange(0, 8)[None, :]
    return start, at, at < count - start


@triton.jit
def biased(x, bias, start, at, mask, channels):
    """x + bias of the elements, float32."""
    c = ((start % channels).to(tl.int32) + at) % channels
    z = tl.load(x + start + at, mask=mask, other=0.0).to(tl.float32)
    return z + tl.load(bias + c, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def leads(at, GROUPS: tl.constexpr, WHOLE: tl.constexpr):
    """Places that are looked up, and what is added to come to all elements.

    WHOLE: the channels are a multiple of 8, so that a group lies in one pixel and its first element
    tells of all; Triton sees then that neighbours lie next to each other.
    """
    if WHOLE:
        return tl.arange(0, GROUPS)[:, None] * 8, tl.arange(0, 8)[None, :]
    else:
        return at, at * 0


@triton.jit
def located(start, at, rows, columns, channels, WHOLE: tl.constexpr):
    """Image, row, column and channel of the places in pictures of so many rows and columns."""
    row_size = columns * channels
    from_row = (start % row_size).to(tl.int32) + at
    row = (start // row_size).to(tl.int32) + from_row // row_size
    in_row = from_row % row_size
    c = in_row % channels
    if WHOLE:
        c = tl.multiple_of(c, [8, 8])
    return row // rows, row % rows, in_row // channels, c


@triton.jit
def rectified(z):
    return tl.where(z <= 0, 0.0, z)


@triton.jit
def store_codes(codes, block, code, count, BITS: tl.constexpr, GROUPS: tl.constexpr):
    """code [GROUPS, 8], int32; 0 where there is no element, or none of the `count` with codes."""
    word = tl.sum(code << (tl.arange(0, 8) * BITS)[None, :], 1)
    group = block.to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    tl.store(codes + group, word.to(codes.dtype.element_ty), mask=group * 8 < count)


@triton.jit
def load_codes(codes, block, count, BITS: tl.constexpr, GROUPS: tl.constexpr):
    """[GROUPS, 8], int32"""
    group = block.to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    word = tl.load(codes + group, mask=group * 8 < count, other=0).to(tl.int32)
    return (word[:, None] >> (tl.arange(0, 8) * BITS)[None, :]) & ((1 << BITS) - 1)


@triton.jit
def store_sum(total, factor, before, sums, SUMS: tl.constexpr):
    """sums [SUMS] = before (or 0), this program's with factor * the sum of total [GROUPS, 8]."""
    program = tl.program_id(0)
    found = factor * tl.sum(tl.sum(total, 1), 0)
    if before is not None:
        found += tl.load(before + program)
    tl.store(sums + program, found)
    if program == 0:  # those that no program has
        i = tl.arange(0, SUMS)
        rest = i >= tl.num_programs(0)
        if before is not None:
            tl.store(sums + i, tl.load(before + i, mask=rest), mask=rest)
        else:
            tl.store(sums + i, tl.zeros([SUMS], tl.float32), mask=rest)


def new_codes(x: Tensor, elements: int, bits: int) -> tuple[Tensor, Tensor | None]:
    """Codes of so many elements, uninitialised, and the same as words; None without elements."""
    codes = torch.empty(code_bytes(elements, bits), dtype=torch.uint8, device=x.device)
    return codes, codes.view(WORDS[bits]) if elements else None


def words_of(codes: Tensor, bits: int) -> Tensor:
    return codes.view(WORDS[bits])


def check_picture(x: Tensor) -> None:
    if x.numel() > 0 and not x.is_contiguous(memory_format=torch.channels_last):
        raise RuntimeError("relu codes: a picture must be dense in channels_last")


def blocks_of(x: Tensor) -> int:
    return triton.cdiv(x.numel(), BLOCK)


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
