"""Houses as upright walls in perspective: their style, their place and what of them is seen."""

from dataclasses import dataclass

import numpy as np

from pix2pixhd_fast.data.synthetic.canvas import Canvas
from pix2pixhd_fast.data.synthetic.texture import Array, Colour, mix, random_colour

BUILDING = 11
NEAREST = 2.2

_PLASTER = ((0.86, 0.80, 0.68), (0.80, 0.69, 0.54), (0.87, 0.84, 0.79), (0.76, 0.57, 0.45),
            (0.70, 0.71, 0.70), (0.83, 0.71, 0.48), (0.70, 0.75, 0.78),
            (0.80, 0.62, 0.56))  # fmt: skip
_BRICK = ((0.56, 0.30, 0.23), (0.49, 0.28, 0.22), (0.62, 0.41, 0.30), (0.54, 0.38, 0.30))
_CONCRETE = ((0.66, 0.66, 0.65), (0.74, 0.73, 0.70), (0.58, 0.61, 0.64))
_ROOF = ((0.46, 0.25, 0.20), (0.28, 0.28, 0.31), (0.38, 0.30, 0.27), (0.50, 0.31, 0.23))
_ACCENT = ((0.60, 0.12, 0.12), (0.10, 0.30, 0.19), (0.12, 0.21, 0.42), (0.70, 0.48, 0.12),
           (0.18, 0.18, 0.20), (0.40, 0.15, 0.30))  # fmt: skip


@dataclass(frozen=True)
class Style:
    """Looks of one house; lengths in metres.

    `window` (width, sill, lintel) is in shares of bay and floor; `table` [16, 32] holds the chances
    of single windows and doors.
    """

    material: str
    wall: Colour
    trim: Colour
    roof: Colour
    accent: Colour
    floor: float
    bay: float
    ground_floor: float
    window: tuple[float, float, float]
    shop: bool
    balconies: bool
    shutters: bool
    table: Array


def random_style(rng: np.random.Generator) -> Style:
    """A house of brick, plaster or concrete."""
    material = str(rng.choice(["plaster", "plaster", "plaster", "brick", "brick", "concrete"]))
    colours = {"plaster": _PLASTER, "brick": _BRICK, "concrete": _CONCRETE}[material]
    modern = material == "concrete"
    width = rng.uniform(0.62, 0.84) if modern else rng.uniform(0.38, 0.52)
    sill, lintel = (0.28, 0.86) if modern else (0.24 + 0.08 * rng.random(), 0.80)
    trim = 0.45 if modern and rng.random() < 0.5 else rng.uniform(0.76, 0.90)
    return Style(
        material=material,
        wall=random_colour(rng, colours, 0.04),
        trim=(trim, trim * 0.98, trim * 0.94),
        roof=random_colour(rng, _ROOF, 0.03),
        accent=random_colour(rng, _ACCENT, 0.04),
        floor=float(rng.uniform(2.9, 3.5)),
        bay=float(rng.uniform(2.2, 3.3)),
        ground_floor=float(rng.uniform(3.5, 4.3)),
        window=(float(width), float(sill), float(lintel)),
        shop=bool(rng.random() < 0.5),
        balconies=bool(rng.random() < 0.3),
        shutters=bool(not modern and rng.random() < 0.25),
        table=rng.random((16, 32)).astype(np.float32),
    )


@dataclass(frozen=True)
class Wall:
    """An upright wall from camera (x, z) `start` to `stop`; `height` to the eaves, `roof` above it.

    `normal` (x, z) points out of the house, `lit` is the share of sun that reaches it, `front`
    tells the side on the street from a flank.
    """

    start: tuple[float, float]
    stop: tuple[float, float]
    height: float
    roof: float
    style: Style
    normal: tuple[float, float]
    lit: float
    front: bool
    label: int = BUILDING

    @property
    def nearest(self) -> float:
        """Smallest distance z."""
        return min(self.start[1], self.stop[1])


@dataclass(frozen=True)
class View:
    """A wall as seen: the box of pixels, and wall coordinates of each pixel in it.

    `s` [w] metres along the wall, `hs` [w] half a pixel of it, `z` [w], `y` [h, w] metres above the
    ground, `hy` [w] half a pixel of it, `cover` [h, w] share of the pixel inside the outline.
    """

    left: int
    top: int
    s: Array
    hs: Array
    z: Array
    y: Array
    hy: Array
    cover: Array
    length: float


