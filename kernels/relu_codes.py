"""What the kernels of ops/relu_codes.py share: elements, channels and codes of a block.

A block is [BLOCK / 8, 8] elements of a dense picture in channels_last, the whole of it in a row;
eight elements share a word of codes.
"""

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
def rectified(z):
    return tl.where(z <= 0, 0.0, z)


@triton.jit
def store_codes(codes, block, code, count, BITS: tl.constexpr, GROUPS: tl.constexpr):
    """code [GROUPS, 8], int32; 0 where there is no element."""
    word = tl.sum(code << (tl.arange(0, 8) * BITS)[None, :], 1)
    group = block.to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    tl.store(codes + group, word.to(codes.dtype.element_ty), mask=group * 8 < count)


@triton.jit
def load_codes(codes, block, count, BITS: tl.constexpr, GROUPS: tl.constexpr):
    """[GROUPS, 8], int32"""
    group = block.to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    word = tl.load(codes + group, mask=group * 8 < count, other=0).to(tl.int32)
    return (word[:, None] >> (tl.arange(0, 8) * BITS)[None, :]) & ((1 << BITS) - 1)


def new_codes(x: Tensor, bits: int, keep: bool) -> tuple[Tensor, Tensor | None]:
    """The codes of x, uninitialised, and the same as words; without `keep` empty ones, None."""
    size = code_bytes(x.numel(), bits) if keep else 0
    codes = torch.empty(size, dtype=torch.uint8, device=x.device)
    return codes, codes.view(WORDS[bits]) if keep else None


def words_of(codes: Tensor, bits: int) -> Tensor:
    return codes.view(WORDS[bits])


def check_picture(x: Tensor) -> None:
    if x.numel() > 0 and not x.is_contiguous(memory_format=torch.channels_last):
        raise RuntimeError("relu codes: a picture must be dense in channels_last")


def blocks_of(x: Tensor) -> int:
    return triton.cdiv(x.numel(), BLOCK)
