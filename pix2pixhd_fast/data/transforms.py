"""Scaling, cropping and mirroring: the same window of every map and picture of a sample."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from pix2pixhd_fast.options import Options


@dataclass(frozen=True)
class View:
    """What a sample shows of its scene: scaled to `height` x `width`, cut out, then mirrored.

    The cut-out is rows `top` ... `top + rows` - 1, columns `left` ... `left + columns` - 1 of the
    scaled picture, in pixels.
    """

    height: int
    width: int
    top: int
    left: int
    rows: int
    columns: int
    mirrored: bool


def scaled_size(height: int, width: int, options: Options) -> tuple[int, int]:
    """Height and width that `resize_or_crop` scales a picture of `height` x `width` to.

    resize_and_crop: loadSize x loadSize; scale_width, scale_width_and_crop: loadSize wide, height
    in proportion, rounded down; none: both sides rounded to the nearest multiple (at least one) of
    the total stride of G; crop: unchanged.
    """
    mode = options.resize_or_crop
    if mode == "resize_and_crop":
        return options.loadSize, options.loadSize
    if mode.startswith("scale_width"):
        return max(1, int(options.loadSize * height / width)), options.loadSize
    if mode == "none":
        enhancers = options.n_local_enhancers if options.netG == "local" else 0
        multiple = 2 ** (options.n_downsample_global + enhancers)
        return _rounded(height, multiple), _rounded(width, multiple)
    return height, width


def draw_view(options: Options, height: int, width: int, words: tuple[int, int, int]) -> View:
    """The view of a scene of `height` x `width`, drawn from three random words of 64 bits.

    The crop (modes with crop) is a square of fineSize at a uniformly random place; a side that is
    smaller than fineSize is taken whole. Mirrored with probability 1/2 when training, unless
    `no_flip`.
    """
    height, width = scaled_size(height, width, options)
    rows, columns = height, width
    if options.resize_or_crop.endswith("crop"):
        rows, columns = min(rows, options.fineSize), min(columns, options.fineSize)
    left = words[0] * (width - columns + 1) >> 64
    top = words[1] * (height - rows + 1) >> 64
    mirrored = options.isTrain and not options.no_flip and words[2] >> 63 == 1
    return View(height, width, top, left, rows, columns, mirrored)


def view_map(array: np.ndarray, view: View) -> np.ndarray:
    """`view` of ids or features [H, W, ...], nearest neighbour: [rows, columns, ...], same type."""
    if array.shape[:2] == (view.height, view.width):
        return _cut(array, view)
    added = array.dtype != np.uint16
    rows = _nearest(array.shape[0], view.height, added)[view.top : view.top + view.rows]
    columns = _nearest(array.shape[1], view.width, added)[view.left : view.left + view.columns]
    columns = columns[::-1] if view.mirrored else columns
    return array.take(rows, axis=0).take(columns, axis=1)


def view_picture(array: np.ndarray, view: View) -> np.ndarray:
    """`view` of a picture [H, W, C], scaled bicubically: [rows, columns, C], the type of `array`.

    uint8 and uint16 are rounded and stay in their range; float32 may overshoot, as bicubic does.
    """
    if array.shape[:2] == (view.height, view.width):
        return _cut(array, view)
    size = (view.width, view.height)
    if array.dtype == np.uint8 and array.shape[2] == 3:
        return _cut(np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC)), view)
    scaled = np.empty((view.height, view.width, array.shape[2]), array.dtype)
    for channel in range(array.shape[2]):
        scaled[:, :, channel] = _bicubic(np.ascontiguousarray(array[:, :, channel]), size)
    return _cut(scaled, view)


def normalised(array: np.ndarray) -> np.ndarray:
    """Picture [H, W, C] as float32 [C, H, W]: uint8 and uint16 to [-1, 1], float32 unchanged."""
    planes = np.empty((array.shape[2], *array.shape[:2]), np.float32)
    for channel, plane in enumerate(planes):
        if array.dtype == np.float32:
            plane[:] = array[:, :, channel]
        else:
            np.take(_levels(array.dtype), array[:, :, channel], out=plane, mode="clip")
    return planes


def _rounded(side: int, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple


def _cut(array: np.ndarray, view: View) -> np.ndarray:
    window = array[view.top : view.top + view.rows, view.left : view.left + view.columns]
    return window[:, ::-1] if view.mirrored else window


@lru_cache(maxsize=64)
def _nearest(source: int, target: int, added: bool) -> np.ndarray:
    """For each of `target` pixels the one of `source` below its centre.

    Where a centre lies between two pixels, rounding decides. It is that of Pillow, so that maps are
    those of the original: steps added up one by one, but multiplied for 16-bit maps. The two differ
    (by one pixel, at such centres) for 18 % of all pairs of sizes below 200.
    """
    step = source / target
    if added:
        centres = np.add.accumulate(np.append(step * 0.5, np.full(target - 1, step)))
    else:
        centres = (np.arange(target) + 0.5) * step
    return np.minimum(centres.astype(np.intp), source - 1)


def _bicubic(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One channel [H, W], uint8, uint16 or float32, to `size` (width, height)."""
    wide = plane if plane.dtype == np.uint8 else plane.astype(np.float32)
    scaled = np.asarray(Image.fromarray(wide).resize(size, Image.Resampling.BICUBIC))
    return scaled if plane.dtype != np.uint16 else np.rint(scaled).clip(0, 65535)


@lru_cache(maxsize=2)
def _levels(dtype: np.dtype) -> np.ndarray:
    """float32 in [-1, 1] of every value of an unsigned type, rounded like x / max, - 0.5, / 0.5."""
    values = np.arange(np.iinfo(dtype).max + 1, dtype=np.float32)
    half = np.float32(0.5)
    return (values / values[-1] - half) / half
