"""Convolutions on the CPU with fewer products: Winograd's method, on 6 x 6 points."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensor

from pix2pixhd_fast._launches import Launch, register_launches
from pix2pixhd_fast._library import define, has_kernel
from pix2pixhd_fast.ops.memory_format import to_channels_last

# The polynomials of a line are known by their values at 0, -NEAR, NEAR, -FAR, FAR and infinity.
# Both and their squares are exact in float32. Relative L2 error of a result, from random numbers
# and 256 channels: 1.2e-6; with 1 and 2, the points of the paper, 2.9e-6.
NEAR, FAR = 0.625, 1.5
SIDE = 6
# What is made of a layer at a time: at least so many rows of a product (with 64 of them instead of
# 256 the products of 512 channels take three times as long), and 8 MiB where that is more.
PIECE, PIECE_VALUES = 256, 2 << 20
# The pixels of a result, by the side of the kernel and the stride, from which on it is worthwhile.
LEAST_PIXELS = {(3, 1): 400, (4, 1): 400, (4, 2): 2048}


def _evaluation(n: int) -> Tensor:
    """The values of a polynomial with n coefficients at the points: [6, n], float64."""
    points = torch.tensor([0.0, NEAR, -NEAR, FAR, -FAR], dtype=torch.float64)
    values = points[:, None] ** torch.arange(n)
    return torch.cat([values, torch.eye(n, dtype=torch.float64)[-1:]])


@functools.cache
def _to_points(side: int) -> Tensor:
    """What takes a line of a tile to its points: [6, side], float64.

    For 6 pixels the transpose of the interpolation, but for its divisions; for less the evaluation,
    with them.
    """
    if side < SIDE:
        near, far = NEAR**2, FAR**2
        distances = [near * far, *[2 * near * (near - far)] * 2, *[2 * far * (far - near)] * 2, 1]
        return _evaluation(side) / torch.tensor(distances, dtype=torch.float64)[:, None]
    near, far = NEAR**2, FAR**2
    rows = [[near * far, 0, -near - far, 0, 1, 0]]
    for point, other in ((NEAR, far), (-NEAR, far), (FAR, near), (-FAR, near)):
        rows.append([0, -point * other, -other, point, 1, 0])
    rows.append([0, near * far, 0, -near - far, 0, 1])
    return torch.tensor(rows, dtype=torch.float64)


def winograd_points_ref(
    x: Tensor,
    points: Tensor,
    side: int,
    step: int,
    pad: int,
    down: int,
    across: int,
    first_row: int,
    turned: bool,
) -> None:
    """points = the tiles of x as values at 6 x 6 points.

    x [N, C, H, W] with any strides. Over each picture lies a grid of [down, across] tiles of
    side x side pixels, `step` apart; the first one begins `pad` pixels outside, and outside are
    zeros. points [36, T, C] takes whole rows of the grids, which are counted through all pictures,
    from `first_row` on. With `turned` each tile is turned by 180 degrees.
    """
    edges = []
    for size, count in ((x.shape[3], across), (x.shape[2], down)):
        edges += [pad, (count - 1) * step + side - pad - size]
    tiles = F.pad(x, edges).unfold(2, side, step).unfold(3, side, step)
    if turned:
        tiles = tiles.flip(4, 5)
    to_points = _to_points(side).to(x)
    values = torch.einsum("ia,jb,nchwab->ijnhwc", to_points, to_points, tiles)
    values = values.reshape(SIDE * SIDE, -1, x.shape[1])
    points.copy_(values[:, first_row * across :][:, : points.shape[1]])


def winograd_pixels_ref(
    points: Tensor, y: Tensor, bias: Tensor | None, side: int, down: int, across: int, row: int
) -> None:
    """y = the pixels side x side of each tile from its points, and a bias [C].

    points [36, T, C]: whole rows of the grids [down, across] of tiles that lie next to each other
    over the pictures y [N, C, H, W], from `row` on. What lies outside is dropped, pixels of other
    tiles stay as they are.
    """
    to_pixels = _evaluation(side).to(points)
    values = points.view(SIDE, SIDE, -1, across, points.shape[2])
    strips = torch.einsum("ia,jb,ijrwc->rcawb", to_pixels, to_pixels, values).flatten(3)
    if bias is not None:
        strips = strips + bias[:, None, None]
    for n, strip in enumerate(strips, start=row):
        into = y[n // down, :, n % down * side :][:, :side]
        into.copy_(strip[:, : into.shape[1], : into.shape[2]])


def suits(x: Tensor, weight: Tensor, stride: int, pad: int, transposed: bool) -> bool:
    """Whether to convolve x by `weight` so, and to take the gradients of that: by measurements.

    In float32, with the compiled kernels. Fake tensors stand for those of a GPU.
    """
    if isinstance(x, FakeTensor) or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    kernel = weight.shape[2]
    fits = weight.shape[3] == kernel and (kernel, stride) in LEAST_PIXELS and pad < kernel
    if transposed or not fits or pad % stride:
        return False
    height, width = ((side + 2 * pad - kernel) // stride + 1 for side in x.shape[2:])
    return (
        x.shape[0] * height * width >= LEAST_PIXELS[kernel, stride]
        and min(weight.shape[:2]) >= 32
        and sum(weight.shape[:2]) >= 96
        and has_kernel("winograd_points_", "CPU")
    )


class _Phases(NamedTuple):
    """Pictures [N, C, H, W] as stride^2 pictures of every stride-th pixel: so many more channels.

    A convolution with a stride is one without, of the phases of x by those of the weight.
    """

    pictures: Tensor
    stride: int = 1

    @property
    def channels(self) -> int:
        return self.pictures.shape[1] * self.stride**2

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.pictures.shape[2:]
        return -(-height // self.stride), -(-width // self.stride)

    def some(self, first: int, count: int) -> "_Phases":
        """Of so many channels of the pictures, from `first` on."""
        return self._replace(pictures=self.pictures[:, first : first + count])

    def with_parts(self, points: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each phase and its part of points [36, T, C]."""
        s = self.stride
        phases = [self.pictures[:, :, i::s, j::s] for i in range(s) for j in range(s)]
        return [*zip(phases, points.split(self.pictures.shape[1], 2), strict=True)]


