"""Blocks and grids of norm_act_pad's GPU kernels, for their launchers and their description."""

import torch
from torch import Tensor

# 16 values for each thread of 4 warps, but 8 pixels, whose indices take registers: with 16, sm_90
# spills.
BLOCK = 2048
MAX_BLOCK_P = 1024
# A channel block of 64 reads whole lines of 128 bytes even in 16-bit dtypes.
MAX_BLOCK_C = 64
# The programs of a reduction, whatever the device: about four for each processor of the largest.
PROGRAMS = 512


class Plan:
    """How the kernels see x [N, C, H, W], and the shapes of their blocks and grids.

    Memory is [images, pixels, channels]: the channels_last format, or the default one as N * C
    images of one channel.
    """

    def __init__(self, x: Tensor, pad: int) -> None:
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        self.layout = torch.channels_last if last else torch.contiguous_format
        n, c, self.height, self.width = x.shape
        self.images, self.channels = (n, c) if last else (n * c, 1)
        self.pixels = self.height * self.width
        self.padded_pixels = (self.height + 2 * pad) * (self.width + 2 * pad)
        self.block_c = min(MAX_BLOCK_C, 1 << (self.channels - 1).bit_length())
        self.block_p = min(MAX_BLOCK_P, BLOCK // self.block_c)
        self.columns = self.images * _parts(self.channels, self.block_c)

    def refuse_too_large(self) -> None:
        """Indices inside an image are 32-bit, those of images 64-bit."""
        if (self.padded_pixels + MAX_BLOCK_P) * self.channels >= 2**31:
            raise RuntimeError("norm_act_pad: an image must have less than 2**31 values on the GPU")

    def blocks(self, pixels: int) -> int:
        return _parts(pixels, self.block_p)

    def splits(self, pixels: int) -> tuple[int, int]:
        """In how many parts a sum over so many pixels is made, and how many pixels a part has."""
        wanted = max(1, PROGRAMS // self.columns)
        split_pixels = _parts(self.blocks(pixels), wanted) * self.block_p
        return _parts(pixels, split_pixels), split_pixels

    def partial_shape(self, splits: int) -> tuple[int, int, int, int]:
        """Of the two float32 sums of each part: [2, images, splits, channels]."""
        return 2, self.images, splits, self.channels


def _parts(count: int, size: int) -> int:
    return -(-count // size)
