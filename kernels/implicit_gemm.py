"""The kernels of norm_act_conv: an implicit GEMM, and what combines the statistics of its tiles.

Memory is channels_last: x [images, height, width, C], y [images, rows, columns, K]. A program makes
a tile of BLOCK_H * BLOCK_W output pixels by BLOCK_N outputs of one image. It sums over steps (taps,
or rows of taps) and, in each, over R values of x next to each other:

steps            R       n
taps             C       K                  the general case
rows of taps     KW * C  K                  FLAT: few channels, a row of taps is one piece of memory
rows of taps     C       columns of taps*K  SHIFT > 1: few outputs; summed along the row afterwards

The weights are read as they lie in channels_last: [K, KH, KW, C], or [C, KH, KW, K] of a transposed
convolution. A step begins STEP values behind the one before, its values are R_APART apart.

A transposed convolution with stride UP is UP * UP ordinary ones with stride 1, one for each phase
(row and column of the output, modulo UP), which have every UP-th tap in either direction. Phases
are neighbours in the grid: they read the same x.
"""

import triton
import triton.language as tl
from pix2pixhd_fast.kernels.norm_act_pad import activate


@triton.jit
def _source(index, size, PADDING: tl.constexpr):
    """The index in a row of x of what padding puts at `index`; outside of it, for zero."""
    if PADDING == "reflect":
        index = tl.abs(index)
        index = (size - 1) - tl.abs(size - 1 - index)
    elif PADDING == "replicate":
        index = tl.minimum(tl.maximum(index, 0), size - 1)
    return index


@triton.jit
def _axis(phase, PAD: tl.constexpr, TAPS: tl.constexpr, UP: tl.constexpr):
    """Of the outputs of a phase along an axis: where the first one's x begins; taps; first; step.

    The tap that reads x at `begin + t` is `first + t * step`.
    """
    if UP == 1:
        begin = phase - PAD
        taps = phase + TAPS
        first = phase
        step = phase + 1
    else:
        residue = (phase + PAD) % UP
        taps = (TAPS - residue + UP - 1) // UP
        begin = (phase + PAD) // UP - (taps - 1)
        first = residue + UP * (taps - 1)
        step = phase * 0 - UP
    return begin, taps, first, step


