"""Lamp posts, traffic lights, signs, litter bins: the things that stand on a pavement."""

from dataclasses import dataclass

import numpy as np

from pix2pixhd_fast.data.synthetic.canvas import Canvas
from pix2pixhd_fast.data.synthetic.people import foot_shadow
from pix2pixhd_fast.data.synthetic.sprite import Board
from pix2pixhd_fast.data.synthetic.texture import Colour

STATIC, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN = 4, 17, 19, 20

_STEEL = (0.40, 0.42, 0.44)
_RED, _BLUE, _WHITE, _YELLOW = (
    (0.80, 0.07, 0.08),
    (0.08, 0.25, 0.62),
    (0.94, 0.94, 0.93),
    (0.97, 0.78, 0.1),
)


def _front(canvas: Canvas, lit: float) -> np.ndarray:
    """Light on something upright that faces the camera."""
    return canvas.world.light.on(np.array([0.0, 0.3, -0.95]), lit)


def _post(board: Board, light: np.ndarray, high: float, radius: float) -> None:
    """A round post: dark with a bright stripe."""
    for share, tone, shift in ((1.0, 0.62, 0.0), (0.55, 1.0, -0.15), (0.2, 1.3, -0.3)):
        half, middle = radius * share, shift * radius
        colour = np.array(_STEEL) * tone * light
        board.shape([(middle - half, 0), (middle + half, 0), (middle + half * 0.8, high),
                       (middle - half * 0.8, high)], colour)  # fmt: skip


@dataclass(frozen=True)
class LampPost:
    """A street lamp at camera (x, z) whose arm reaches over the road (`way` -1 left, 1 right)."""

    x: float
    z: float
    height: float
    way: int
    lit: float

    def draw(self, canvas: Canvas) -> None:
        """Put post, arm and lamp on the maps."""
        foot_shadow(canvas, self.x, self.z, 0.14, self.lit, 5.0)
        board = Board(canvas, self.x, self.z, (-2.2, 0, 2.2, self.height + 0.6))
        if board.empty:
            return
        light, high, way = _front(canvas, self.lit), self.height, self.way
        _post(board, light, high, 0.085)
        steel = np.array(_STEEL) * 0.75 * light
        board.box(-0.13, 0, 0.13, 0.9, steel)
        board.limb((0, high - 0.02), (0.5 * way, high + 0.28), 0.055, 0.05, steel)
        board.limb((0.5 * way, high + 0.28), (1.5 * way, high + 0.36), 0.05, 0.05, steel)
        board.limb((1.2 * way, high + 0.35), (1.95 * way, high + 0.36), 0.10, 0.08, steel * 0.8)
        board.limb(
            (1.3 * way, high + 0.28), (1.85 * way, high + 0.29), 0.045, 0.04, (0.95, 0.94, 0.86)
        )
        board.stamp(POLE, POLE, self.z)


@dataclass(frozen=True)
class TrafficLight:
    """Traffic lights at camera (x, z), on the post and on an arm; `state` 0 red, 1, 2 green."""

    x: float
    z: float
    way: int
    state: int
    lit: float

    def draw(self, canvas: Canvas) -> None:
        """Put post and arm (pole), then the lights, on the maps."""
        foot_shadow(canvas, self.x, self.z, 0.14, self.lit, 4.0)
        arm = 3.0 * self.way
        board = Board(canvas, self.x, self.z, (min(arm, 0) - 0.3, 0, max(arm, 0) + 0.3, 5.8))
        if board.empty:
            return
        light = _front(canvas, self.lit)
        _post(board, light, 5.5, 0.095)
        board.limb((0, 5.3), (arm, 5.55), 0.075, 0.055, np.array(_STEEL) * 0.8 * light)
        board.stamp(POLE, POLE, self.z)
        for x, low in ((0.0, 2.5), (arm, 4.85)):
            self._heads(canvas, x, low, light)

    def _heads(self, canvas: Canvas, x: float, low: float, light: np.ndarray) -> None:
        board = Board(canvas, self.x, self.z, (x - 0.3, low - 0.1, x + 0.3, low + 1.25))
        if board.empty:
            return
        board.box(x - 0.25, low - 0.06, x + 0.25, low + 1.16, np.array((0.80, 0.80, 0.79)) * light)
        board.box(x - 0.21, low - 0.02, x + 0.21, low + 1.12, np.array((0.07, 0.08, 0.08)) * light)
        dim = ((0.28, 0.06, 0.05), (0.30, 0.20, 0.05), (0.05, 0.22, 0.12))
        lamps = ((1.0, 0.14, 0.10), (1.0, 0.72, 0.15), (0.12, 0.95, 0.50))
        for k in range(3):
            colour = lamps[k] if k == self.state else dim[k]
            board.disc(x, low + 0.91 - 0.36 * k, 0.15, colour)
        board.stamp(TRAFFIC_LIGHT, TRAFFIC_LIGHT, self.z)