class _Grid(NamedTuple):
    """Tiles over pictures; see `winograd_points_ref`."""

    images: int
    down: int
    across: int

    @property
    def rows(self) -> int:
        return self.images * self.down

    @property
    def tiles(self) -> int:
        return self.rows * self.across


def _grid(pictures: _Phases, side: int) -> _Grid:
    down, across = (-(-size // side) for size in pictures.size)
    return _Grid(pictures.pictures.shape[0], down, across)


def _read(
    x: _Phases, points: Tensor, side: int, step: int, pad: int, grid: _Grid, row: int = 0,
    turned: bool = False,
) -> Tensor:  # fmt: skip
    """points, with the tiles of x."""
    for phase, part in x.with_parts(points):
        torch.ops.pix2pixhd_fast.winograd_points_(
            phase, part, side, step, pad, grid.down, grid.across, row, turned
        )
    return points


def _read_weight(weight: _Phases, points: Tensor, turned: bool = False) -> Tensor:
    side = weight.size[0]
    return _read(weight, points, side, side, 0, _Grid(len(weight.pictures), 1, 1), 0, turned)


def _write(
    points: Tensor, y: _Phases, bias: Tensor | None, side: int, grid: _Grid, row: int = 0
) -> None:
    for phase, part in y.with_parts(points):
        torch.ops.pix2pixhd_fast.winograd_pixels_(
            part, phase, bias, side, grid.down, grid.across, row
        )


class _Buffer:
    """Memory for one piece after the other: new memory for each would cost its page faults."""

    def __init__(self) -> None:
        self.memory = torch.empty(0)

    def take(self, *shape: int) -> Tensor:
        """Tensor [36, *shape] with any values; the last one that was taken is void."""
        values = SIDE * SIDE * shape[0] * shape[1]
        if values > self.memory.numel():
            self.memory = torch.empty(values)
        return self.memory[:values].view(SIDE * SIDE, *shape)


def _pieces(total: int, width: int, values: int) -> list[tuple[int, int]]:
    """First and count of equal pieces of `total`, each of which has `width` rows of a product.

    `values`: what a row of the product reads and writes, at one point.
    """
    most = max(PIECE, PIECE_VALUES // (SIDE * SIDE * values)) // width
    count = -(-total // -(-total // max(1, most)))
    return [(first, min(count, total - first)) for first in range(0, total, count)]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int) -> Tensor:
    """y = conv2d(x, weight, bias, stride, pad) for what `suits_winograd`, channels_last.

    x [N, C, H, W] channels_last, weight [K, C, k, k]. Each tile of y comes from 36 products for
    each pair of channels: for 3x3 and 4x4 a quarter of those of the definition, for 4x4 with stride
    2 0.36 of them.
    """
    kernel = weight.shape[2]
    size = ((side + 2 * pad - kernel) // stride + 1 for side in x.shape[2:])
    y = torch.empty(
        (x.shape[0], weight.shape[0], *size), memory_format=torch.channels_last, dtype=x.dtype
    )
    _convolve(_Phases(x, stride), _Phases(weight, stride), _Phases(y), bias, pad // stride, False)
    return y


def input_gradient(
    dy: Tensor, weight: Tensor, size: tuple[int, int], stride: int, pad: int
) -> Tensor:
    """dx [N, C, *size] of `convolve`, channels_last: a convolution of dy by the turned weight."""
    dx = torch.empty(
        (dy.shape[0], weight.shape[1], *size), memory_format=torch.channels_last, dtype=dy.dtype
    )
    outside = (weight.shape[2] - 1 - pad) // stride
    _convolve(_Phases(dy), _Phases(weight, stride), _Phases(dx, stride), None, outside, True)
    return dx


def _convolve(
    x: _Phases, weight: _Phases, y: _Phases, bias: Tensor | None, pad: int, turned: bool
) -> None:
    """y = x convolved by `weight` [K, C], or [C, K] where it is turned.

    The points of x are [36, T, C], those of the weight [36, C, K]. The smaller ones of both are
    there as a whole, and the others, and the products, one piece after the other.
    """
    side = SIDE + 1 - weight.size[0]
    grid = _grid(y, side)
    tiles, inputs, outputs = grid.tiles, x.channels, y.channels
    of_x, of_weight, products = _Buffer(), _Buffer(), _Buffer()

    def weight_points(weight: _Phases, outputs: int) -> Tensor:
        if turned:
            return _read_weight(weight, of_weight.take(inputs, outputs), turned=True)
        return _read_weight(weight, of_weight.take(outputs, inputs)).transpose(1, 2)

    if tiles > outputs:
        u = weight_points(weight, outputs)
        for row, rows in _pieces(grid.rows, grid.across, inputs + outputs):
            v = of_x.take(rows * grid.across, inputs)
            _read(x, v, SIDE, side, pad, grid, row)
            product = products.take(rows * grid.across, outputs)
            _write(torch.bmm(v, u, out=product), y, bias, side, grid, row)
        return
    v = _read(x, of_x.take(tiles, inputs), SIDE, side, pad, grid)
    phases = y.stride**2
    for first, count in _pieces(outputs // phases, phases, inputs + tiles):
        some = slice(first, first + count)
        part = weight.pictures[:, some] if turned else weight.pictures[some]
        u = weight_points(weight._replace(pictures=part), count * phases)
        product = torch.bmm(v, u, out=products.take(tiles, count * phases))
        _write(product, y.some(first, count), None if bias is None else bias[some], side, grid)


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: int, pad: int) -> Tensor:
    """dweight of `convolve`, with the strides of `weight`, whose values are not read.

    The method for the result k x k of a convolution of x by dy, tile by tile: the sum over tiles is
    one product of matrices [K, T] and [T, C] for each point.
    """
    dweight = torch.empty_like(weight)
    seen, found = _Phases(x, stride), _Phases(dweight, stride)
    taps = found.size[0]
    side = SIDE + 1 - taps
    grid, one = _grid(_Phases(dy), side), _Grid(len(dweight), 1, 1)
    tiles, inputs, outputs = grid.tiles, seen.channels, dy.shape[1]
    of_x, of_dy, sums = _Buffer(), _Buffer(), _Buffer()
    if tiles > inputs:
        sum_ = sums.take(outputs, inputs).zero_()
        for row, rows in _pieces(grid.rows, grid.across, inputs + outputs):
            v = of_x.take(rows * grid.across, inputs)
            _read(seen, v, SIDE, side, pad // stride, grid, row)
            z = _read(_Phases(dy), of_dy.take(rows * grid.across, outputs), side, side, 0, grid, row)
            torch.baddbmm(sum_, z.transpose(1, 2), v, out=sum_)
        _write(sum_, found, None, taps, one)
        return dweight
    v = _read(seen, of_x.take(tiles, inputs), SIDE, side, pad // stride, grid)
    for first, count in _pieces(outputs, 1, inputs + tiles):
        part = _Phases(dy).some(first, count)
        z = _read(part, of_dy.take(tiles, count), side, side, 0, grid)
        product = torch.bmm(z.transpose(1, 2), v, out=sums.take(count, inputs))
        some = _Phases(dweight[first : first + count], stride)
        _write(product, some, None, taps, _Grid(count, 1, 1))
    return dweight


def gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    pad: int,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of `convolve`, for x, weight and bias; None where it is not needed."""
    needs_x, needs_weight, needs_bias = needs
    dy, x = to_channels_last(dy), to_channels_last(x)
    return (
        input_gradient(dy, weight, x.shape[2:], stride, pad) if needs_x else None,
        weight_gradient(dy, x, weight, stride, pad) if needs_weight else None,
        dy.sum((0, 2, 3)) if needs_bias else None,
    )


def _launches(*arguments, result) -> list[Launch]:
    """None: these ops are for the CPU alone."""
    return []


define(
    "winograd_points_",
    "(Tensor x, Tensor(a!) points, int side, int step, int pad, int down, int across,"
    " int first_row, bool turned) -> ()",
    winograd_points_ref,
)
define(
    "winograd_pixels_",
    "(Tensor points, Tensor(a!) y, Tensor? bias, int side, int down, int across, int row) -> ()",
    winograd_pixels_ref,
)
register_launches("winograd_points_", _launches)
register_launches("winograd_pixels_", _launches)
