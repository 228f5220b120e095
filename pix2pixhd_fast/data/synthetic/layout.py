"""Where everything stands: the plan of a scene, independent of its size in pixels."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pix2pixhd_fast.data.synthetic.buildings import Style, View, Wall, random_style
from pix2pixhd_fast.data.synthetic.canvas import Canvas
from pix2pixhd_fast.data.synthetic.facade import House
from pix2pixhd_fast.data.synthetic.furniture import Bin, LampPost, Sign, TrafficLight
from pix2pixhd_fast.data.synthetic.people import Bicycle, Person, random_frame, random_look
from pix2pixhd_fast.data.synthetic.texture import Array, random_colour
from pix2pixhd_fast.data.synthetic.trees import CROWNS, GREENS, Hedge, Tree
from pix2pixhd_fast.data.synthetic.vehicles import KINDS, Vehicle, random_paint, size_of
from pix2pixhd_fast.data.synthetic.world import KERB, LANE, PARKING, World


class Drawable(Protocol):
    """Something that can be put on the maps."""

    def draw(self, canvas: Canvas) -> None:
        """Draw it over what is there."""


class Barrier(Protocol):
    """A wall: what is seen of it depends on nearer walls."""

    def view(self, canvas: Canvas, skyline: Array) -> View | None:
        """What is seen of it above `skyline` [W], which it raises."""

    def draw(self, canvas: Canvas, view: View) -> None:
        """Draw it over what is there."""


@dataclass
class Plan:
    """What stands on the ground, with distances: `walls`, `behind` between them, then `street`."""

    world: World
    walls: list[tuple[float, Barrier]] = field(default_factory=list)
    behind: list[tuple[float, Drawable]] = field(default_factory=list)
    street: list[tuple[float, Drawable]] = field(default_factory=list)

    def draw(self, canvas: Canvas) -> None:
        """Draw everything, the farthest first; of walls only what no nearer wall hides."""
        skyline = np.full(canvas.width, canvas.height, np.float64)
        background: list[tuple[float, Drawable | tuple[Barrier, View]]] = list(self.behind)
        for z, wall in sorted(self.walls, key=_distance):
            view = wall.view(canvas, skyline)
            if view is not None:
                background.append((z, (wall, view)))
        for group in (background, self.street):
            for _, thing in sorted(group, key=_distance, reverse=True):
                if isinstance(thing, tuple):
                    thing[0].draw(canvas, thing[1])
                else:
                    thing.draw(canvas)


def _distance(pair: tuple[float, object]) -> float:
    return pair[0]


def plan_scene(world: World) -> Plan:
    """Lay out houses, trees, traffic and people from the seed of the world."""
    plan = Plan(world)
    rngs = [np.random.default_rng((world.seed, number)) for number in range(10, 18)]
    for side in (-1, 1):
        _plan_houses(plan, side, rngs[0])
    _plan_end(plan, rngs[1])
    for side in (-1, 1):
        _plan_trees(plan, side, rngs[2])
        _plan_furniture(plan, side, rngs[3])
        _plan_people(plan, side, rngs[4])
    _plan_parked(plan, rngs[5])
    _plan_traffic(plan, rngs[6])
    _plan_crossing(plan, rngs[7])
    return plan


def _stretches(world: World) -> list[tuple[float, float]]:
    """The street between crossings, as intervals of z."""
    crossing = world.street.crossing
    if crossing is None:
        return [(3.0, world.street.end)]
    return [(3.0, crossing[0] - 3.2), (crossing[1] + 3.2, world.street.end)]


def _plan_houses(plan: Plan, side: int, rng: np.random.Generator) -> None:
    """Houses wall to wall along both stretches; in a park trees and hedges stand instead."""
    world = plan.world
    x = world.street.wall(side)
    park = (world.street.left if side < 0 else world.street.right).park
    level = rng.uniform(9, 16)
    for start, stop in _stretches(world):
        if park:
            _plan_park(plan, side, (start, stop), rng)
            continue
        z = start
        while z < stop - 3:
            depth = float(min(rng.uniform(9, 19), stop - z))
            if stop - z - depth < 6:
                depth = stop - z
            height = float(np.clip(level + rng.normal() * 2.6, 6.5, 24))
            if rng.random() < 0.07 and z > 15:
                _plan_park(plan, side, (z, z + depth), rng)
            else:
                _house(plan, side, x, (z, z + depth), height, random_style(rng), rng)
            z += depth


def _house(
    plan: Plan, side: int, x: float, span: tuple[float, float], height: float, style: Style,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """The front along the street, the wall that faces us, and the shadow of the eaves."""
    world = plan.world
    height = style.ground_floor + style.floor * max(1, round((height - 4) / style.floor)) + 0.6
    roof = 0.0 if style.material == "concrete" else float(rng.uniform(1.6, 3.2))
    across, above, forward = world.light.sun
    near = (world.x(x, span[0]), span[0])
    far = (world.x(x, span[1]), span[1])
    lit = 1.0 if across * side < 0 else 0.0
    front = Wall(near, far, height, roof, style, (-float(side), 0.0), lit, True)
    outer = (near[0] + side * 13.0, span[0])
    flank = Wall(outer, near, height, roof * 0.6, style, (0.0, -1.0), float(forward < 0), False)
    plan.walls += [(span[0] + 0.02, House(flank)), (span[0], House(front))]
    if across * side > 0:
        reach = (height + roof * 0.5) * abs(across) / max(above, 0.2)
        world.shadow.append((span[0] - 1, span[1], x - side * min(reach, 60)))


def _plan_park(plan: Plan, side: int, span: tuple[float, float], rng: np.random.Generator) -> None:
    """A hedge with rows of trees behind it."""
    world = plan.world
    x = world.street.wall(side)
    green = GREENS[int(rng.integers(len(GREENS)))]
    style, tall, low = random_style(rng), float(rng.uniform(6, 9)), float(rng.uniform(1.1, 2.2))
    start, stop = span
    corners = ((16.0, start, 16.0, stop, tall), (16.0, start, 80.0, start, tall),
               (0.6, start, 0.6, stop, low), (0.6, start, 16.0, start, low))  # fmt: skip
    for back, z, last_back, last_z, high in corners:
        ends = [(world.x(x + side * b, end), end) for b, end in ((back, z), (last_back, last_z))]
        wall = Wall(*ends, high, 0.0, style, (-side * 0.6, -0.8), 0.6, True)
        plan.walls.append((start + back * 0.1, Hedge(wall, green)))
    z = span[0] + 2
    while z < min(span[1], 85):
        for back in (2.6, 8.0):
            street_x = x + side * (back + rng.uniform(-0.7, 1.2))
            place = z + float(rng.uniform(0, 3))
            tree = _tree(world, street_x, place, rng, rng.uniform(7, 13))
            plan.behind.append((place - 0.05 * back, tree))
        z += float(rng.uniform(5, 9)) * (1 + z / 60)


def _tree(world: World, street_x: float, z: float, rng: np.random.Generator, height: float) -> Tree:
    return Tree(
        x=world.x(street_x, z),
        z=z,
        height=float(height),
        width=float(height * rng.uniform(0.55, 0.78)),
        stem=float(height * rng.uniform(0.20, 0.30)),
        kind=int(rng.integers(CROWNS)),
        flip=bool(rng.random() < 0.5),
        colour=random_colour(rng, GREENS, 0.025),
        lit=world.sunlit(street_x, z) * 0.8 + 0.2,
    )


def _plan_end(plan: Plan, rng: np.random.Generator) -> None:
    """What closes the view: trees, sometimes with a house between them."""
    world, end = plan.world, plan.world.street.end
    half = world.street.half + 14
    if rng.random() < 0.6:
        left = float(rng.uniform(-half, -4))
        wall = Wall((world.x(left, end + 8), end + 8), (world.x(left + 26, end + 8), end + 8),
                    float(rng.uniform(9, 15)), 2.5, random_style(rng), (0.0, -1.0),
                    float(world.light.sun[2] < 0), True)  # fmt: skip
        plan.walls.append((end + 8, House(wall)))
    style = random_style(rng)
    for back, high in ((40.0, 9.0), (24.0, 6.0)):
        ends = [(world.x(x, end + back), end + back) for x in (-90.0, 90.0)]
        wall = Wall(*ends, high, 0.0, style, (0.0, -1.0), 0.7, True)
        plan.walls.append((end + back, Hedge(wall, GREENS[int(rng.integers(3))])))
    for street_x in np.arange(-half, half, 10.0):
        z = end + float(rng.uniform(3, 20))
        tree = _tree(world, float(street_x + rng.uniform(-3, 3)), z, rng, rng.uniform(7, 12))
        plan.behind.append((z, tree))


def _free(world: World, z: float, room: float) -> bool:
    """Whether z keeps `room` metres clear of the crossing."""
    crossing = world.street.crossing
    return crossing is None or not crossing[0] - room < z < crossing[1] + room


def _plan_trees(plan: Plan, side: int, rng: np.random.Generator) -> None:
    """A row of trees along the kerb."""
    world = plan.world
    chosen = world.street.left if side < 0 else world.street.right
    if rng.random() > (0.9 if chosen.verge else 0.45):
        return
    street_x = side * (world.street.half + KERB + max(chosen.verge * 0.5, 0.55))
    z, gap = float(rng.uniform(11, 18)), float(rng.uniform(8, 14))
    size = float(rng.uniform(5.5, 9.0))
    while z < 80:
        if _free(world, z, 5.0):
            tree = _tree(world, street_x, z, rng, size * rng.uniform(0.85, 1.15))
            plan.street.append((z, tree))
        z += gap * float(rng.uniform(0.8, 1.25))


def _plan_furniture(plan: Plan, side: int, rng: np.random.Generator) -> None:
    """Lamp posts, signs, bins."""
    world = plan.world
    edge = side * (world.street.half + KERB + 0.3)
    for z in np.arange(rng.uniform(9, 26), 95, 27.0):
        if _free(world, z, 1.5):
            post = LampPost(world.x(edge, z), float(z), 7.0, -side, world.sunlit(edge, z))
            plan.street.append((float(z), post))
    kinds = ("round", "warning", "parking", "priority", "crossing")
    for _ in range(int(rng.integers(1, 4))):
        z, kind = float(rng.uniform(9, 34)), str(rng.choice(kinds))
        if _free(world, z, 0.5):
            plan.street.append((z, Sign(world.x(edge, z), z, kind, world.sunlit(edge, z))))
    colours = ((0.25, 0.30, 0.27), (0.52, 0.53, 0.52), (0.62, 0.45, 0.18), (0.22, 0.36, 0.30))
    for _ in range(int(rng.integers(0, 3))):
        z = float(rng.uniform(10, 34))
        x = side * (world.street.half + KERB + float(rng.uniform(0.8, 1.6)))
        kind = str(rng.choice(["bin", "bin", "cabinet", "column"]))
        thing = Bin(world.x(x, z), z, kind, random_colour(rng, colours, 0.03), world.sunlit(x, z))
        if _free(world, z, 1.0):
            plan.street.append((z, thing))


def _plan_people(plan: Plan, side: int, rng: np.random.Generator) -> None:
    """People alone and in pairs on the pavement, and parked bicycles."""
    world = plan.world
    chosen = world.street.left if side < 0 else world.street.right
    inner = world.street.half + KERB + chosen.verge + 0.5
    for _ in range(int(rng.integers(2, 7))):
        z = float(9 + 42 * rng.random() ** 1.3)
        x = side * (inner + float(rng.random()) * max(chosen.pavement - 1.0, 0.2))
        for member in range(1 + int(rng.random() < 0.35)):
            place, deep = x + member * 0.62, z + member * 0.3
            person = Person(world.x(place, deep), deep, random_look(rng), world.sunlit(place, deep))
            plan.street.append((deep, person))
    if rng.random() < 0.4:
        start = float(rng.uniform(10, 24))
        for k in range(int(rng.integers(1, 4))):
            z, x = start + 1.0 * k, side * (inner + chosen.pavement - 1.6)
            colour = random_frame(rng)
            way = int(rng.choice([-1, 1]))
            bicycle = Bicycle(
                world.x(x, z), z, None, colour, way, float(rng.uniform(0.55, 1)), world.sunlit(x, z)
            )
            plan.street.append((z, bicycle))


def _vehicle(
    world: World, street_x: float, z: float, turn: float, kind: str, rng: np.random.Generator
) -> Vehicle:
    heading = turn + 2 * world.street.bend * z
    lit = world.sunlit(street_x, z)
    colour = random_paint(rng, kind)
    return Vehicle(world.x(street_x, z), z, float(heading), kind, colour, lit)


def _plan_parked(plan: Plan, rng: np.random.Generator) -> None:
    """Cars at the kerb."""
    world = plan.world
    if not world.street.parking:
        return
    for side in (-1, 1):
        z, busy = float(rng.uniform(8.5, 13)), float(rng.uniform(0.55, 0.9))
        x = side * (world.street.half - PARKING / 2 + 0.05)
        while z < 60:
            kind = KINDS[int(rng.choice(5, p=[0.34, 0.2, 0.2, 0.17, 0.09]))]
            length = size_of(kind)[0]
            z += length / 2
            car = _vehicle(world, x, z, np.pi * (side < 0), kind, rng)
            if rng.random() < busy and _free(world, z, 6.5 + length / 2):
                plan.street.append((z, car))
            z += length / 2 + float(rng.uniform(0.7, 1.8))


def _plan_traffic(plan: Plan, rng: np.random.Generator) -> None:
    """Vehicles that drive with us and towards us, and cyclists."""
    world = plan.world
    for side in (-1, 1):
        for lane in range(world.street.lanes):
            x = side * (lane + 0.5) * LANE
            own = side > 0 and abs(x - world.camera.offset) < 1.5
            z = float(rng.uniform(15, 30) if own else rng.uniform(9, 24))
            while z < 75:
                kind = str(rng.choice(KINDS, p=[0.3, 0.2, 0.16, 0.14, 0.06, 0.07, 0.07]))
                big = kind in ("bus", "truck")
                z += size_of(kind)[0] / 2 + (4 if big else 0)
                plan.street.append((z, _vehicle(world, x, z, np.pi * (side < 0), kind, rng)))
                z += size_of(kind)[0] / 2 + float(rng.uniform(6, 34))
    if rng.random() < 0.6:
        z, x = (
            float(rng.uniform(10, 24)),
            (world.street.lanes * LANE - 0.6) * float(rng.choice([-1, 1])),
        )
        colour, way = random_frame(rng), int(rng.choice([-1, 1]))
        rider = Bicycle(world.x(x, z), z, random_look(rng), colour, way, 0.42, world.sunlit(x, z))
        plan.street.append((z, rider))


def _plan_crossing(plan: Plan, rng: np.random.Generator) -> None:
    """Crossing traffic seen from the side, traffic lights, people on the zebra."""
    world, crossing = plan.world, plan.world.street.crossing
    if crossing is None:
        return
    middle, half = sum(crossing) / 2, world.street.half
    for way in (-1, 1):
        z, x = middle - way * 2.0, float(rng.uniform(-22, -4))
        while x < 24:
            if rng.random() < 0.6:
                kind = str(rng.choice(KINDS, p=[0.26, 0.2, 0.18, 0.14, 0.08, 0.07, 0.07]))
                car = _vehicle(world, x, z, way * np.pi / 2, kind, rng)
                target = plan.street if abs(x) < half else plan.behind
                target.append((z, car))
                x += size_of(kind)[0] / 2
            x += float(rng.uniform(6, 16))
    state = int(rng.choice([0, 2, 2]))
    for side in (-1, 1):
        x, z = side * (half + 0.6), crossing[0] - 0.8
        light = TrafficLight(world.x(x, z), z, -side, state, world.sunlit(x, z))
        plan.street.append((z, light))
    if world.street.zebra:
        for _ in range(int(rng.integers(0, 4))):
            z, x = crossing[0] - float(rng.uniform(1.8, 4.2)), float(rng.uniform(-1, 1)) * half
            person = Person(world.x(x, z), z, random_look(rng), world.sunlit(x, z))
            plan.street.append((z, person))