def view_of(canvas: Canvas, wall: Wall, skyline: Array, crest: Array | None = None) -> View | None:
    """The pixels of a wall that are in the frame and above `skyline`, or None.

    `skyline` [W] is the uppermost row that nearer walls cover in each column; it is raised by this
    one. `crest` raises the upper edge, by one value for each 25 cm.
    """
    camera = canvas.world.camera
    columns = _columns(canvas, wall)
    if columns is None:
        return None
    left, right = columns
    length, share, turn, z = _crossings(canvas, wall, left, right)
    s = (share * length).astype(np.float32)
    high = wall.height + _roof_line(wall, s, length)
    if crest is not None:
        high = high + np.interp(s * 4, np.arange(crest.size), crest, period=crest.size)
    scale = 2 * camera.focal * canvas.height / z
    horizon = camera.v0 * canvas.height
    upper = horizon + scale * (camera.height - high)
    lower = np.minimum(horizon + scale * camera.height, skyline[left:right] + 2)
    np.minimum(skyline[left:right], np.ceil(upper), out=skyline[left:right])
    seen = np.flatnonzero((upper < lower) & (upper < canvas.height) & (lower > 0))
    if not seen.size:
        return None
    part = np.s_[seen[0] : seen[-1] + 1]
    edges = (upper[part].astype(np.float32), lower[part].astype(np.float32))
    y, cover, top = _rows(canvas, edges, scale[part].astype(np.float32))
    hs = np.abs(turn * (length / 2)).astype(np.float32)
    hy = (0.5 / scale[part]).astype(np.float32)
    first = left + int(seen[0])
    return View(first, top, s[part], hs[part], z[part].astype(np.float32), y, hy, cover, length)


def _crossings(
    canvas: Canvas, wall: Wall, left: int, right: int
) -> tuple[float, Array, Array, Array]:
    """Where the sight lines of columns [w] meet a wall.

    Its length, the share of it at each column, how much that changes per column, the distance z.
    """
    camera = canvas.world.camera
    (x, near), run = wall.start, np.subtract(wall.stop, wall.start)
    slope = ((np.arange(left, right) + 0.5) / canvas.width - camera.u0) / camera.focal
    step = run[0] - slope * run[1]
    share = (slope * near - x) / step
    turn = (near * run[0] - x * run[1]) / step**2 / (camera.focal * canvas.width)
    return float(np.hypot(*run)), share, turn, near + share * run[1]


def _columns(canvas: Canvas, wall: Wall) -> tuple[int, int] | None:
    """First and last column (exclusive) of a wall in the frame, or None."""
    camera = canvas.world.camera
    ends = [np.array(wall.start, float), np.array(wall.stop, float)]
    if max(end[1] for end in ends) <= NEAREST:
        return None
    for first, second in ((0, 1), (1, 0)):
        if ends[first][1] < NEAREST:
            share = (NEAREST - ends[first][1]) / (ends[second][1] - ends[first][1])
            ends[first] = ends[first] + share * (ends[second] - ends[first])
    u = [(camera.u0 + camera.focal * x / z) * canvas.width for x, z in ends]
    left, right = max(int(np.ceil(min(u) - 0.5)), 0), min(int(np.ceil(max(u) - 0.5)), canvas.width)
    return (left, right) if right > left else None


def _rows(canvas: Canvas, edges: tuple[Array, Array], scale: Array) -> tuple[Array, Array, int]:
    """Height above ground and cover [h, w] of the rows between two edges [w], and the first row."""
    camera = canvas.world.camera
    upper, lower = edges
    top = max(int(np.floor(upper.min())), 0)
    bottom = max(min(int(np.ceil(lower.max())), canvas.height), top + 1)
    rows = np.arange(top, bottom, dtype=np.float32)[:, None]
    cover = np.clip(rows + 1 - upper, 0, 1)
    cover *= np.clip(lower - rows, 0, 1)
    horizon = np.float32(camera.v0 * canvas.height - 0.5)
    return np.float32(camera.height) + (horizon - rows) / scale, cover, top


def _roof_line(wall: Wall, s: Array, length: float) -> Array:
    """Height of the roof above the eaves along the wall: chimneys, and slopes above a flank."""
    if wall.roof <= 0:
        return np.zeros_like(s)
    roof = np.float32(wall.roof)
    if not wall.front:
        return np.clip(np.minimum(s, length - s) / np.float32(0.9), 0, 1) * roof
    line = np.full_like(s, roof)
    for row in range(2):
        place = np.float32((0.2 + 0.6 * float(wall.style.table[row, 0])) * length)
        line = np.where(np.abs(s - place) < 0.8, roof + np.float32(0.7), line)
    return line


def finish(canvas: Canvas, wall: Wall, view: View, image: Array) -> None:
    """Light and haze on the albedo `image` [3, h, w], then the three maps."""
    light = canvas.world.light
    normal = np.array([wall.normal[0], 0.0, wall.normal[1]], np.float32)
    tone = light.on(normal, wall.lit)
    if not wall.front:
        tone = tone * 0.94
    image *= tone[:, None, None]
    mix(image, light.sky_low, canvas.haze(view.z))
    canvas.stamp(view.left, view.top, image, view.cover, wall.label, wall.label)
