"""Triton kernels with what the compile matrix must find: put beside the real ones by its tests."""

import torch
import triton
import triton.language as tl
from pix2pixhd_fast.kernels.variants import launches


@triton.jit
def sound_kernel(x, y, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < size), mask=at < size)


@triton.jit
def spilling_kernel(x, y, BLOCK: tl.constexpr):
    """Of one warp: 512 values for each thread, all of which are needed to the end."""
    at = tl.arange(0, BLOCK)
    values = tl.load(x + at)
    tl.store(y + at, values / tl.sum(values, 0))


@triton.jit
def product_kernel(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    values = tl.load(x + at)
    tl.store(y + at, tl.dot(values, values))


@triton.jit
def wrong_kernel(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at) + tl.arange(0, 2 * BLOCK))


@triton.jit
def forgotten_kernel(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at))


def launch(x, y):
    sound_kernel[(1,)](x, y, x.numel(), BLOCK=1024)
    spilling_kernel[(1,)](x, y, BLOCK=16384, num_warps=1)
    wrong_kernel[(1,)](x, y, BLOCK=1024)


def launch_product(x, y):
    product_kernel[(1,)](x, y, BLOCK=64)


def variants():
    x = torch.empty(1 << 14, device="meta")
    yield from launches(launch, x, x)
    yield from launches(launch_product, x.to(torch.bfloat16), x)
