"""Convolutions on the CPU with fewer products: Winograd's method, on 6 x 6 points."""

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
# What is made of a layer at a time: at least so many rows of a product (512 -> 512 channels, 3x3,
# 64x128, takes 113 ms with about 256, 136 with 56, 332 with 14), and 8 MiB where that is more.
PIECE, PIECE_VALUES = 256, 2 << 20
# The pixels of a result, by the side of the kernel and the stride, from which on it is worthwhile.
LEAST_PIXELS = {(3, 1): 400, (4, 1): 400, (4, 2): 2048}

Matrix = tuple[tuple[float, ...], ...]


def evaluation(n: int) -> Matrix:
    """The values of a polynomial with n coefficients at the points: [6, n]."""
    powers = (tuple(point**k for k in range(n)) for point in (0.0, NEAR, -NEAR, FAR, -FAR))
    return *powers, (0.0,) * (n - 1) + (1.0,)


def to_points(side: int) -> Matrix:
    """What takes a line of a tile to its points: [6, side].

    For 6 pixels the transpose of the interpolation, but for its divisions; for less the evaluation,
    with them.
    """
    near, far = NEAR**2, FAR**2
    if side < SIDE:
        at_near, at_far = 2 * near * (near - far), 2 * far * (far - near)
        distances = (near * far, at_near, at_near, at_far, at_far, 1.0)
        rows = zip(evaluation(side), distances, strict=True)
        return tuple(tuple(value / distance for value in row) for row, distance in rows)
    pairs = ((NEAR, far), (-NEAR, far), (FAR, near), (-FAR, near))
    return (
        (near * far, 0.0, -near - far, 0.0, 1.0, 0.0),
        *((0.0, -point * other, -other, point, 1.0, 0.0) for point, other in pairs),
        (0.0, near * far, 0.0, -near - far, 0.0, 1.0),
    )


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
    lines = x.new_tensor(to_points(side))
    values = torch.einsum("ia,jb,nchwab->ijnhwc", lines, lines, tiles)
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
    lines = points.new_tensor(evaluation(side))
    values = points.view(SIDE, SIDE, -1, across, points.shape[2])
    strips = torch.einsum("ia,jb,ijrwc->rcawb", lines, lines, values).flatten(3)
    if bias is not None:
        strips = strips + bias[:, None, None]
    for n, strip in enumerate(strips, start=row):
        into = y[n // down, :, n % down * side :][:, :side, : strip.shape[2]]
        into.copy_(strip[:, : into.shape[1], : into.shape[2]])


def suits(x: Tensor, weight: Tensor, stride: int, pad: int, transposed: bool) -> bool:
    """Whether to take `convolve` for a convolution of x by `weight`.

    On the CPU in float32 with the compiled kernels, for 3x3 and 4x4 with stride 1 and 4x4 with
    stride 2, from 32 channels on. Measured on two cores (AVX2, 140 GFLOP/s in a product of
    large matrices), by the size of x, ms for the result, the gradient of x and that of the weight,
    so and by the faster one of oneDNN in either memory format and, for the last,
    `ops.weight_gradient`:

    ===================================  =============  =============  =============
    256 -> 512, 4x4, 65x129                 88,   209     104,   246     105,   348
    256 -> 512, 4x4, 9x17                  5.9,   5.6     6.1,   5.9     6.5,   6.9
    512 -> 512, 3x3, 66x130                121,   257     115,   249      97,   372
    1024 -> 1024, 3x3, 18x34                67,    88      79,    91      79,   103
    1024 -> 1024, 3x3, 10x18                42,    36      57,    34      60,    38
    512 -> 512, 3x3, 16x32                  18,    20      18,    21      16,    25
    64 -> 64, 3x3, 64x64                   1.5,   2.1     1.3,   2.0     1.6,   2.9
    32 -> 64, 3x3, 128x256                 6.8,  10.0     6.5,   9.4     5.8,  11.7
    32 -> 32, 3x3, 128x256                 5.3,   4.4     4.3,   4.3     4.4,   5.9
    64 -> 128, 4x4, stride 2, 257x513       48,    59      57,    76      43,    92
    128 -> 256, 4x4, stride 2, 129x257      36,    57      36,    55      37,    92
    128 -> 256, 4x4, stride 2, 65x129       14,    17      15,    19      13,    24
    128 -> 256, 4x4, stride 2, 33x65       6.1,   4.4     6.1,   4.9     5.7,   5.7
    ===================================  =============  =============  =============

    Fake tensors stand for those of a GPU.
    """
    kernel = weight.shape[2]
    height, width = ((side + 2 * pad - kernel) // stride + 1 for side in x.shape[2:])
    return _suits(x, x.shape[0] * height * width, weight, stride, pad, transposed)


def suits_gradients(dy: Tensor, weight: Tensor, stride: int, pad: int, transposed: bool) -> bool:
    """Whether to take `input_gradient` and `weight_gradient`: as for the convolution itself."""
    return _suits(dy, dy.numel() // max(1, dy.shape[1]), weight, stride, pad, transposed)


def _suits(
    given: Tensor, pixels: int, weight: Tensor, stride: int, pad: int, transposed: bool
) -> bool:
    if isinstance(given, FakeTensor) or given.device.type != "cpu":
        return False
    height, width = weight.shape[2:]
    if transposed or height != width or (height, stride) not in LEAST_PIXELS:
        return False
    return (
        given.dtype == weight.dtype == torch.float32
        and pad < height
        and pad % stride == 0
        and pixels >= LEAST_PIXELS[height, stride]
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

    side: int
    step: int
    pad: int
    images: int
    down: int
    across: int

    @property
    def rows(self) -> int:
        return self.images * self.down

    @property
    def tiles(self) -> int:
        return self.rows * self.across

    def seen(self, pad: int) -> "_Grid":
        """What the tiles of the result of a convolution are made of."""
        return self._replace(side=SIDE, pad=pad)


def _side_by_side(pictures: _Phases, side: int) -> _Grid:
    down, across = (-(-size // side) for size in pictures.size)
    return _Grid(side, side, 0, len(pictures.pictures), down, across)


def _read(x: _Phases, points: Tensor, grid: _Grid, row: int = 0, turned: bool = False) -> Tensor:
    """points, with the tiles of x."""
    for phase, part in x.with_parts(points):
        torch.ops.pix2pixhd_fast.winograd_points_(
            phase, part, *grid[:3], grid.down, grid.across, row, turned
        )
    return points


def _write(points: Tensor, y: _Phases, bias: Tensor | None, grid: _Grid, row: int = 0) -> None:
    for phase, part in y.with_parts(points):
        torch.ops.pix2pixhd_fast.winograd_pixels_(
            part, phase, bias, grid.side, grid.down, grid.across, row
        )


class _Buffer:
    """Memory for one piece after the other: new memory for each would cost its page faults."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.float32)

    def take(self, *shape: int) -> Tensor:
        """Tensor [36, *shape] with any values; the last one that was taken is void."""
        values = SIDE * SIDE * shape[0] * shape[1]
        if values > self.memory.numel():
            self.memory = torch.empty(values, dtype=torch.float32)
        return self.memory[:values].view(SIDE * SIDE, *shape)


def _pieces(total: int, width: int, values: int) -> list[tuple[int, int]]:
    """First and count of equal pieces of `total`, each of which has `width` rows of a product.

    `values`: what a row of the product reads and writes, at one point.
    """
    most = max(PIECE, PIECE_VALUES // (SIDE * SIDE * values)) // width
    count = -(-total // -(-total // max(1, most)))
    return [(first, min(count, total - first)) for first in range(0, total, count)]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, pad: int) -> Tensor:
    """y = conv2d(x, weight, bias, stride, pad), channels_last, for what `suits`.

    x [N, C, H, W], weight [K, C, k, k]. A tile of y comes from 36 products for each pair of
    channels: a quarter of those of the definition, 0.36 of them for 4x4 with stride 2.
    """
    x, kernel = to_channels_last(x), weight.shape[2]
    bias = None if bias is None else bias.contiguous()
    size = ((side + 2 * pad - kernel) // stride + 1 for side in x.shape[2:])
    y = _new_pictures(len(x), len(weight), *size)
    _convolve(_Phases(x, stride), _Phases(weight, stride), _Phases(y), bias, pad // stride, False)
    return y


def input_gradient(
    dy: Tensor, size: tuple[int, int], weight: Tensor, stride: int, pad: int
) -> Tensor:
    """dx [N, C, *size] of `convolve`, channels_last: a convolution of dy by the turned weight."""
    dy, outside = to_channels_last(dy), (weight.shape[2] - 1 - pad) // stride
    dx = _new_pictures(len(dy), weight.shape[1], *size)
    _convolve(_Phases(dy), _Phases(weight, stride), _Phases(dx, stride), None, outside, True)
    return dx


def _new_pictures(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, memory_format=torch.channels_last)


def _convolve(
    x: _Phases, weight: _Phases, y: _Phases, bias: Tensor | None, pad: int, turned: bool
) -> None:
    """y = x convolved by a weight [outputs, inputs], or [inputs, outputs] where it is turned.

    The points of x are [36, tiles, inputs], those of the weight [36, inputs, outputs]. The smaller
    ones of both are there as a whole, and the others, and the products, one piece after the other.
    """
    grid = _side_by_side(y, SIDE + 1 - weight.size[0])
    seen, inputs, outputs = grid.seen(pad), x.channels, y.channels
    of_x, of_weight, products = _Buffer(), _Buffer(), _Buffer()
    if grid.tiles > outputs:
        u = _weight_points(weight, of_weight, turned)
        for row, rows in _pieces(grid.rows, grid.across, inputs + outputs):
            v = _read(x, of_x.take(rows * grid.across, inputs), seen, row)
            product = torch.bmm(v, u, out=products.take(rows * grid.across, outputs))
            _write(product, y, bias, grid, row)
        return
    v, phases = _read(x, of_x.take(grid.tiles, inputs), seen), y.stride**2
    for first, count in _pieces(outputs // phases, phases, inputs + grid.tiles):
        some = slice(first, first + count)
        part = weight.pictures[:, some] if turned else weight.pictures[some]
        u = _weight_points(weight._replace(pictures=part), of_weight, turned)
        product = torch.bmm(v, u, out=products.take(grid.tiles, count * phases))
        _write(product, y.some(first, count), None if bias is None else bias[some], grid)


def _weight_points(weight: _Phases, buffer: _Buffer, turned: bool) -> Tensor:
    """[36, inputs, outputs]"""
    points = buffer.take(len(weight.pictures), weight.channels)
    _read(weight, points, _side_by_side(weight, weight.size[0]), 0, turned)
    return points if turned else points.transpose(1, 2)


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: int, pad: int) -> Tensor:
    """dweight of `convolve`, with the strides of `weight`, whose values are not read.

    The method for the result k x k of a convolution of x by dy, tile by tile: the sum over tiles is
    one product of matrices [K, tiles] and [tiles, C] for each point.
    """
    dweight = torch.empty_like(weight)
    found, x = _Phases(dweight, stride), _Phases(to_channels_last(x), stride)
    dy, taps = _Phases(to_channels_last(dy)), found.size[0]
    grid = _side_by_side(dy, SIDE + 1 - taps)
    seen, inputs, outputs = grid.seen(pad // stride), x.channels, dy.channels
    of_x, of_dy, sums = _Buffer(), _Buffer(), _Buffer()
    if grid.tiles > inputs:
        total = sums.take(outputs, inputs).zero_()
        for row, rows in _pieces(grid.rows, grid.across, inputs + outputs):
            v = _read(x, of_x.take(rows * grid.across, inputs), seen, row)
            z = _read(dy, of_dy.take(rows * grid.across, outputs), grid, row)
            torch.baddbmm(total, z.transpose(1, 2), v, out=total)
        _write(total, found, None, _side_by_side(found, taps))
        return dweight
    v = _read(x, of_x.take(grid.tiles, inputs), seen)
    for first, count in _pieces(outputs, 1, inputs + grid.tiles):
        z = _read(dy.some(first, count), of_dy.take(grid.tiles, count), grid)
        total = torch.bmm(z.transpose(1, 2), v, out=sums.take(count, inputs))
        some = found._replace(pictures=dweight[first : first + count])
        _write(total, some, None, _side_by_side(some, taps))
    return dweight


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
