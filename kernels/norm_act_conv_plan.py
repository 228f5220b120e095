"""How norm_act_conv is cut into tiles, by a rule on its shapes. Knows no Triton."""

import math
from typing import NamedTuple

import torch

# Output pixels of a tile: 4 warps of 32 rows, two matrix instructions high on every architecture.
BLOCK_M = 128
# Offsets inside an image are 32-bit; tiles may begin this many values before its end.
LARGEST_IMAGE = 2**31 - 2**24
MAX_COMBINED = 2048


class Layer(NamedTuple):
    """A call of norm_act_conv without its data; `x`, `weight`: shapes as there.

    `normed`: whether there is anything to normalise. `statistics`: whether eps is given. `bias`:
    whether there is one that is added.
    """

    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    dtype: torch.dtype
    normed: bool = False
    act: str = "none"
    padding: str = "none"
    pad: int = 0
    stride: int = 1
    transposed: bool = False
    output_padding: int = 0
    bias: bool = False
    statistics: bool = True

    @property
    def channels(self) -> int:
        """K, of y."""
        return self.weight[1 if self.transposed else 0]

    @property
    def y(self) -> tuple[int, int, int, int]:
        """The shape of y, [N, K, H', W']."""
        sides = zip(self.x[2:], self.weight[2:], strict=True)
        if self.transposed:
            grown = self.output_padding - 2 * self.pad
            size = [(side - 1) * self.stride + kernel + grown for side, kernel in sides]
        else:
            size = [(side + 2 * self.pad - kernel) // self.stride + 1 for side, kernel in sides]
        return (self.x[0], self.channels, *size)

    @property
    def flops(self) -> int:
        """Two for each product; those with padding are counted."""
        n, _, h, w = self.x if self.transposed else self.y
        return 2 * n * h * w * math.prod(self.weight)


class Plan(NamedTuple):
    """The tiles of a layer; the names are those of the kernels.

    rows, columns: of the output of a phase. up: the phases along either axis. r: values that are
    summed per step.
    """

    rows: int
    columns: int
    up: int
    flat: bool
    shift: int
    r: int
    block_h: int
    block_w: int
    block_n: int
    block_r: int
    num_warps: int
    num_stages: int
    tile_width: int
    blocks: int

    @property
    def tiles_x(self) -> int:
        return -(-self.columns // self.tile_width)

    @property
    def tiles(self) -> int:
        """Of an image, all phases, but for one block of output channels."""
        return self.tiles_x * -(-self.rows // self.block_h) * self.up**2

    @property
    def block_t(self) -> int:
        """Tiles that are combined at once."""
        return min(MAX_COMBINED, power_of_2(self.tiles))

    def steps(self, layer: Layer) -> int:
        """Rows of taps, or taps; of all phases together."""
        kernel_height, kernel_width = layer.weight[2:]
        return kernel_height * (1 if self.flat or self.shift > 1 else kernel_width)


def power_of_2(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << (n - 1).bit_length()


def unsupported(layer: Layer) -> str | None:
    """Why the kernel cannot compute a layer, or None."""
    n, _, height, width = layer.y
    if layer.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"dtype {layer.dtype}"
    if 0 in layer.x or 0 in layer.weight or min(height, width) < 1:
        return "nothing to compute"
    if max(math.prod(layer.x[1:]), layer.channels * height * width) > LARGEST_IMAGE:
        return "an image of more than 2**31 values"
    if layer.transposed and (height % layer.stride or width % layer.stride):
        return "a transposed convolution whose result is no multiple of its stride"
    return None


def plan(layer: Layer) -> Plan:
    """The tiles of a layer that is supported.

    Warps, stages and `_block_r` are such that no layer of pix2pixHD spills on any architecture and
    that shared memory is at most 99 KiB where there is no more: found by compiling, not by timing.
    """
    *_, kernel_width = layer.weight
    channels = layer.x[1]
    up = layer.stride if layer.transposed else 1
    rows, columns = (side // up for side in layer.y[2:])
    shift = _shift(layer)
    flat = shift == 1 and up == 1 and _flat(layer)
    r = kernel_width * channels if flat else channels
    block_r = _block_r(r, layer)
    if flat and block_r * layer.dtype.itemsize > 64:
        block_r //= 2  # with 64 values of 16 bits sm_100 spills
    if shift > 1:
        block_n = max(16, shift * power_of_2(layer.channels))
        block_h, block_w, tile_width = 1, BLOCK_M, BLOCK_M - kernel_width + 1
    else:
        largest = 64 if layer.dtype == torch.float32 else 128
        block_n = min(largest, max(16, power_of_2(layer.channels)))
        block_h, block_w = _tile(rows, columns)
        tile_width = block_w
    single = flat and layer.dtype == torch.float32
    warps = 8 if block_n * layer.dtype.itemsize > 128 and not single else 4
    stages = 2 if single or (shift > 1 and r > block_r) else 3
    blocks = -(-layer.channels // (block_n // shift))
    return Plan(
        rows, columns, up, flat, shift, r, block_h, block_w, block_n, block_r, warps, stages,
        tile_width, blocks,
    )  # fmt: skip


def _shift(layer: Layer) -> int:
    """Columns of taps that become columns of the product: where there are few outputs."""
    shift = power_of_2(layer.weight[3])
    few = shift * power_of_2(layer.channels) <= 64 and layer.channels <= 8
    return shift if few and layer.stride == 1 and not layer.transposed else 1


def _flat(layer: Layer) -> bool:
    """Whether a row of taps in one piece wastes a fifth less of the product than single taps."""
    channels, kernel_width = layer.x[1], layer.weight[3]
    values = (kernel_width * channels, channels)
    row, tap = (-(-r // size) * size for r, size in ((r, _block_r(r, layer)) for r in values))
    return row <= 0.8 * kernel_width * tap


def _block_r(r: int, layer: Layer) -> int:
    """Values that are summed at once: those that waste least, then the most."""
    heavy = layer.act == "tanh" or _shift(layer) > 1
    heavy = heavy or (layer.transposed and layer.channels > 64)
    most = 32 if heavy or layer.dtype == torch.float32 else 64
    sizes = [size for size in (64, 32, 16) if size <= most]
    return min(sizes, key=lambda size: -(-r // size) * size)


def _tile(rows: int, columns: int) -> tuple[int, int]:
    """Height and width: as wide as goes without 5 % more tiles than the best.

    A tile of one row needs no vector of row indices.
    """
    counts = {w: -(-rows // (BLOCK_M // w)) * -(-columns // w) for w in (128, 64, 32, 16)}
    best = min(counts.values())
    width = next(w for w, count in counts.items() if count <= 1.05 * best)
    return BLOCK_M // width, width