@triton.jit
def _load(
    x, row, column, r, inside, height, width,
    C: tl.constexpr, R: tl.constexpr, FLAT: tl.constexpr, PADDING: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """x at row, column [BLOCK_M, 1] and r [1, BLOCK_R], and where; `inside` None: everywhere."""
    channel = r
    if FLAT and inside is not None:
        column = column + r // C
        channel = r % C
    row = _source(row, height, PADDING)
    column = _source(column, width, PADDING)
    at = x + (row * width + column) * C + channel
    there = r < R
    if inside is not None:
        there = there & inside
        if PADDING == "zero":
            there = there & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    if inside is None and R % BLOCK_R == 0:
        values = tl.load(at)
    else:
        values = tl.load(at, mask=there, other=0.0)
    return values, there


@triton.jit
def _load_norm(mean, rstd, gamma, beta, c, mask, EXACT: tl.constexpr):
    """shift, scale and offset of z = (x - shift) * scale + offset, each of the shape of c.

    Not EXACT: shift is 0, so that one multiply-add does it. That rounds at the magnitude of x, as
    16-bit x is rounded already, 2**13 times as coarsely.
    """
    shift = tl.zeros(c.shape, tl.float32)
    scale = tl.full(c.shape, 1.0, tl.float32)
    offset = tl.zeros(c.shape, tl.float32)
    if mean is not None:
        shift = tl.load(mean + c, mask=mask, other=0.0)
        scale = tl.load(rstd + c, mask=mask, other=0.0)
    if gamma is not None:
        scale = scale * tl.load(gamma + c, mask=mask, other=0.0).to(tl.float32)
    if beta is not None:
        offset = tl.load(beta + c, mask=mask, other=0.0).to(tl.float32)
    if not EXACT:
        offset = offset - shift * scale
    return shift, scale, offset


@triton.jit
def _normalise(
    values, shift, scale, offset, slope,
    NORMED: tl.constexpr, EXACT: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """act(norm(x)), rounded to the dtype of x."""
    z = values.to(tl.float32)
    if NORMED:
        if EXACT:
            z = z - shift
        z = z * scale + offset
    if ACT == "relu":
        # One instruction instead of two, where it is executed for every tap.
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        z = activate(z, slope, ACT)
    return z.to(values.dtype)


@triton.jit
def _columns(
    n, block, C: tl.constexpr, K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    TRANSPOSED: tl.constexpr, SHIFT: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Where in w each column n of a block begins, and whether there is such a column."""
    OUTPUTS: tl.constexpr = BLOCK_N // SHIFT
    k = block * OUTPUTS + n % OUTPUTS
    there = (k < K) & (n // OUTPUTS < KW)
    if TRANSPOSED:
        return k, there
    else:
        return k * (KH * KW * C) + n // OUTPUTS * C, there


@triton.jit
def _sums(
    x, w, mean, rstd, gamma, beta, slope, row, column, inside, n, known, height, width,
    taps_y, taps_x, first, step_y, step_x,
    C: tl.constexpr, R: tl.constexpr, STEP: tl.constexpr, R_APART: tl.constexpr,
    WHOLE: tl.constexpr, FLAT: tl.constexpr, ACT: tl.constexpr,
    PADDING: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """The sums of products [BLOCK_M, BLOCK_N]; row and column [BLOCK_M, 1]: where x begins.

    n [BLOCK_N] and which of them are `known` as by `_columns`; WHOLE: all are.
    """
    NORMED: tl.constexpr = mean is not None or gamma is not None or beta is not None
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float32
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, R, BLOCK_R):
        r = (start + tl.arange(0, BLOCK_R))[None, :]
        c = r % C if FLAT else r
        shift, scale, offset = _load_norm(mean, rstd, gamma, beta, c, r < R, EXACT)
        k_r = start + tl.arange(0, BLOCK_R)
        places = n[None, :] + k_r[:, None] * R_APART
        there_w = (k_r < R)[:, None]
        if not WHOLE:
            there_w = there_w & known[None, :]
        for step in range(taps_y * taps_x):
            ty = step // taps_x
            tx = step % taps_x
            values, there = _load(
                x, row + ty, column + tx, r, inside, height, width, C, R, FLAT, PADDING, BLOCK_R
            )
            if NORMED or ACT != "none":
                values = _normalise(values, shift, scale, offset, slope, NORMED, EXACT, ACT)
                if PADDING == "zero":
                    values = tl.where(there, values, 0.0)
            tap = first + ty * step_y + tx * step_x
            if WHOLE and R % BLOCK_R == 0:
                weights = tl.load(w + tap * STEP + places)
            else:
                weights = tl.load(w + tap * STEP + places, mask=there_w, other=0.0)
            acc = tl.dot(values, weights, acc, input_precision=PRECISION)
    return acc


@triton.jit
def tile_pixels(place, rows, columns, tiles_x, BLOCK_H: tl.constexpr, WIDTH: tl.constexpr):
    """The first row and column of a tile, and how many pixels of the output it has."""
    top = place // tiles_x * BLOCK_H
    left = place % tiles_x * WIDTH
    return top, left, tl.minimum(rows - top, BLOCK_H) * tl.minimum(columns - left, WIDTH)


@triton.jit
def _sum_shifted(acc, SHIFT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """acc [BLOCK_M, SHIFT * K] -> y [BLOCK_M, K]: y[m] = sum over s of acc[m + s, s]."""
    outputs: tl.constexpr = BLOCK_N // SHIFT
    m = tl.arange(0, BLOCK_M)[:, None]
    n = tl.arange(0, BLOCK_N)[None, :]
    shifted = tl.gather(acc, tl.minimum(m + n // outputs, BLOCK_M - 1), 0)
    return tl.sum(tl.reshape(shifted, [BLOCK_M, SHIFT, outputs]), 1)


@triton.jit
def _tile_sums(
    x, w, mean, rstd, gamma, beta, slope, row, column, inside, n, known, height, width,
    top, left, last_y, last_x, taps_y, taps_x, first, step_y, step_x,
    C: tl.constexpr, R: tl.constexpr, STEP: tl.constexpr, R_APART: tl.constexpr,
    WHOLE: tl.constexpr, FLAT: tl.constexpr, ACT: tl.constexpr,
    PADDING: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """_sums, of a tile that reads x from top, left to last_y, last_x."""
    # Most tiles read no padding, and need neither its arithmetic nor masks.
    if (tl.minimum(top, left) >= 0) & (last_y < height) & (last_x < width):
        acc = _sums(
            x, w, mean, rstd, gamma, beta, slope, row, column, None, n, known, height, width,
            taps_y, taps_x, first, step_y, step_x, C, R, STEP, R_APART, WHOLE, FLAT, ACT, "none",
            PRECISION, BLOCK_M, BLOCK_N, BLOCK_R,
        )  # fmt: skip
    else:
        acc = _sums(
            x, w, mean, rstd, gamma, beta, slope, row, column, inside, n, known, height, width,
            taps_y, taps_x, first, step_y, step_x, C, R, STEP, R_APART, WHOLE, FLAT, ACT, PADDING,
            PRECISION, BLOCK_M, BLOCK_N, BLOCK_R,
        )  # fmt: skip
        # If both branches ended alike, the compiler would merge their ends, and shared memory would
        # be allocated to both at once.
        acc = tl.where(inside, acc, 0.0)
    return acc


@triton.jit
def _finish(
    acc, bias, y, means, squares, pixel, valid, count, k, at, K: tl.constexpr
):  # fmt: skip
    """Add the bias, store y at `pixel` and the statistics `at` their tile."""
    if bias is not None:
        acc += tl.load(bias + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    place = y + pixel * K + k[None, :]
    tl.store(place, acc.to(y.dtype.element_ty), mask=valid & (k < K)[None, :])
    if means is not None:
        mean = tl.sum(tl.where(valid, acc, 0.0), 0) / count
        centred = tl.where(valid, acc - mean[None, :], 0.0)
        tl.store(means + at, mean, mask=k < K)
        tl.store(squares + at, tl.sum(centred * centred, 0), mask=k < K)


@triton.jit
def convolution_kernel(
    x,
    w,  # [K, KH, KW, C], TRANSPOSED: [C, KH, KW, K]
    mean,  # [images, C], as rstd; None where nothing is normalised
    rstd,
    gamma,  # [C] or None
    beta,
    bias,  # [K] or None
    y,
    means,  # [images, K, tiles]: of the pixels of a tile; None where no statistics are wanted
    squares,  # the same: the sums of the squared distances from them
    slope, height, width, rows, columns, tiles, tiles_x,  # rows and columns: those of one phase
    C: tl.constexpr, K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr, UP: tl.constexpr, PAD: tl.constexpr, ACT: tl.constexpr,
    PADDING: tl.constexpr, FLAT: tl.constexpr, SHIFT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    TAPS_X: tl.constexpr = 1 if FLAT or SHIFT > 1 else KW
    OUTPUTS: tl.constexpr = BLOCK_N // SHIFT
    BLOCKS: tl.constexpr = (K + OUTPUTS - 1) // OUTPUTS
    BLOCK_M: tl.constexpr = BLOCK_H * BLOCK_W
    WIDTH: tl.constexpr = BLOCK_W - KW + 1 if SHIFT > 1 else BLOCK_W
    program = tl.program_id(0)
    block = program % BLOCKS
    tile = program // BLOCKS % tiles
    image = (program // (BLOCKS * tiles)).to(tl.int64)
    phase = tile % (UP * UP)
    top, left, count = tile_pixels(tile // (UP * UP), rows, columns, tiles_x, BLOCK_H, WIDTH)
    begin_y, taps_y, first_y, step_y = _axis(phase // UP, PAD, KH, UP)
    begin_x, taps_x, first_x, step_x = _axis(phase % UP, PAD, TAPS_X, UP)
    m = tl.arange(0, BLOCK_M)[:, None]
    row = top if BLOCK_H == 1 else top + m // BLOCK_W
    column = left + m % BLOCK_W
    inside = (row < rows) & (column < columns + BLOCK_W - WIDTH)
    x += image * height * width * C
    if mean is not None:
        mean += image * C
        rstd += image * C
    n, known = _columns(tl.arange(0, BLOCK_N), block, C, K, KH, KW, TRANSPOSED, SHIFT, BLOCK_N)
    first_row = top * STRIDE + begin_y
    first_column = left * STRIDE + begin_x
    acc = _tile_sums(
        x, w, mean, rstd, gamma, beta, slope, row * STRIDE + begin_y, column * STRIDE + begin_x,
        inside, n, known, height, width, first_row, first_column,
        first_row + (BLOCK_H - 1) * STRIDE + taps_y - 1,
        first_column + (BLOCK_W - 1) * STRIDE + (KW if FLAT else taps_x) - 1,
        taps_y, taps_x, first_y * TAPS_X + first_x, step_y * TAPS_X, step_x,
        C, KW * C if FLAT else C, KW // TAPS_X * (K if TRANSPOSED else C),
        KH * KW * K if TRANSPOSED else 1, K % OUTPUTS == 0 and KW % SHIFT == 0, FLAT, ACT, PADDING,
        PRECISION, BLOCK_M, BLOCK_N, BLOCK_R,
    )  # fmt: skip
    if SHIFT > 1:
        acc = _sum_shifted(acc, SHIFT, BLOCK_M, BLOCK_N)
    k = block * OUTPUTS + tl.arange(0, OUTPUTS)
    valid = (row < rows) & (column < tl.minimum(columns, left + WIDTH))
    y += image * (rows * UP) * (columns * UP) * K
    pixel = (row * UP + phase // UP) * (columns * UP) + column * UP + phase % UP
    at = (image * K + k) * tiles + tile
    _finish(acc, bias, y, means, squares, pixel, valid, count, k, at, K)


@triton.jit
def combine_kernel(
    means,  # [images * K, tiles]
    squares,
    mean,  # [images * K]
    rstd,
    eps,
    rows,
    columns,
    tiles,
    tiles_x,
    UP: tl.constexpr,
    BLOCK_H: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    channel = tl.program_id(0).to(tl.int64)
    lane_count = tl.zeros([BLOCK_T], tl.float32)
    lane_mean = tl.zeros([BLOCK_T], tl.float32)
    lane_square = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, tiles, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        there = tile < tiles
        _, _, pixels = tile_pixels(tile // (UP * UP), rows, columns, tiles_x, BLOCK_H, WIDTH)
        count = tl.where(there, pixels, 0).to(tl.float32)
        distance = tl.load(means + channel * tiles + tile, mask=there, other=0.0) - lane_mean
        total = lane_count + count
        part = count / tl.maximum(total, 1.0)
        lane_square += tl.load(squares + channel * tiles + tile, mask=there, other=0.0)
        lane_square += distance * distance * (lane_count * part)
        lane_mean += distance * part
        lane_count = total
    pixels = tl.sum(lane_count, 0)
    total_mean = tl.sum(lane_mean * (lane_count / pixels), 0)
    distance = lane_mean - total_mean
    variance = tl.sum(lane_square / pixels + distance * distance * (lane_count / pixels), 0)
    tl.store(mean + channel, total_mean)
    tl.store(rstd + channel, 1 / tl.sqrt(variance + eps))
