"""Cars, vans, buses and trucks at their places in the street."""

from dataclasses import dataclass

import numpy as np

from pix2pixhd_fast.data.synthetic.canvas import Canvas
from pix2pixhd_fast.data.synthetic.models import SHAPES, model
from pix2pixhd_fast.data.synthetic.texture import Array, Colour, random_colour

CAR, TRUCK, BUS = 26, 27, 28
LABELS = {"bus": BUS, "truck": TRUCK}
SIZES = {"bus": (11.5, 2.5), "truck": (7.6, 2.4)}
KINDS = (*SHAPES, "bus", "truck")

PAINT = ((0.70, 0.07, 0.07), (0.09, 0.18, 0.50), (0.79, 0.80, 0.81), (0.09, 0.09, 0.10),
         (0.52, 0.54, 0.57), (0.05, 0.30, 0.22), (0.84, 0.58, 0.08), (0.12, 0.38, 0.64),
         (0.78, 0.78, 0.76), (0.42, 0.07, 0.13), (0.24, 0.27, 0.31), (0.78, 0.30, 0.06),
         (0.36, 0.38, 0.41))  # fmt: skip
_CARGO = ((0.90, 0.90, 0.88), (0.88, 0.87, 0.83), (0.22, 0.40, 0.64), (0.74, 0.22, 0.16),
          (0.86, 0.62, 0.14), (0.22, 0.45, 0.32))  # fmt: skip
_TRANSIT = ((0.86, 0.66, 0.10), (0.76, 0.12, 0.12), (0.14, 0.40, 0.60), (0.90, 0.90, 0.88))


@dataclass(frozen=True)
class Vehicle:
    """A car, truck or bus at camera (x, z), turned by `turn` (0 drives away from the camera)."""

    x: float
    z: float
    turn: float
    kind: str
    colour: Colour
    lit: float

    def draw(self, canvas: Canvas) -> None:
        """Shadow on the ground, then the vehicle."""
        if not canvas.sees(self.x, self.z, 1.5 * size_of(self.kind)[0]):
            return
        self._shadow(canvas)
        fine = 1.6 * canvas.scale(self.z)[1] > 60
        mesh = model(self.kind, fine)
        label = LABELS.get(self.kind, CAR)
        mesh.draw(canvas, (self.x, self.z), self.turn, self.colour, self.lit, label)

    def _shadow(self, canvas: Canvas) -> None:
        length, width = size_of(self.kind)
        if canvas.rows_on_ground(self.z, length) < 0.7:
            return
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        along = np.array([1, 1, -1, -1]) * length / 2
        across = np.array([1, -1, -1, 1]) * width / 2
        x = self.x + across * cos + along * sin
        z = self.z + along * cos - across * sin
        points = np.stack([x, np.zeros(4), np.maximum(z, 2.5)], 1)
        canvas.shadow(points, 0.72, 0.16)
        if self.lit:
            side, above, forward = canvas.world.light.sun
            reach = min(1.2 / max(above, 0.3), 2.4)
            cast = np.concatenate([points, points - np.array([side, 0, forward]) * reach])
            cast[:, 2] = np.maximum(cast[:, 2], 2.5)
            canvas.shadow(outline(cast), 0.36, 0.06)


def size_of(kind: str) -> tuple[float, float]:
    """Length and width of a kind of vehicle in metres."""
    return SIZES.get(kind) or (SHAPES[kind].length, SHAPES[kind].width)


def random_paint(rng: np.random.Generator, kind: str) -> Colour:
    """A paint that suits the kind of vehicle."""
    return random_colour(rng, {"bus": _TRANSIT, "truck": _CARGO}.get(kind, PAINT), 0.03)


def outline(points: Array) -> Array:
    """Convex outline of ground points [n, 3], by x and z."""
    ordered = sorted(points.tolist(), key=lambda point: (point[0], point[2]))

    def half(walk: list[list[float]]) -> list[list[float]]:
        chain: list[list[float]] = []
        for p in walk:
            while len(chain) > 1 and (
                (chain[-1][0] - chain[-2][0]) * (p[2] - chain[-2][2])
                <= (chain[-1][2] - chain[-2][2]) * (p[0] - chain[-2][0])
            ):
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return np.array(half(ordered) + half(ordered[::-1]))
