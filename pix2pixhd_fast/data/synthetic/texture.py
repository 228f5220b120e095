"""Noise tiles and exactly filtered periodic patterns: the materials of the synthetic scenes."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

Array = np.ndarray
Colour = tuple[float, float, float]

TILE = 256


def resize(values: Array, width: int, height: int) -> Array:
    """`values` float32 [h, w], bicubic, at [height, width]."""
    picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def _octave(rng: np.random.Generator, cells: int) -> Array:
    """Smooth periodic noise in [-0.5, 0.5] with `cells` bumps along each side of the tile."""
    grid = rng.random((cells, cells), dtype=np.float32) - 0.5
    border = 3
    picture = Image.fromarray(np.pad(grid, border, mode="wrap"))
    box = (border, border, border + cells, border + cells)
    return np.asarray(picture.resize((TILE, TILE), Image.Resampling.BICUBIC, box=box))


@cache
def noise(name: str) -> Array:
    """A periodic tile float32 [256, 256], mean 0, deviation 1: cloud, patch, grain or leaf."""
    cells, gain = {
        "cloud": ((4, 8, 16, 32, 64), 0.55),
        "patch": ((8, 16, 32, 64), 0.7),
        "grain": ((64, 128, 256), 1.0),
        "leaf": ((32, 64, 128), 0.9),
    }[name]
    rng = np.random.default_rng([ord(letter) for letter in name])
    total = sum(gain**power * _octave(rng, count) for power, count in enumerate(cells))
    if name == "leaf":
        total = total / total.std() * 0.5 + _leaves(rng)
    total = total - total.mean()
    tile = (total / total.std()).astype(np.float32)
    tile.setflags(write=False)
    return tile


def _leaves(rng: np.random.Generator) -> Array:
    """A tile of overlapping small leaves of random brightness in about [-1, 1]."""
    picture = Image.new("L", (TILE, TILE), 128)
    draw = ImageDraw.Draw(picture)
    turns = rng.random((1600, 5))
    for x, y, angle, length, tone in turns:
        along = np.array([np.cos(angle * 6.283), np.sin(angle * 6.283)]) * (4 + 4 * length)
        across = np.array([-along[1], along[0]]) * 0.45
        for shift in ((0, 0), (-TILE, 0), (0, -TILE), (-TILE, -TILE)):
            centre = np.array([x, y]) * TILE * 1.06 + shift
            corners = [centre + along, centre + across, centre - along, centre - across]
            draw.polygon([tuple(corner) for corner in corners], fill=int(tone * 255))
    return np.asarray(picture, dtype=np.float32) / 127.5 - 1


@cache
def mips(name: str) -> tuple[Array, ...]:
    """The tile and its halvings: 256, 128, ... 8 texels a side."""
    levels = [noise(name)]
    while levels[-1].shape[0] > 8:
        side = levels[-1].shape[0] // 2
        levels.append(levels[-1].reshape(side, 2, side, 2).mean((1, 3)))
    return tuple(levels)


def sample(name: str, down: Array, across: Array, footprint: float = 0.0) -> Array:
    """Look the tile up at texel coordinates that broadcast together.

    `footprint` (texels per pixel) picks the halving of the tile that does not alias.
    """
    level = int(np.clip(np.floor(np.log2(max(footprint, 1.0))), 0, 5))
    tile = mips(name)[level]
    scale, last = 0.5**level, tile.shape[0] - 1
    rows = (np.asarray(down) * scale).astype(np.int32) & last
    columns = (np.asarray(across) * scale).astype(np.int32) & last
    return tile.ravel()[rows * (last + 1) + columns]


def window(
    name: str, corner: tuple[float, float], step: tuple[float, float], size: tuple[int, int]
) -> Array:
    """The tile on a grid of `size` (h, w), from texel `corner` (row, column), `step` texels apart.

    Smooth where the tile is magnified, from a halving of the tile where it is reduced.
    """
    if max(step) >= 0.8:
        rows, columns = (
            first + pace * np.arange(count, dtype=np.float32)
            for first, pace, count in zip(corner, step, size, strict=True)
        )
        return sample(name, rows[:, None], columns[None], step[1])
    indices, box = [], []
    for first, pace, count in zip(corner, step, size, strict=True):
        start = int(first) - 3
        stop = int(first + pace * count) + 4
        indices.append(np.arange(start, stop) & (TILE - 1))
        box.append((first - start, first - start + pace * count))
    picture = Image.fromarray(noise(name)[np.ix_(*indices)])
    pixels = (box[1][0], box[0][0], box[1][1], box[0][1])
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC, box=pixels))


def pulse(position: Array, half: Array, start: float, stop: float) -> Array:
    """Share of [position - half, position + half] inside [start, stop) of each period of length 1.

    An exact box filter: a pattern that is finer than a pixel becomes its mean instead of aliasing.
    """
    width = np.float32(stop - start)

    def integral(t: Array) -> Array:
        whole = np.floor(t)
        t = t - whole
        t -= np.float32(start)
        np.clip(t, 0, width, out=t)
        whole *= width
        t += whole
        return t

    share = integral(position + half)
    share -= integral(position - half)
    share /= 2 * half
    return share


def band(position: Array, half: Array, start: float, stop: float) -> Array:
    """Share of [position - half, position + half] inside [start, stop)."""
    upper = np.minimum(position + half, np.float32(stop))
    upper -= np.maximum(position - half, np.float32(start))
    np.maximum(upper, 0, out=upper)
    upper /= 2 * half
    return upper


def mix(image: Array, colour: Colour | Array, weight: Array | float) -> None:
    """Blend `colour` into `image` [3, h, w] in place by `weight` (broadcasts to [h, w])."""
    for plane, value in zip(image, colour, strict=True):
        plane += (value - plane) * weight


def planes(colour: Colour | Array, shade: Array) -> Array:
    """`shade` [h, w] times a colour: float32 [3, h, w]."""
    return np.asarray(colour, np.float32)[:, None, None] * shade


def random_colour(rng: np.random.Generator, choices: tuple[Colour, ...], spread: float) -> Colour:
    """One of `choices`, each channel changed by up to `spread`, in [0, 1]."""
    base = np.asarray(choices[int(rng.integers(len(choices)))])
    red, green, blue = np.clip(base + (rng.random(3) - 0.5) * 2 * spread, 0, 1)
    return float(red), float(green), float(blue)
