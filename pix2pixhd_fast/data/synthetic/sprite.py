"""Sprites: objects drawn finer than the canvas, then put on all three maps by one mask."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from pix2pixhd_fast.data.synthetic.canvas import Canvas
from pix2pixhd_fast.data.synthetic.texture import Array, Colour, noise

Ink = tuple[int, int, int, int]
Point = tuple[float, float]


def ink(colour: Colour | Array) -> Ink:
    """An opaque 8-bit colour; 1.0 is white, more is clipped."""
    red, green, blue = colour.tolist() if isinstance(colour, np.ndarray) else colour
    return (
        255 if red > 1 else int(red * 255 + 0.5),
        255 if green > 1 else int(green * 255 + 0.5),
        255 if blue > 1 else int(blue * 255 + 0.5),
        255,
    )


class Sprite:
    """A picture with cover inside a box of pixels; `fine` sub-pixels along each side of a pixel.

    Colours are albedo times light. `empty` tells that the box is outside the frame: then nothing
    may be drawn. The picture is of mode CMYK because Pillow averages its four channels as they are
    (here red, green, blue, cover), where it would divide those of RGBA by the cover, at twice
    the time.
    """

    def __init__(self, canvas: Canvas, box: tuple[float, float, float, float]):
        self.canvas = canvas
        self.left, self.top = max(int(box[0] // 1), 0), max(int(box[1] // 1), 0)
        width = min(int(box[2] // 1) + 2, canvas.width) - self.left
        height = min(int(box[3] // 1) + 2, canvas.height) - self.top
        self.empty = width <= 0 or height <= 0
        if self.empty:
            return
        longest = max(width, height)
        self.fine = 4 if longest < 100 else 3 if longest < 220 else 2
        self.picture = Image.new("CMYK", (width * self.fine, height * self.fine))
        self.draw = ImageDraw.Draw(self.picture)

    def local(self, pixels: Array) -> Array:
        """Pixel coordinates of the canvas [..., 2] to sub-pixels of the sprite."""
        return (pixels - (self.left, self.top)) * self.fine - 0.5

    def polygon(self, pixels: Array, colour: Colour | Array) -> None:
        """Fill a polygon [n, 2] given in pixels of the canvas."""
        self.draw.polygon(self.local(pixels).ravel().tolist(), fill=ink(colour))

    def stamp(self, label: int, inst: int, z: float, ramp: float = 0.0, grain: float = 0.0) -> None:
        """Put the sprite on the canvas at distance z.

        `ramp` brightens towards the top and darkens towards the bottom, `grain` adds fine texture.
        """
        reduced = np.asarray(self.picture.reduce(self.fine))
        planes = reduced.transpose(2, 0, 1) * np.float32(1 / 255)
        colour, cover = planes[:3], planes[3]
        height, width = cover.shape
        if ramp:
            colour *= np.linspace(1 + ramp, 1 - ramp, height, dtype=np.float32)[None, :, None]
        if grain and height > 40:
            rows, columns = np.arange(height)[:, None] & 255, np.arange(width)[None] & 255
            colour *= 1 + np.float32(grain) * noise("grain")[rows, columns]
        haze = self.canvas.haze(z)
        colour *= 1 - haze
        colour += (self.canvas.sky_low * haze)[:, None, None] * cover
        self.canvas.stamp_covered(self.left, self.top, colour, cover, label, inst)


class Board(Sprite):
    """An upright picture at camera (x, z): shapes are given in metres right of and above its foot.

    `squash` makes everything narrower, as if it were turned away.
    """

    def __init__(
        self, canvas: Canvas, x: float, z: float, box: tuple[float, float, float, float],
        squash: float = 1.0,
    ):  # fmt: skip
        across, down = canvas.scale(z)
        across *= squash
        foot_x, foot_y = canvas.place(x, 0.0, z)
        self.z = z
        left, low, right, high = box
        super().__init__(canvas, (foot_x + left * across, foot_y - high * down,
                                  foot_x + right * across, foot_y - low * down))  # fmt: skip
        if not self.empty:
            self.x0 = (foot_x - self.left) * self.fine - 0.5
            self.y0 = (foot_y - self.top) * self.fine - 0.5
            self.kx, self.ky = across * self.fine, down * self.fine

    def at(self, x: float, y: float) -> Point:
        """Metres to sub-pixels."""
        return self.x0 + x * self.kx, self.y0 - y * self.ky

    def shape(self, points: Iterable[Sequence[float]], colour: Colour | Array) -> None:
        """Fill a polygon."""
        corners = [self.at(x, y) for x, y in points]
        self.draw.polygon(corners, fill=ink(colour))

    def box(
        self, left: float, low: float, right: float, high: float, colour: Colour | Array
    ) -> None:
        """Fill a rectangle."""
        self.shape(((left, low), (right, low), (right, high), (left, high)), colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour | Array) -> None:
        """Fill a disc."""
        self._disc(self.at(x, y), radius * self.kx, radius * self.ky, ink(colour))

    def _disc(self, centre: Point, rx: float, ry: float, fill: Ink) -> None:
        x, y = centre
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)

    def limb(
        self, start: Point, stop: Point, first: float, last: float, colour: Colour | Array
    ) -> None:
        """Fill a bar with round ends between two points, `first` and `last` metres in radius."""
        fill = ink(colour)
        (x0, y0), (x1, y1) = self.at(*start), self.at(*stop)
        if max(first, last) * self.ky < 1.2:
            self.draw.line((x0, y0, x1, y1), fill=fill, width=max(1, round(2 * first * self.kx)))
            return
        dx, dy = (stop[0] - start[0]), (stop[1] - start[1])
        length = (dx * dx + dy * dy) ** 0.5
        if length > 0:
            across, down = -dy / length * self.kx, -dx / length * self.ky
            self.draw.polygon(
                (x0 + across * first, y0 + down * first, x1 + across * last, y1 + down * last,
                 x1 - across * last, y1 - down * last, x0 - across * first, y0 - down * first),
                fill=fill,
            )  # fmt: skip
        self._disc((x0, y0), first * self.kx, first * self.ky, fill)
        self._disc((x1, y1), last * self.kx, last * self.ky, fill)
