"""Trees and hedges: crowns of lit clumps with leafy edges."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image

from pix2pixhd_fast.data.synthetic.buildings import View, Wall, finish, view_of
from pix2pixhd_fast.data.synthetic.canvas import Canvas
from pix2pixhd_fast.data.synthetic.sprite import Board
from pix2pixhd_fast.data.synthetic.texture import Array, Colour, mips, mix, planes, sample, window

VEGETATION = 21
GRID = 128
CROWNS = 6

GREENS = ((0.25, 0.37, 0.13), (0.19, 0.32, 0.13), (0.31, 0.39, 0.14), (0.22, 0.35, 0.17),
          (0.37, 0.37, 0.14))  # fmt: skip


@lru_cache(maxsize=2 * CROWNS)
def crown(kind: int, flip: bool) -> tuple[Image.Image, Image.Image]:
    """Outline (1 inside, 0 outside) and brightness in [0, 1] of a crown, float, 128 x 128."""
    rng = np.random.default_rng((kind, 77))
    outline = np.zeros((GRID, GRID), np.float32)
    tone = np.full((GRID, GRID), 0.10, np.float32)
    count = 230
    angle, radius = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count)) * 0.80
    lobes = 1 - 0.13 * np.cos(angle * (2 + kind % 3) + kind)
    x = np.cos(angle) * radius * lobes * (0.88 + 0.06 * (kind % 3))
    y = np.sin(angle) * radius * lobes * 0.95
    depth = rng.random(count) - 0.9 * radius
    size = rng.uniform(0.08, 0.22, count) * (1.15 - 0.45 * radius)
    own = 0.34 + 0.20 * y + 0.16 * depth + 0.05 * np.sin(7.0 * np.arange(count))
    for k in np.argsort(depth):
        _clump(outline, tone, (x[k], y[k], size[k]), own[k])
    step = -1 if flip else 1
    layers = (outline, np.clip(tone, 0.03, 1))
    first, second = (Image.fromarray(np.ascontiguousarray(part[:, ::step])) for part in layers)
    return first, second


def _clump(outline: Array, tone: Array, place: tuple[float, float, float], own: float) -> None:
    """Put one round clump (x, y, size), lit from above, on the layers of a crown."""
    x, y, size = place
    reach = size * 1.15
    left, right = (max(int((side + 1) / 2 * GRID), 0) for side in (x - reach, x + reach + 0.02))
    top, bottom = (max(int((1 - side) / 2 * GRID), 0) for side in (y + reach, y - reach - 0.02))
    part = np.s_[top:bottom, left:right]
    across = (np.arange(GRID, dtype=np.float32) + 0.5) / (GRID / 2) - 1
    dx = (across[part[1]][None] - np.float32(x)) / np.float32(size)
    dy = (-across[part[0]][:, None] - np.float32(y)) / np.float32(size * 0.85)
    bump = 1 - dx * dx - dy * dy
    lit = np.float32(0.10) * np.sqrt(np.maximum(bump, 0)) + np.float32(0.17) * dy
    lit += np.float32(own)
    np.copyto(tone[part], lit, where=bump > 0)
    np.maximum(
        outline[part], np.minimum(bump * np.float32(1.2) + np.float32(0.3), 1), out=outline[part]
    )


@dataclass(frozen=True)
class Tree:
    """A tree at camera (x, z): heights and width in metres, `kind` picks the crown."""

    x: float
    z: float
    height: float
    width: float
    stem: float
    kind: int
    flip: bool
    colour: Colour
    lit: float

    def draw(self, canvas: Canvas) -> None:
        """Shadow, trunk, crown."""
        if not canvas.sees(self.x, self.z, self.width + 9):
            return
        self._shadow(canvas)
        self._trunk(canvas)
        self._crown(canvas)

    def _shadow(self, canvas: Canvas) -> None:
        if canvas.rows_on_ground(self.z, self.width) < 0.7:
            return
        angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        side, above, forward = canvas.world.light.sun
        reach = min(self.height * 0.6 / max(above, 0.3), 8.0) * self.lit
        x = self.x - side * reach + np.cos(angle) * self.width * 0.45
        z = self.z - forward * reach + np.sin(angle) * self.width * 0.45
        points = np.stack([x, np.zeros(16), np.maximum(z, 2.5)], 1)
        canvas.shadow(points, 0.18 + 0.24 * self.lit, 0.5)

    def _trunk(self, canvas: Canvas) -> None:
        thick, top = 0.05 + 0.018 * self.height, self.height * 0.58
        if canvas.scale(self.z)[0] * thick < 0.25:
            return
        board = Board(canvas, self.x, self.z, (-thick * 2, 0, thick * 2, top + 0.1))
        if board.empty:
            return
        light = canvas.world.light.on(np.array([0.0, 0.0, -1.0]), 0.5)
        side = float(np.sign(canvas.world.light.sun[0]))
        for share, tone in ((1.0, 0.15), (0.6, 0.22), (0.25, 0.28)):
            colour = np.array([1.0, 0.86, 0.70]) * tone * light
            lean = side * (1 - share) * thick * 0.45
            wide, slim = thick * share, thick * share * 0.62
            outline = ((lean - wide * 1.3, 0), (lean + wide * 1.3, 0), (lean + wide, 0.4),
                       (lean + slim, top), (lean - slim, top), (lean - wide, 0.4))  # fmt: skip
            board.shape(outline, colour)
        board.stamp(VEGETATION, VEGETATION, self.z, grain=0.09)

    def _crown(self, canvas: Canvas) -> None:
        across, down = canvas.scale(self.z)
        x, y = canvas.place(self.x, (self.height + self.stem) / 2, self.z)
        wide, high = round(self.width * across), round((self.height - self.stem) * down)
        if wide < 2 or high < 2:
            return
        left, top = round(x - wide / 2), round(y - high / 2)
        x0, x1 = max(left, 0), min(left + wide, canvas.width)
        y0, y1 = max(top, 0), min(top + high, canvas.height)
        if x1 <= x0 or y1 <= y0:
            return
        box = ((x0 - left) / wide, (y0 - top) / high, (x1 - left) / wide, (y1 - top) / high)
        size = (x1 - x0, y1 - y0)
        outline, tone = (_part(layer, box, size) for layer in crown(self.kind, self.flip))
        leaf, twig = self._leaves((x0 - left, y0 - top), size, (across, down))
        edge = np.float32(0.17) * leaf + np.float32(0.17) * twig
        edge *= np.clip(outline * 3 - np.float32(0.2), 0, 1)
        edge += outline - np.float32(0.41)
        cover = np.clip(edge * np.float32(max(5.0, wide / 24)) + np.float32(0.5), 0, 1)
        tone += np.float32(0.10) * leaf + np.float32(0.05) * twig
        image = leaf_colour(self.colour, np.clip(tone, 0.03, 1.1))
        image *= canvas.world.light.on(np.array([0.0, 0.6, -0.8]), self.lit)[:, None, None]
        mix(image, canvas.world.light.sky_low, canvas.haze(self.z))
        canvas.stamp(x0, y0, image, cover, VEGETATION, VEGETATION)

    def _leaves(
        self, corner: tuple[int, int], size: tuple[int, int], scale: tuple[float, float]
    ) -> tuple[Array, Array]:
        """Leaves of about 12 cm and twigs of about 50 cm in world scale, [h, w] each."""
        shift, grid = self.kind * 37.0 + 8, (size[1], size[0])
        parts = []
        for name, texel in (("leaf", 0.018), ("patch", 0.05)):
            step = (1 / (scale[1] * texel), 1 / (scale[0] * texel))
            start = (corner[1] * step[0] + shift, corner[0] * step[1] + shift)
            parts.append(window(name, start, step, grid))
        leaf, twig = parts
        return leaf, twig


def _part(
    layer: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int]
) -> Array:
    """The share `box` of a crown layer at `size` pixels."""
    pixels = tuple(min(share * GRID, GRID) for share in box)
    return np.array(layer.resize(size, Image.Resampling.BICUBIC, box=pixels))


def leaf_colour(colour: Colour, shade: Array) -> Array:
    """Foliage of brightness `shade`: dark and cool inside, yellowish where it is lit."""
    image = planes(colour, np.float32(0.22) + np.float32(2.0) * shade)
    image[0] += np.float32(0.07) * shade * shade
    image[2] += np.float32(0.025) * (1 - shade)
    return image


@dataclass(frozen=True)
class Hedge:
    """A long hedge or a line of bushes: a wall of leaves."""

    wall: Wall
    colour: Colour

    @property
    def nearest(self) -> float:
        """Smallest distance z."""
        return self.wall.nearest

    def view(self, canvas: Canvas, skyline: Array) -> View | None:
        """What is seen of it above nearer walls; raises `skyline`."""
        crest = mips("patch")[1][7] * np.float32(0.10 * self.wall.height)
        return view_of(canvas, self.wall, skyline, crest)

    def draw(self, canvas: Canvas, view: View) -> None:
        """Put the hedge on the maps."""
        height = np.float32(self.wall.height)
        pixel = float(np.median(view.hs)) * 2
        fine, coarse = np.float32(0.018), np.float32(0.05)
        leaf = sample("leaf", view.y / fine + 777, view.s / fine, pixel / 0.018)
        twig = sample("patch", view.y / coarse + 300, view.s / coarse, pixel / 0.05)
        clump = sample("patch", view.y / 0.11 + 99, view.s / 0.22, pixel / 0.2)
        rise = np.clip(view.y / height, 0, 1.1)
        shade = np.float32(0.10) + np.float32(0.24) * rise * rise
        shade += np.float32(0.08) * leaf + np.float32(0.06) * twig + np.float32(0.06) * clump
        wall = replace(self.wall, label=VEGETATION)
        finish(canvas, wall, view, leaf_colour(self.colour, np.clip(shade, 0.02, 1)))