@dataclass(frozen=True)
class Sign:
    """A road sign at camera (x, z): "round", "warning", "parking", "priority" or "crossing"."""

    x: float
    z: float
    kind: str
    lit: float

    def draw(self, canvas: Canvas) -> None:
        """Put the post (pole), then the sign, on the maps."""
        foot_shadow(canvas, self.x, self.z, 0.1, self.lit, 2.4)
        light = _front(canvas, self.lit)
        board = Board(canvas, self.x, self.z, (-0.12, 0, 0.12, 2.7))
        if not board.empty:
            _post(board, light, 2.65, 0.055)
            board.stamp(POLE, POLE, self.z)
        board = Board(canvas, self.x, self.z, (-0.5, 1.95, 0.5, 2.95))
        if not board.empty:
            _plate(board, self.kind, light * 1.06)
            board.stamp(TRAFFIC_SIGN, TRAFFIC_SIGN, self.z)


def _plate(board: Board, kind: str, light: np.ndarray) -> None:
    red, blue, white, yellow = (np.array(paint) * light for paint in (_RED, _BLUE, _WHITE, _YELLOW))
    dark = np.array((0.08, 0.08, 0.09)) * light
    if kind == "round":
        board.disc(0, 2.42, 0.40, red)
        board.disc(0, 2.42, 0.28, white)
        board.box(-0.15, 2.30, -0.03, 2.54, dark)
        board.box(0.03, 2.30, 0.15, 2.54, dark)
    elif kind == "warning":
        for size, colour in ((1.0, red), (0.68, white)):
            corners = ((-0.46, -0.3), (0.46, -0.3), (0, 0.5))
            board.shape([(x * size, 2.35 + y * size) for x, y in corners], colour)
        board.box(-0.035, 2.28, 0.035, 2.52, dark)
        board.disc(0, 2.21, 0.04, dark)
    elif kind == "priority":
        for size, colour in ((0.45, white), (0.34, yellow)):
            board.shape([(-size, 2.45), (0, 2.45 - size), (size, 2.45), (0, 2.45 + size)], colour)
    else:
        board.box(-0.38, 2.05, 0.38, 2.81, white)
        board.box(-0.35, 2.08, 0.35, 2.78, blue)
        if kind == "parking":
            board.box(-0.17, 2.18, -0.07, 2.68, white)
            board.disc(0.02, 2.54, 0.15, white)
            board.disc(0.01, 2.54, 0.065, blue)
        else:
            board.shape([(-0.28, 2.15), (0.28, 2.15), (0, 2.70)], white)
            board.limb((0.0, 2.48), (0.0, 2.34), 0.04, 0.05, dark)
            board.limb((0.0, 2.34), (-0.08, 2.18), 0.035, 0.025, dark)
            board.limb((0.0, 2.34), (0.08, 2.18), 0.035, 0.025, dark)


@dataclass(frozen=True)
class Bin:
    """A litter bin, a box of the electricity works or an advertising column at camera (x, z)."""

    x: float
    z: float
    kind: str
    colour: Colour
    lit: float

    def draw(self, canvas: Canvas) -> None:
        """Put it on the maps as something static."""
        half, high = {"bin": (0.28, 0.95), "cabinet": (0.55, 1.25), "column": (0.6, 3.1)}[self.kind]
        foot_shadow(canvas, self.x, self.z, half, self.lit, high)
        board = Board(canvas, self.x, self.z, (-half - 0.1, 0, half + 0.1, high + 0.5))
        if board.empty:
            return
        paint = np.asarray(self.colour) * _front(canvas, self.lit)
        stripes = 9
        for k in range(stripes):
            left = -half + 2 * half * k / stripes
            tone = 1.15 - 0.5 * abs((k + 0.5) / stripes - 0.4) if self.kind != "cabinet" else 1.0
            board.box(left, 0, left + 2 * half / stripes + 0.01, high, paint * tone)
        board.box(-half - 0.05, high - 0.1, half + 0.05, high, paint * 0.55)
        if self.kind == "column":
            board.shape([(-half - 0.08, high), (half + 0.08, high), (0, high + 0.45)], paint * 0.5)
            for k, poster in enumerate(((0.85, 0.75, 0.3), (0.75, 0.25, 0.3), (0.3, 0.5, 0.7))):
                left = -half * 0.85 + k * half * 0.6
                board.box(left, 0.8, left + half * 0.5, 2.4, np.array(poster) * paint.mean() * 2)
        if self.kind == "cabinet":
            board.box(-0.01, 0.08, 0.01, high - 0.12, paint * 0.5)
        board.stamp(STATIC, STATIC, self.z, grain=0.03)
