"""Solid models of cars, vans, buses and trucks."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pix2pixhd_fast.data.synthetic.mesh import Mesh, box, disc, quad
from pix2pixhd_fast.data.synthetic.texture import Array, Colour

RUBBER, RIM, UNDER = (0.045, 0.045, 0.05), (0.60, 0.61, 0.63), (0.05, 0.05, 0.055)
GLASS, SHEEN, GLINT = (0.045, 0.06, 0.075), (0.10, 0.13, 0.165), (0.20, 0.25, 0.30)
TRIM, SEAT = (0.085, 0.085, 0.09), (0.02, 0.022, 0.026)
LAMP, TAIL, AMBER = (0.96, 0.97, 0.92), (0.78, 0.04, 0.035), (0.95, 0.55, 0.1)
PLATE = (0.90, 0.90, 0.88)


@dataclass(frozen=True)
class Shape:
    """Size of a car in metres, and where its cabin stands in shares of the length from the rear.

    `deck`: height of boot, belt, bonnet and nose; `cabin`: rear foot, rear roof, front roof,
    front foot.
    """

    length: float
    width: float
    height: float
    deck: tuple[float, float, float, float]
    cabin: tuple[float, float, float, float]


SHAPES = {
    "hatchback": Shape(4.1, 1.78, 1.50, (0.92, 0.98, 0.92, 0.72), (0.01, 0.10, 0.56, 0.78)),
    "saloon": Shape(4.7, 1.82, 1.45, (0.95, 0.95, 0.88, 0.68), (0.09, 0.26, 0.56, 0.75)),
    "estate": Shape(4.8, 1.84, 1.50, (0.94, 0.95, 0.89, 0.70), (0.005, 0.07, 0.57, 0.76)),
    "suv": Shape(4.5, 1.90, 1.72, (1.08, 1.10, 1.04, 0.84), (0.01, 0.07, 0.58, 0.76)),
    "van": Shape(5.1, 1.98, 2.10, (1.12, 1.14, 1.08, 0.87), (0.0, 0.01, 0.70, 0.89)),
}


@lru_cache(maxsize=16)
def model(kind: str, fine: bool) -> Mesh:
    """The model of a kind of vehicle; `fine` adds parts that only show from nearby."""
    if kind == "bus":
        return _bus()
    if kind == "truck":
        return _truck()
    return _car(SHAPES[kind], fine)


def _car(shape: Shape, fine: bool) -> Mesh:
    """A car: body of cross-sections, cabin, windows, wheels, lamps and plates."""
    mesh = Mesh()
    stations = _body(mesh, shape, fine)
    _cabin(mesh, shape, fine)
    for share in (0.185, 0.815):
        _wheel(mesh, (share - 0.5) * shape.length, shape.width / 2, 0.33, fine)
    _rear(mesh, shape, stations)
    _nose(mesh, stations)
    if fine:
        _lines(mesh, shape)
    return mesh


def _body(mesh: Mesh, shape: Shape, fine: bool) -> Array:
    """The painted body; returns stations (x, half width, bottom, top) from rear to nose."""
    boot, belt, bonnet, nose = shape.deck
    share = (-0.5, -0.485, -0.43, -0.33, 0.0, 0.24, 0.38, 0.465, 0.5)
    wide = (0.82, 0.92, 0.98, 1.0, 1.0, 1.0, 0.97, 0.89, 0.72)
    low = (0.36, 0.28, 0.22, 0.19, 0.19, 0.19, 0.20, 0.25, 0.30)
    high = (boot * 0.76, boot * 0.93, boot, belt, belt, bonnet + 0.04, bonnet, nose, nose * 0.88)
    half = np.array(wide) * shape.width / 2
    stations = np.stack([np.array(share) * shape.length, half, np.array(low), np.array(high)], 1)
    levels = ((0.0, 0.94), (0.22, 1.0), (0.60, 1.005), (0.84, 0.985), (0.95, 0.94), (1.0, 0.86))
    rings = [
        [(x, bottom + level * (top - bottom), half * side) for level, side in levels]
        for x, half, bottom, top in stations.tolist()
    ]
    strips = [(0, 1, 0.50), (1, 2, 0.86), (2, 3, 1.0), (3, 4, 1.06), (4, 5, 1.0)]
    if not fine:
        rings, strips = (
            [rings[k] for k in (0, 2, 5, 7, 8)],
            [(0, 1, 0.5), (1, 3, 0.93), (3, 5, 1.03)],
        )
    for rear, front in zip(rings[:-1], rings[1:], strict=True):
        for low, high, tone in strips:
            mesh.face([rear[low], front[low], front[high], rear[high]], tone)
        (x0, y0, z0), (x1, y1, z1) = rear[-1], front[-1]
        deck = [(x0, y0, z0), (x1, y1, z1), (x1, y1, -z1), (x0, y0, -z0)]
        mesh.face(deck, 1.0, mirror=False)
    for ring, order in ((rings[0], 1), (rings[-1], -1)):
        outline = ring + [(x, y, -z) for x, y, z in ring[::-1]]
        mesh.face(outline[::order], 1.0, mirror=False)
    return stations


def _cabin(mesh: Mesh, shape: Shape, fine: bool) -> None:
    """Roof and windows: a frustum on the body."""
    rear_foot, rear_roof, front_roof, front_foot = (np.array(shape.cabin) - 0.5) * shape.length
    belt, top = shape.deck[1] - 0.03, shape.height
    wide, slim = shape.width * 0.445, shape.width * 0.445 - 0.26 * (top - belt)
    side = np.array([(rear_foot, belt, wide), (front_foot, belt - 0.05, wide),
                     (front_roof, top - 0.05, slim), (rear_roof, top - 0.05, slim)])  # fmt: skip
    mirrored = side * (1, 1, -1)
    screen = np.array([side[1], mirrored[1], mirrored[2], side[2]])
    back = np.array([mirrored[0], side[0], side[3], mirrored[3]])
    mesh.face(side, 0.95, 3)
    mesh.face(screen, 0.95, 3, mirror=False)
    mesh.face(back, 0.95, 3, mirror=False)
    crown, inner = slim * 0.8, (rear_roof + 0.15, front_roof - 0.15)
    mesh.face([side[3], side[2], (inner[1], top, crown), (inner[0], top, crown)], 1.0, 3)
    for x, end, order in ((front_roof, inner[1], 1), (rear_roof, inner[0], -1)):
        edge = [
            (x, top - 0.05, slim),
            (x, top - 0.05, -slim),
            (end, top, -crown),
            (end, top, crown),
        ]
        mesh.face(edge[::order], 1.0, 3, mirror=False)
    roof = [(inner[0], top, crown), (inner[1], top, crown), (inner[1], top, -crown),
            (inner[0], top, -crown)]  # fmt: skip
    mesh.face(roof, 1.0, 3, mirror=False)
    _window(mesh, screen, (0.05, 0.95, 0.05, 0.93), fine, False)
    _window(mesh, back, (0.10, 0.90, 0.16, 0.88), fine, False)
    for start, stop in ((0.07, 0.30), (0.335, 0.615), (0.65, 0.95)):
        _window(mesh, side, (start, stop, 0.10, 0.88), fine, True)


def _window(
    mesh: Mesh, wall: Array, span: tuple[float, float, float, float], fine: bool, mirror: bool
) -> None:
    """Dark glass that mirrors more of the sky towards the roof; seats behind the wide ones."""
    a0, a1, b0, b1 = span
    mesh.face(quad(wall, a0, a1, b0, b1), GLASS, 4, mirror=mirror)
    steps = ((0.45, 0.35), (0.62, 0.65), (0.80, 1.0)) if fine else ((0.55, 0.7),)
    for share, tone in steps:
        colour = tuple(g + (s - g) * tone for g, s in zip(GLASS, SHEEN, strict=True))
        mesh.face(quad(wall, a0, a1, b0 + share * (b1 - b0), b1), colour, 5, mirror=mirror)
    if fine and not mirror:
        for start in (0.17, 0.58):
            mesh.face(
                quad(wall, start, start + 0.25, b0, b0 + 0.45 * (b1 - b0)), SEAT, 5, 0.0, False
            )
            head = quad(wall, start + 0.07, start + 0.18, b0, b0 + 0.62 * (b1 - b0))
            mesh.face(head, SEAT, 6, mirror=False)
    if fine:
        p = quad(wall, a0, a1, b0, b1)
        low, high = p[1] - p[0], p[2] - p[3]
        for start, stop in ((0.66, 0.76), (0.79, 0.82)):
            streak = [p[0] + start * low, p[0] + stop * low, p[3] + (stop + 0.12) * high,
                      p[3] + (start + 0.12) * high]  # fmt: skip
            mesh.face(streak, GLINT, 7, mirror=mirror)


def _wheel(mesh: Mesh, x: float, half: float, radius: float, fine: bool) -> None:
    """Arch, tyre and rim on both sides, and the treads that show under the body."""
    outer = half * 0.99
    arch = disc(x, radius, outer, radius * 1.22)
    arch[:, 1] = np.maximum(arch[:, 1], 0.17)
    mesh.face(arch, UNDER, 2)
    mesh.face(disc(x, radius, outer + 0.01, radius), RUBBER, 3)
    mesh.face(disc(x, radius, outer + 0.012, radius * 0.66), RIM, 4)
    if fine:
        for turn in range(5):
            start = turn / 5 + 0.03
            spoke = disc(x, radius, outer + 0.014, radius * 0.56, start, start + 0.12)
            hub = np.array([[x, radius, outer + 0.014]])
            mesh.face(np.concatenate([hub, spoke]), (0.20, 0.20, 0.21), 5)
        mesh.face(disc(x, radius, outer + 0.016, radius * 0.14), (0.3, 0.3, 0.31), 6)
    sign = 1 if x > 0 else -1
    mesh.face(_across(x - 0.1 * sign, 0.13, 0.35, half * 0.95, sign), UNDER, -1, mirror=False)
    inner = outer - 0.22
    for edge, order in ((x + radius * 0.8, 1), (x - radius * 0.8, -1)):
        tread = [(edge, 0.02, outer - 0.02), (edge, 0.02, inner + 0.02), (edge, 0.5, inner),
                 (edge, 0.5, outer)]  # fmt: skip
        mesh.face(tread[::order], RUBBER, 0)


def _across(x: float, low: float, tall: float, half: float, facing: int) -> Array:
    """An upright rectangle across the car that faces forwards (+1) or backwards (-1)."""
    corners = [(x, low, half), (x, low, -half), (x, low + tall, -half), (x, low + tall, half)]
    return np.array(corners)[::facing]


def _rear(mesh: Mesh, shape: Shape, stations: Array) -> None:
    """Tail lamps that reach round the corner, boot lid, number plate, bumper, third brake light."""
    x, half, bottom, top = stations[0]
    x1, half1 = stations[1][:2]
    inner, outer, high, low = half * 0.60, half * 0.985, top - 0.03, top - 0.19
    lamp = [(x, low, inner), (x, low, outer), (x, high, outer * 0.95), (x, high, inner)]
    mesh.face(np.array(lamp) - (0.005, 0, 0), TAIL, 2, glow=0.35)
    strip = [(x, low + 0.04, inner), (x, low + 0.04, outer), (x, low + 0.07, outer),
             (x, low + 0.07, inner)]  # fmt: skip
    mesh.face(np.array(strip) - (0.008, 0, 0), (0.95, 0.75, 0.70), 3, glow=0.3)
    corner = [(x, low, outer), (x1, low + 0.03, half1), (x1, high + 0.05, half1), (x, high, outer)]
    mesh.face(np.array(corner) + (-0.004, 0, 0.006), TAIL, 2, glow=0.3)
    mesh.face(_across(x - 0.004, low - 0.235, 0.02, half * 0.9, -1), 0.45, 2, mirror=False)
    mesh.face(_across(x - 0.006, low - 0.16, 0.12, 0.26, -1), PLATE, 2, mirror=False)
    mesh.face(_across(x - 0.004, bottom - 0.03, 0.16, half * 0.95, -1), TRIM, 2, mirror=False)
    rear = (shape.cabin[1] - 0.5) * shape.length
    mesh.face(_across(rear - 0.05, shape.height - 0.11, 0.03, 0.15, -1), TAIL, 8, mirror=False)


def _nose(mesh: Mesh, stations: Array) -> None:
    """Head lamps that reach round the corner, grille, number plate, bumper."""
    x, half, bottom, top = stations[-1]
    x1, half1, _, top1 = stations[-2]
    low, high = top - 0.15, top - 0.03
    lamp = [
        (x, low, half * 0.98),
        (x, low, half * 0.62),
        (x, high, half * 0.66),
        (x, high, half * 0.95),
    ]
    mesh.face(np.array(lamp) + (0.006, 0, 0), LAMP, 2, glow=0.5)
    side = [(x1, top1 - 0.19, half1), (x, low, half * 0.98), (x, high, half * 0.95),
            (x1, top1 - 0.09, half1 * 0.99)]  # fmt: skip
    mesh.face(np.array(side) + (0.004, 0, 0.008), (0.80, 0.82, 0.82), 2, glow=0.35)
    mesh.face(_across(x + 0.005, low - 0.06, 0.16, half * 0.56, 1), TRIM, 2, mirror=False)
    for k in range(2):
        mesh.face(_across(x + 0.008, low + 0.055 * k, 0.018, half * 0.5, 1), RIM, 3, mirror=False)
    mesh.face(_across(x + 0.006, bottom + 0.03, 0.10, half * 0.85, 1), TRIM, 2, mirror=False)
    mesh.face(_across(x + 0.01, bottom + 0.13, 0.11, 0.25, 1), PLATE, 3, mirror=False)


def _lines(mesh: Mesh, shape: Shape) -> None:
    """Door gaps, handles and mirrors."""
    half, belt = shape.width / 2 * 1.012, shape.deck[1]
    for share in (-0.17, 0.04, 0.23):
        x, high = share * shape.length, belt - 0.1
        gap = [(x, 0.3, half), (x + 0.02, 0.3, half), (x + 0.02, high, half), (x, high, half)]
        mesh.face(gap, 0.45, 2)
    for share in (-0.15, 0.06):
        x, low = share * shape.length, belt - 0.2
        handle = [(x, low, half), (x + 0.17, low, half), (x + 0.17, low + 0.035, half),
                  (x, low + 0.035, half)]  # fmt: skip
        mesh.face(np.array(handle) + (0, 0, 0.004), 0.5, 2)
    x, low, high = (shape.cabin[3] - 0.5) * shape.length - 0.42, belt + 0.02, belt + 0.16
    out, tip = half * 0.98, half + 0.15
    for edge, order, layer in ((x + 0.05, 1, 8), (x - 0.05, -1, 2)):
        glass = [(edge, low, tip), (edge, low, out), (edge, high, out), (edge, high, tip - 0.03)]
        mesh.face(glass[::order], 0.8, layer)


def _bus() -> Mesh:
    """A city bus: one long box with a band of windows, doors, lamps and a destination sign."""
    mesh = Mesh()
    faces = box(mesh, (-5.75, 5.75), (0.34, 3.05), 1.25, 1.0)
    right = faces["right"]
    mesh.face(quad(right, 0, 1, 0.86, 1.0), PLATE, 2)
    mesh.face(quad(right, 0, 1, 0.0, 0.07), TRIM, 2)
    mesh.face(quad(right, 0, 1, 0.20, 0.23), 0.7, 2)
    mesh.face(quad(right, 0.02, 0.985, 0.40, 0.83), TRIM, 2)
    for k in range(8):
        start = 0.03 + k * 0.119
        mesh.face(quad(right, start, start + 0.108, 0.42, 0.81), GLASS, 3)
        mesh.face(quad(right, start, start + 0.108, 0.60, 0.81), SHEEN, 4)
        mesh.face(quad(right, start, start + 0.108, 0.74, 0.81), GLINT, 5)
    for start in (0.10, 0.48, 0.90):
        door = quad(right, start, start + 0.085, 0.04, 0.82)
        mesh.face(door, TRIM, 6)
        for left in (0.08, 0.54):
            mesh.face(quad(door, left, left + 0.38, 0.05, 0.95), SHEEN, 7)
            mesh.face(quad(door, left, left + 0.38, 0.60, 0.95), GLINT, 8)
    _bus_ends(mesh, faces["front"], faces["back"])
    for x in (-3.6, 3.3):
        _wheel(mesh, x, 1.25, 0.48, True)
    return mesh


def _bus_ends(mesh: Mesh, front: Array, back: Array) -> None:
    """Screens, signs and lamps at both ends of a bus."""
    for low, colour in ((0.30, GLASS), (0.55, SHEEN), (0.72, GLINT)):
        mesh.face(quad(front, 0.04, 0.96, low, 0.83), colour, 2, mirror=False)
    mesh.face(quad(front, 0.495, 0.505, 0.30, 0.83), TRIM, 3, mirror=False)
    mesh.face(quad(front, 0.12, 0.88, 0.86, 0.97), TRIM, 2, mirror=False)
    for start in (0.2, 0.33, 0.46, 0.59):
        mesh.face(quad(front, start, start + 0.09, 0.885, 0.945), AMBER, 3, 0.9, mirror=False)
    for low, colour in ((0.50, GLASS), (0.66, SHEEN)):
        mesh.face(quad(back, 0.12, 0.88, low, 0.84), colour, 2, mirror=False)
    for k in range(5):
        mesh.face(quad(back, 0.2, 0.8, 0.14 + 0.05 * k, 0.165 + 0.05 * k), TRIM, 2, mirror=False)
    for end, lamp, glow in ((front, LAMP, 0.6), (back, TAIL, 0.35)):
        for start in (0.05, 0.81):
            mesh.face(quad(end, start, start + 0.14, 0.10, 0.18), lamp, 3, glow, mirror=False)
            mesh.face(quad(end, start, start + 0.14, 0.19, 0.215), AMBER, 3, 0.3, mirror=False)
        mesh.face(quad(end, 0.39, 0.61, 0.06, 0.11), PLATE, 3, mirror=False)
        mesh.face(quad(end, 0.0, 1.0, 0.0, 0.04), TRIM, 2, mirror=False)


def _truck() -> Mesh:
    """A delivery truck: a painted cargo box behind a white cab."""
    mesh = Mesh()
    white: Colour = (0.86, 0.86, 0.85)
    cab = box(mesh, (1.9, 3.8), (0.45, 2.55), 1.1, white)
    cargo = box(mesh, (-3.8, 1.75), (0.75, 3.35), 1.2, 1.0)
    box(mesh, (-3.7, 3.0), (0.42, 0.72), 0.95, UNDER, 0)
    side, front, back = cargo["right"], cab["front"], cargo["back"]
    for k in range(1, 8):
        mesh.face(quad(side, k / 8, k / 8 + 0.005, 0.02, 0.98), 0.8, 2)
    mesh.face(quad(side, 0.0, 1.0, 0.30, 0.36), 0.6, 3)
    mesh.face(quad(side, 0.0, 1.0, 0.0, 0.03), TRIM, 2)
    for start in (0.03, 0.51):
        door = quad(back, start, start + 0.46, 0.04, 0.97)
        mesh.face(door, 0.88, 2, mirror=False)
        mesh.face(quad(door, 0.47, 0.50, 0.05, 0.95), RIM, 3, mirror=False)
        mesh.face(quad(door, 0.38, 0.60, 0.30, 0.33), TRIM, 4, mirror=False)
    mesh.face(quad(back, 0.0, 1.0, -0.12, 0.0), TRIM, 2, mirror=False)
    for start in (0.05, 0.81):
        mesh.face(quad(back, start, start + 0.14, -0.09, -0.03), TAIL, 3, 0.35, mirror=False)
        mesh.face(quad(front, start, start + 0.14, 0.13, 0.22), LAMP, 3, 0.6, mirror=False)
    mesh.face(quad(back, 0.40, 0.60, -0.10, -0.04), PLATE, 3, mirror=False)
    for low, colour in ((0.46, GLASS), (0.64, SHEEN), (0.78, GLINT)):
        mesh.face(quad(front, 0.06, 0.94, low, 0.90), colour, 2, mirror=False)
    mesh.face(quad(front, 0.15, 0.85, 0.24, 0.42), TRIM, 2, mirror=False)
    mesh.face(quad(cab["right"], 0.30, 0.92, 0.48, 0.88), GLASS, 2)
    mesh.face(quad(cab["right"], 0.30, 0.92, 0.66, 0.88), SHEEN, 3)
    mesh.face(quad(cab["right"], 0.26, 0.27, 0.05, 0.9), TRIM, 2)
    for x in (-2.3, 2.75):
        _wheel(mesh, x, 1.14, 0.45, True)
    return mesh
