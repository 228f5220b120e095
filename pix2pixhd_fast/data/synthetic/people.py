"""People, riders and bicycles."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pix2pixhd_fast.data.synthetic.canvas import Canvas
from pix2pixhd_fast.data.synthetic.sprite import Board, Point
from pix2pixhd_fast.data.synthetic.texture import Array, Colour, random_colour

PERSON, RIDER, BICYCLE = 24, 25, 33

_SKIN = ((0.87, 0.66, 0.53), (0.76, 0.54, 0.40), (0.50, 0.33, 0.23), (0.92, 0.74, 0.62))
_HAIR = ((0.12, 0.09, 0.07), (0.30, 0.19, 0.10), (0.62, 0.48, 0.26), (0.45, 0.43, 0.42))
_SHIRT = ((0.72, 0.14, 0.14), (0.15, 0.28, 0.58), (0.84, 0.82, 0.76), (0.16, 0.40, 0.28),
          (0.82, 0.60, 0.18), (0.42, 0.20, 0.46), (0.16, 0.16, 0.18),
          (0.20, 0.50, 0.56))  # fmt: skip
_TROUSERS = ((0.15, 0.19, 0.32), (0.12, 0.12, 0.13), (0.42, 0.36, 0.28), (0.28, 0.32, 0.40))
_FRAME = ((0.60, 0.10, 0.10), (0.10, 0.22, 0.50), (0.12, 0.12, 0.13), (0.70, 0.72, 0.74),
          (0.10, 0.38, 0.30), (0.80, 0.42, 0.08))  # fmt: skip

Limb = Callable[[Point, Point, float, float, Colour | Array], None]


@dataclass(frozen=True)
class Look:
    """Colours and pose of one person; `step` in [-1, 1] opens the legs, `facing` is -1 or 1."""

    skin: Colour
    hair: Colour
    shirt: Colour
    trousers: Colour
    size: float
    step: float
    facing: int
    frontal: bool
    bag: bool
    skirt: bool
    away: bool


def random_look(rng: np.random.Generator) -> Look:
    """Somebody."""
    return Look(
        skin=random_colour(rng, _SKIN, 0.03),
        hair=random_colour(rng, _HAIR, 0.03),
        shirt=random_colour(rng, _SHIRT, 0.06),
        trousers=random_colour(rng, _TROUSERS, 0.04),
        size=float(rng.uniform(0.92, 1.06)),
        step=float(rng.uniform(0.45, 1.0) * rng.choice([-1, 1])),
        facing=int(rng.choice([-1, 1])),
        frontal=bool(rng.random() < 0.5),
        bag=bool(rng.random() < 0.35),
        skirt=bool(rng.random() < 0.2),
        away=bool(rng.random() < 0.5),
    )


def random_frame(rng: np.random.Generator) -> Colour:
    """The colour of a bicycle."""
    return random_colour(rng, _FRAME, 0.04)


def _passes(canvas: Canvas, board: Board, lit: float) -> list[tuple[Array, float, float]]:
    """Light, sideways shift and thickness of each pass: the dark side, then the bright over it."""
    light, side = canvas.world.light, float(np.sign(canvas.world.light.sun[0]))
    normals = np.array([[side * 0.6, 0.35, -0.72], [-side * 0.8, 0.1, -0.6]])
    bright, dark = light.on(normals, lit)
    if board.ky / board.fine < 30:
        return [(bright * 0.9, 0.0, 1.0)]
    return [(dark * 0.74, 0.0, 1.0), ((bright + dark) * 0.48, 0.014 * side, 0.86),
            (bright, 0.03 * side, 0.62)]  # fmt: skip


def _painter(board: Board, light: Array, shift: float, share: float, size: float) -> Limb:
    """Draws bars of a figure in one light."""

    def limb(start: Point, stop: Point, first: float, last: float, colour: Colour | Array) -> None:
        ends = [(x * size + shift, y * size) for x, y in (start, stop)]
        board.limb(*ends, first * share * size, last * share * size, np.asarray(colour) * light)

    return limb


@dataclass(frozen=True)
class Person:
    """A pedestrian at camera (x, z)."""

    x: float
    z: float
    look: Look
    lit: float

    def draw(self, canvas: Canvas) -> None:
        """Shadow, legs, arms, coat, head."""
        foot_shadow(canvas, self.x, self.z, 0.30, self.lit, 1.7)
        board = Board(canvas, self.x, self.z, (-0.75, 0.0, 0.75, 1.95))
        if board.empty:
            return
        for light, shift, share in _passes(canvas, board, self.lit):
            limb = _painter(board, light, shift, share, self.look.size)
            _legs(limb, self.look)
            _trunk(limb, self.look)
            _arms(limb, self.look)
            _head(limb, self.look, 1.62)
        board.stamp(PERSON, canvas.new_instance(PERSON), self.z, grain=0.03)


def _legs(limb: Limb, look: Look) -> None:
    """Legs and shoes, in step; a skirt over them."""
    way, frontal = look.facing, look.frontal
    spread = 0.10 if frontal else 0.27 * look.step
    shoe = np.asarray(look.trousers) * 0.35
    cloth = look.skin if look.skirt else look.trousers
    for side, tone in ((-1, 0.72), (1, 1.0)):
        legs = np.asarray(cloth) * tone
        hip, foot = side * (0.085 if frontal else 0.02), side * spread
        lift = 0.07 if frontal and side * look.step > 0 else 0.0
        knee = (hip + foot) / 2 + (0.0 if frontal else 0.045 * way)
        limb((hip, 0.88), (knee, 0.49 + lift / 2), 0.095, 0.068, legs)
        limb((knee, 0.49 + lift / 2), (foot, 0.10 + lift), 0.066, 0.046, legs)
        toe = foot + (0.02 * side if frontal else 0.12 * way)
        limb((foot, 0.05 + lift), (toe, 0.042 + lift), 0.048, 0.040, shoe)
    if look.skirt:
        limb((0.0, 0.95), (0.0, 0.66), 0.13, 0.20, look.trousers)


def _trunk(limb: Limb, look: Look) -> None:
    """Hips, coat with shoulders, a bag."""
    way = look.facing
    if look.bag and not look.frontal:
        colour = np.array(look.shirt)[::-1] * 0.7
        limb((-0.16 * way, 1.08), (-0.16 * way, 1.30), 0.12, 0.10, colour)
    if look.frontal:
        limb((-0.06, 0.92), (0.06, 0.92), 0.10, 0.10, look.trousers)
        limb((0.0, 1.0), (0.0, 1.28), 0.145, 0.165, look.shirt)
        limb((-0.125, 1.37), (0.125, 1.37), 0.068, 0.068, look.shirt)
        limb((-0.05, 1.40), (0.05, 1.40), 0.07, 0.07, look.shirt)
        if look.bag:
            limb((0.12, 1.42), (-0.15, 0.98), 0.014, 0.014, (0.12, 0.09, 0.07))
            limb((-0.17, 0.93), (-0.17, 0.86), 0.07, 0.075, (0.16, 0.11, 0.08))
    else:
        limb((0.0, 0.94), (0.01 * way, 1.30), 0.115, 0.135, look.shirt)
        limb((0.0, 1.36), (0.02 * way, 1.40), 0.10, 0.07, look.shirt)


def _arms(limb: Limb, look: Look) -> None:
    """Arms that swing against the legs, and hands."""
    sleeve = np.asarray(look.shirt) * 0.86
    if look.frontal:
        for side in (-1, 1):
            limb((side * 0.185, 1.37), (side * 0.235, 1.12), 0.056, 0.046, sleeve)
            limb((side * 0.235, 1.12), (side * 0.225, 0.90), 0.045, 0.036, sleeve)
            limb((side * 0.225, 0.86), (side * 0.22, 0.82), 0.036, 0.030, look.skin)
        return
    swing = -0.22 * look.step
    elbow, hand = (swing * 0.7, 1.11), (swing * 1.25 + 0.07 * look.facing, 0.90)
    limb((0.0, 1.37), elbow, 0.058, 0.047, sleeve)
    limb(elbow, hand, 0.045, 0.036, sleeve)
    limb((hand[0], hand[1] - 0.03), (hand[0] + 0.01, hand[1] - 0.06), 0.035, 0.03, look.skin)


def _head(limb: Limb, look: Look, height: float, lean: float = 0.0) -> None:
    """Neck, face and hair."""
    way = 0 if look.frontal else look.facing
    limb((lean * 0.9, height - 0.17), (lean, height - 0.07), 0.05, 0.05, np.array(look.skin) * 0.85)
    limb((lean, height + 0.055), (lean, height + 0.02), 0.112, 0.105, look.hair)
    if look.frontal and look.away:
        limb((lean, height + 0.02), (lean, height - 0.045), 0.10, 0.075, look.hair)
        return
    nose = lean + 0.028 * way
    limb((nose, height + 0.01), (nose, height - 0.05), 0.092, 0.066, look.skin)
    top = lean - 0.018 * way
    limb((top - 0.035, height + 0.105), (top + 0.035, height + 0.105), 0.062, 0.062, look.hair)
    if way:
        limb((lean - 0.06 * way, height + 0.06), (lean - 0.07 * way, height - 0.03), 0.055, 0.045,
             look.hair)  # fmt: skip


def foot_shadow(canvas: Canvas, x: float, z: float, half: float, lit: float, height: float) -> None:
    """A soft spot under something upright, and its long shadow where the sun shines."""
    left, right = x - half, x + half
    if canvas.rows_on_ground(z, 0.44) > 0.7:
        spot = [
            (left, 0, z - 0.22),
            (right, 0, z - 0.22),
            (right, 0, z + 0.22),
            (left, 0, z + 0.22),
        ]
        canvas.shadow(np.array(spot), 0.5, 0.12)
    if lit and canvas.scale(z)[0] * half > 0.7:
        side, above, forward = canvas.world.light.sun
        reach = min(height / max(above, 0.3), 2.6)
        end_x, end_z = x - side * reach, max(z - forward * reach, 2.5)
        half *= 0.6
        cast = [
            (x - half, 0, z),
            (x + half, 0, z),
            (end_x + half, 0, end_z),
            (end_x - half, 0, end_z),
        ]
        canvas.shadow(np.array(cast), 0.34, 0.05)


@dataclass(frozen=True)
class Bicycle:
    """A bicycle at camera (x, z), with or without a rider, turned away by the factor `squash`."""

    x: float
    z: float
    look: Look | None
    colour: Colour
    facing: int
    squash: float
    lit: float

    def draw(self, canvas: Canvas) -> None:
        """Shadow, bicycle, rider."""
        height = 1.0 if self.look is None else 1.9
        foot_shadow(canvas, self.x, self.z, 0.75 * self.squash, self.lit, height)
        board = Board(canvas, self.x, self.z, (-1.0, 0.0, 1.0, 1.15), self.squash)
        if not board.empty:
            light, *_ = _passes(canvas, board, self.lit)[-1]
            _frame(board, self.colour, light, self.facing)
            board.stamp(BICYCLE, canvas.new_instance(BICYCLE), self.z)
        if self.look is None:
            return
        squash = 0.35 + 0.65 * self.squash
        board = Board(canvas, self.x, self.z, (-0.8, 0.1, 0.8, 2.0), squash)
        if not board.empty:
            for light, shift, share in _passes(canvas, board, self.lit):
                _rider(_painter(board, light, shift, share, 1.0), self.look, self.facing)
            board.stamp(RIDER, canvas.new_instance(RIDER), self.z, grain=0.03)


def _frame(board: Board, colour: Colour, light: Array, way: int) -> None:
    """Two wheels with spokes and the tubes between them."""
    rubber, steel = np.array((0.10, 0.10, 0.11)) * light, np.array((0.55, 0.56, 0.58)) * light
    paint = np.asarray(colour) * light * 1.2
    angle = np.linspace(0, 2 * np.pi, 25).tolist()
    circle = [(float(np.cos(a)), float(np.sin(a))) for a in angle]
    for hub in (-0.52 * way, 0.52 * way):
        ring = [(hub + 0.34 * x, 0.36 + 0.34 * y) for x, y in circle]
        for start, stop in zip(ring[:-1], ring[1:], strict=True):
            board.limb(start, stop, 0.032, 0.032, rubber)
        for x, y in circle[:-1:3]:
            board.limb((hub, 0.36), (hub + 0.31 * x, 0.36 + 0.31 * y), 0.007, 0.007, steel)
        board.disc(hub, 0.36, 0.05, steel)
    joints = {"rear": (-0.52, 0.36), "pedal": (-0.05, 0.31), "seat": (-0.22, 0.84),
              "head": (0.36, 0.84), "front": (0.52, 0.36), "bar": (0.30, 1.02)}  # fmt: skip
    at = {name: (x * way, y) for name, (x, y) in joints.items()}
    for first, second in (("rear", "pedal"), ("rear", "seat"), ("pedal", "seat"), ("pedal", "head"),
                          ("seat", "head"), ("head", "front")):  # fmt: skip
        board.limb(at[first], at[second], 0.026, 0.026, paint)
    board.limb(at["head"], at["bar"], 0.022, 0.022, steel)
    board.limb(at["bar"], (0.16 * way, 1.03), 0.022, 0.025, rubber)
    board.limb((-0.34 * way, 0.92), (-0.12 * way, 0.93), 0.045, 0.03, rubber)
    board.disc(*at["pedal"], 0.09, steel)


def _rider(limb: Limb, look: Look, way: int) -> None:
    """Somebody on a bicycle, from the side."""
    shoe = np.asarray(look.trousers) * 0.35
    steps = (((0.14, 0.62), (-0.08, 0.28), 0.7), ((0.20, 0.78), (0.04, 0.44), 1.0))
    for knee, foot, tone in steps:
        legs = np.asarray(look.trousers) * tone
        limb((-0.2 * way, 0.98), (knee[0] * way, knee[1]), 0.09, 0.07, legs)
        limb((knee[0] * way, knee[1]), (foot[0] * way, foot[1]), 0.065, 0.045, legs)
        heel, toe = (foot[0] * way, foot[1] - 0.04), ((foot[0] + 0.11) * way, foot[1] - 0.05)
        limb(heel, toe, 0.04, 0.035, shoe)
    limb((-0.2 * way, 1.02), (0.0, 1.42), 0.125, 0.14, look.shirt)
    limb((0.03 * way, 1.43), (0.16 * way, 1.18), 0.055, 0.048, np.asarray(look.shirt) * 0.86)
    limb((0.16 * way, 1.18), (0.28 * way, 1.06), 0.045, 0.035, look.skin)
    _head(limb, look, 1.69, 0.06 * way)
