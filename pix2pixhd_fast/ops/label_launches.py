"""What label_conv2d and its backward launch on a GPU: csrc/label_conv2d*.cuh, for the profiler.

How much is gathered depends on the map, which a description does not see: as everywhere, each
tensor counts in full, the gradient in both of its passes and the mixtures of a pooled level as if
every pixel were one. On real maps both are small (docs/label_maps.md). The sums have no FLOPs: no
product of matrices is taken.
"""

import math

import torch
from torch import Tensor

from pix2pixhd_fast._launches import Launch, bytes_of, copies_of, scratch_of

TILE = (16, 32)  # pixels of the result that a block has, rows and columns
TILE_PIXELS = 512
LEVEL_WINDOW = (0, 9, 49)  # pixels of the map that one of a level is the average of


def forward(
    labels, edges, weight, bias, addend, num_labels, level, stride, padding, pad, dead_bias,
    act, slope, eps, result,
) -> list[Launch]:  # fmt: skip
    y, mean, rstd = result
    if y.numel() == 0:
        return []
    bias = None if dead_bias else bias
    odd = [t for t in (bias, labels, edges) if t is not None and not t.is_contiguous()]
    copies = copies_of([*odd, *_not_channels_last(addend)])
    n, k, *size = y.shape
    codes = (num_labels + 1) * (1 + (edges is not None))
    sums = 4 * (codes + 1) * (-(-k // 8) * 8)
    tables = 4 * codes * _steps(*weight.shape[2:]) * (-(-k // 8) * 8) + sums
    parts = 0 if eps is None else 4 * n * _tiles(size) * 2 * k
    pooled = _pooled_bytes(labels, edges, num_labels, level)
    scratch = scratch_of(copies) + sum(pooled) + tables + parts
    seen = sum(pooled) if level else bytes_of(labels, edges)
    launches = _pooling(labels, edges, pooled, scratch)
    launches.append(_launch("make_tables", bytes_of(weight, bias), tables, scratch))
    read = seen + tables + bytes_of(addend)
    launches.append(_launch("convolve", read, bytes_of(y) + parts, scratch))
    if eps is not None:
        launches.append(_launch("combine_statistics", parts, bytes_of(mean, rstd), scratch))
    return [*copies, *launches]


def backward(
    dy, labels, edges, num_labels, kernel_height, kernel_width, level, stride, padding, pad,
    result,
) -> list[Launch]:  # fmt: skip
    if dy.numel() == 0:
        return [Launch("aten::zero_", 0, bytes_of(t)) for t in result]
    n, k, *size = dy.shape
    odd = [t for t in (labels, edges) if t is not None and not t.is_contiguous()]
    copies = copies_of([*_not_channels_last(dy), *odd])
    tiles = n * _tiles(size)
    inputs = num_labels + (edges is not None)
    classes = mixed = 2 * tiles * TILE_PIXELS
    counts = 4 * tiles
    of_split = 4 * (inputs + 1) * k
    tiles_of_split = -(-tiles // min(-(-tiles // 8), max(2**24 // of_split, 1)))
    uniform = -(-tiles // tiles_of_split) * of_split
    of_split = 4 * inputs * _steps(kernel_height, kernel_width) * k
    steps = min(max(2**24 // of_split, 1), 64, tiles) * of_split
    pooled = _pooled_bytes(labels, edges, num_labels, level)
    seen = bytes_of(labels, edges) if level == 0 else pooled[0]
    scratch = scratch_of(copies) + sum(pooled) + classes + mixed + counts + uniform + steps
    found = classes + mixed + counts
    read = seen + pooled[1] + mixed + counts + bytes_of(dy)
    return [
        *copies,
        *_pooling(labels, edges, pooled, scratch),
        _launch("find_mixed", seen, found, scratch, "_backward"),
        _launch("sum_uniform", classes + bytes_of(dy), uniform, scratch, "_backward"),
        _launch("sum_mixed", read, steps, scratch, "_backward"),
        _launch("reduce", uniform + steps, bytes_of(*result), scratch, "_backward"),
    ]


def _launch(kernel: str, read: int, written: int, scratch: int, file: str = "") -> Launch:
    return Launch(f"label_conv2d{file}.{kernel}", read, written, scratch=scratch)


def _not_channels_last(picture: Tensor | None) -> list[Tensor]:
    if picture is None or picture.is_contiguous(memory_format=torch.channels_last):
        return []
    return [picture]


def _steps(kernel_height: int, kernel_width: int) -> int:
    """The taps of a kernel, and of each row of it the sum."""
    return kernel_height * (kernel_width + 1)


def _tiles(size: list[int]) -> int:
    """Of one picture of `size` (H, W)."""
    return math.prod(-(-side // of_tile) for side, of_tile in zip(size, TILE, strict=True))


def _pooled_bytes(
    labels: Tensor, edges: Tensor | None, num_labels: int, level: int
) -> tuple[int, int]:
    """Of the codes of a level and of their mixtures; none for level 0."""
    if level == 0:
        return 0, 0
    n, _, h, w = labels.shape
    pixels = n * -(-h // 2**level) * -(-w // 2**level)
    codes = (num_labels + 1) * (1 + (edges is not None))
    return 2 * pixels, 4 * pixels * min(codes, LEVEL_WINDOW[level])


def _pooling(
    labels: Tensor, edges: Tensor | None, pooled: tuple[int, int], scratch: int
) -> list[Launch]:
    if sum(pooled) == 0:
        return []
    return [Launch("label_codes.pool_codes", bytes_of(labels, edges), sum(pooled), 0, scratch)]
