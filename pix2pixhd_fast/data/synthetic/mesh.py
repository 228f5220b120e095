"""Small solid models of flat faces, lit, culled, sorted and drawn as one sprite."""

from collections.abc import Sequence

import numpy as np

from pix2pixhd_fast.data.synthetic.canvas import Canvas
from pix2pixhd_fast.data.synthetic.sprite import Sprite
from pix2pixhd_fast.data.synthetic.texture import Array, Colour

Corners = Array | Sequence[tuple[float, float, float]]


class Mesh:
    """Faces in model coordinates: x forwards, y up, z to the right, metres, origin on the ground.

    Faces are planar polygons whose corners run counter-clockwise seen from outside. Faces of a
    higher layer are drawn over those of a lower one; inside a layer the farther is drawn first. A
    colour that is a number is that share of the paint, which is chosen when the model is drawn.
    """

    def __init__(self) -> None:
        self._corners: list[Array] = []
        self._faces: list[tuple[Colour | float, int, float]] = []
        self._packed: tuple[Array, ...] | None = None

    def face(
        self, corners: Corners, colour: Colour | float, layer: int = 1, glow: float = 0.0,
        mirror: bool = True,
    ) -> None:  # fmt: skip
        """Add a face, and its mirror image at -z; `glow` in [0, 1] makes it shine by itself."""
        points = np.asarray(corners, np.float64)
        self._corners.append(points)
        self._faces.append((colour, layer, glow))
        if mirror:
            self._corners.append((points * (1, 1, -1))[::-1])
            self._faces.append((colour, layer, glow))
        self._packed = None

    def draw(
        self, canvas: Canvas, place: tuple[float, float], turn: float, paint: Colour, lit: float,
        label: int,
    ) -> None:  # fmt: skip
        """Draw at camera (x, z) `place`, turned by `turn` radians (0 drives away, pi towards us).

        `lit` is the share of sun that reaches it. Nothing is drawn nearer than 1.5 m.
        """
        model, starts, counts, share, fixed, layers, glow = self._pack()
        cos, sin = np.cos(turn), np.sin(turn)
        points = np.empty_like(model)
        points[:, 0] = model[:, 2] * cos + model[:, 0] * sin + place[0]
        points[:, 1] = model[:, 1]
        points[:, 2] = model[:, 0] * cos - model[:, 2] * sin + place[1]
        if points[:, 2].min() < 1.5:
            return
        pixels = canvas.project(points)
        low, high = pixels.min(0), pixels.max(0)
        sprite = Sprite(canvas, (low[0], low[1], high[0], high[1]))
        if sprite.empty:
            return
        normals, order = _visible(canvas, points, starts, counts, layers)
        colours = share[order] * np.asarray(paint) + fixed[order]
        light = canvas.world.light.on(normals[order], lit)
        own = glow[order, None]
        tones = colours * (light * (1 - own) + own)
        gloss = np.clip(normals[order, 1:2] + 0.05, 0, 1) * (0.06 + 0.22 * (share[order] > 0))
        tones += canvas.sky_low * gloss * (1 - tones)
        inks = np.minimum(tones * 255 + 0.5, 255).astype(int).tolist()
        corners = sprite.local(pixels).tolist()
        for face, fill in zip(order.tolist(), inks, strict=True):
            start = starts[face]
            outline = [tuple(corner) for corner in corners[start : start + counts[face]]]
            sprite.draw.polygon(outline, fill=(*fill, 255))
        sprite.stamp(label, canvas.new_instance(label), place[1], ramp=0.04, grain=0.012)

    def _pack(self) -> tuple[Array, ...]:
        """Corners [n, 3]; per face: start, count, share of paint, fixed colour, layer, glow."""
        if self._packed is None:
            counts = np.array([len(corners) for corners in self._corners])
            colours, layers, glows = zip(*self._faces, strict=True)
            share = [c if isinstance(c, float) else 0.0 for c in colours]
            fixed = [(0.0, 0.0, 0.0) if isinstance(c, float) else c for c in colours]
            self._packed = (
                np.concatenate(self._corners), np.cumsum(counts) - counts, counts,
                np.array(share)[:, None], np.array(fixed), np.array(layers), np.array(glows),
            )  # fmt: skip
        return self._packed


def _visible(
    canvas: Canvas, points: Array, starts: Array, counts: Array, layers: Array
) -> tuple[Array, Array]:
    """Unit normals of all faces [m, 3], and the faces turned to us in the order of drawing."""
    first, second, third = points[starts], points[starts + 1], points[starts + 2]
    a, b = third - first, second - first
    normals = a[:, [1, 2, 0]] * b[:, [2, 0, 1]] - a[:, [2, 0, 1]] * b[:, [1, 2, 0]]
    normals /= np.maximum(np.sqrt((normals**2).sum(1, keepdims=True)), 1e-9)
    eye = np.array([0.0, canvas.world.camera.height, 0.0])
    visible = np.flatnonzero(((eye - first) * normals).sum(1) > 0)
    centres = np.add.reduceat(points, starts, axis=0) / counts[:, None]
    distance = ((centres[visible] - eye) ** 2).sum(1)
    return normals, visible[np.lexsort((-distance, layers[visible]))]


def quad(corners: Corners, a0: float, a1: float, b0: float, b1: float) -> Array:
    """The part of a four-cornered face between shares a (corner 0 to 1) and b (corner 0 to 3)."""
    p0, p1, p2, p3 = np.asarray(corners, float)

    def at(a: float, b: float) -> Array:
        return (p0 * (1 - a) + p1 * a) * (1 - b) + (p3 * (1 - a) + p2 * a) * b

    return np.array([at(a0, b0), at(a1, b0), at(a1, b1), at(a0, b1)])


def disc(
    x: float, y: float, z: float, radius: float, start: float = 0.0, stop: float = 1.0
) -> Array:
    """A polygon that faces +z: turns `start` to `stop` of a circle."""
    angle = np.linspace(start, stop, 19)[: None if stop - start < 1 else -1] * 2 * np.pi
    flat = np.full_like(angle, z)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle), flat], 1)


def box(
    mesh: Mesh, x: tuple[float, float], y: tuple[float, float], half: float,
    colour: Colour | float, layer: int = 1,
) -> dict[str, Array]:  # fmt: skip
    """Add a box, x[0] to x[1], y[0] to y[1], -half to half; returns front, back, right face."""
    (x0, x1), (y0, y1) = x, y
    faces = {
        "right": np.array([(x0, y0, half), (x1, y0, half), (x1, y1, half), (x0, y1, half)]),
        "front": np.array([(x1, y0, half), (x1, y0, -half), (x1, y1, -half), (x1, y1, half)]),
        "back": np.array([(x0, y0, -half), (x0, y0, half), (x0, y1, half), (x0, y1, -half)]),
    }
    roof = [(x0, y1, half), (x1, y1, half), (x1, y1, -half), (x0, y1, -half)]
    mesh.face(faces["right"], colour, layer)
    for corners in (faces["front"], faces["back"], roof):
        mesh.face(corners, colour, layer, mirror=False)
    return faces
