"""How the kernels of the memory passes see a tensor; their blocks, grids and launches.

Memory is [images, rows, columns, channels]: the channels_last format, or the default one as N * C
images of one channel. A program works on blocks of [BLOCK_P pixels, BLOCK_C channels] of one image.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pix2pixhd_fast._launches import Launch, bytes_of, copies_of, scratch_of

# 16 values for each thread of 4 warps, but 8 pixels, whose indices take registers: with 16, sm_90
# spills.
BLOCK = 2048
MAX_BLOCK_P = 1024
# A channel block of 64 reads whole lines of 128 bytes even in 16-bit dtypes.
MAX_BLOCK_C = 64
# The programs of a reduction, whatever the device: about four for each processor of the largest.
PROGRAMS = 512
# An image of so few pixels is summed by one program for each channel block: a second launch would
# cost more than it saves. Its channels then make more blocks, of a sector of 32 bytes.
FEW_PIXELS = 4096
NARROW_BLOCK_C = 16


def layout_of(x: Tensor) -> torch.memory_format:
    """The format of results: channels_last where the channels of x lie next to each other.

    That is so in an inner view of a channels_last tensor as well. Not where x is contiguous, as
    [N, C, 1, 1] can be, nor where it has but one channel.
    """
    last = not x.is_contiguous() and x.shape[1] > 1 and x.stride(1) == 1
    return torch.channels_last if last else torch.contiguous_format


class Rows(NamedTuple):
    """A tensor whose rows are dense, and how far apart its images and its rows are, in values."""

    tensor: Tensor
    image: int
    row: int


class Plan:
    """How the kernels see pictures like x, of [n, c, height, width]; their blocks and grids.

    `sums`: the grid is for sums over the pixels.
    """

    def __init__(self, x: Tensor, height: int, width: int, sums: bool = False) -> None:
        self.layout = layout_of(x)
        self.height, self.width, self.pixels = height, width, height * width
        n, c = x.shape[:2]
        last = self.layout == torch.channels_last
        self.images, self.channels = (n, c) if last else (n * c, 1)
        # A parameter [C] is that of the image modulo `groups`.
        self.groups = 1 if last else c
        self.block_c = min(MAX_BLOCK_C, 1 << (self.channels - 1).bit_length())
        if sums and self.pixels <= FEW_PIXELS and self._columns() < PROGRAMS:
            self.block_c = min(NARROW_BLOCK_C, self.block_c)
        self.block_p = min(MAX_BLOCK_P, BLOCK // self.block_c)
        self.columns = self._columns()

    def _columns(self) -> int:
        return self.images * _parts(self.channels, self.block_c)

    def has_dense_rows(self, t: Tensor) -> bool:
        """Whether the kernels read t as it lies, as an inner view; otherwise a copy."""
        n, c, _, w = t.shape
        if self.layout == torch.channels_last:
            return t.stride(1) == 1 and (w == 1 or t.stride(3) == c)
        dense = w == 1 or t.stride(3) == 1
        return dense and (n == 1 or c == 1 or t.stride(0) == c * t.stride(1))

    def rows(self, t: Tensor) -> Rows:
        """t as it lies where its rows are dense; otherwise a dense copy."""
        _, c, h, w = t.shape
        t = t if self.has_dense_rows(t) else t.contiguous(memory_format=self.layout)
        planes = self.layout == torch.contiguous_format and c > 1
        # Indices inside an image are 32-bit, those of images 64-bit.
        if h * max(t.stride(2), w * self.channels) + MAX_BLOCK_P * self.channels >= 2**31:
            raise RuntimeError("norm_act_pad: an image must have less than 2**31 values on the GPU")
        return Rows(t, t.stride(int(planes)), t.stride(2))

    def optional_rows(self, t: Tensor | None) -> Rows | tuple[None, int, int]:
        return (None, 0, 0) if t is None else self.rows(t)

    def new(self, x: Tensor, pad: int = 0) -> Tensor:
        """An uninitialised result, with `pad` more pixels on each side."""
        shape = (*x.shape[:2], self.height + 2 * pad, self.width + 2 * pad)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=self.layout)

    def blocks(self, pixels: int) -> int:
        return _parts(pixels, self.block_p)

    def splits(self, pixels: int) -> tuple[int, int]:
        """In how many parts a sum over so many pixels is made, and how many pixels a part has."""
        if self.pixels <= FEW_PIXELS:
            return 1, pixels
        wanted = max(1, PROGRAMS // self.columns)
        split_pixels = _parts(self.blocks(pixels), wanted) * self.block_p
        return _parts(pixels, split_pixels), split_pixels

    def partial_shape(self, splits: int) -> tuple[int, int, int, int]:
        """Of the two float32 sums of each part: [2, images, splits, channels]."""
        return 2, self.images, splits, self.channels

    def partial(self, x: Tensor, splits: int) -> Tensor:
        """The sums of each part, uninitialised."""
        return torch.empty(self.partial_shape(splits), dtype=torch.float32, device=x.device)

    def copies(
        self,
        whole: Iterable[Tensor] = (),
        pictures: Iterable[Tensor | None] = (),
        parameters: Iterable[Tensor | None] = (),
    ) -> list[Launch]:
        """The copies of what a launcher needs dense altogether, in rows, and in the default format.

        They are made in this order.
        """
        copied = [t for t in whole if not t.is_contiguous(memory_format=self.layout)]
        copied += [t for t in pictures if t is not None and not self.has_dense_rows(t)]
        copied += [t for t in parameters if t is not None and not t.is_contiguous()]
        return copies_of(copied)

    def sum_launches(
        self, name: str, copies: list[Launch], pixels: int, read: int, result: tuple
    ) -> list[Launch]:
        """The launches of a sum over so many pixels: the copies, and the parts with their sum."""
        splits, _ = self.splits(pixels)
        parts = 0 if splits == 1 else math.prod(self.partial_shape(splits)) * torch.float32.itemsize
        written, scratch = parts + bytes_of(*result), scratch_of(copies) + parts
        return [*copies, Launch(name, read, written, scratch=scratch)]


def _parts(count: int, size: int) -> int:
    return -(-count // size)
