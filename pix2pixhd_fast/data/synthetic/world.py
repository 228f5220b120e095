"""Camera, light and street of a synthetic scene: everything that all objects share."""

from dataclasses import dataclass, field

import numpy as np

from pix2pixhd_fast.data.synthetic.texture import Array, Colour

LANE = 3.3
PARKING = 2.3
KERB = 0.28


@dataclass(frozen=True)
class Camera:
    """A pinhole camera at street position (`offset`, `height`, 0) that looks along the street.

    A point (x, y, z) in metres, x to the right of the camera, y up from the ground, z forwards, is
    seen at u = u0 + focal * x / z of the width and v = v0 + 2 * focal * (height - y) / z of the
    height.
    """

    u0: float
    v0: float
    focal: float
    height: float
    offset: float


@dataclass(frozen=True)
class Light:
    """Colours in [0, 1]; `sun` is the unit vector to the sun, `haze_distance` in metres."""

    sky_top: Colour
    sky_low: Colour
    cloud: Colour
    cloud_shade: Colour
    clouds: float
    ambient: Colour
    sunlight: Colour
    sun: Colour
    haze_distance: float

    def on(self, normals: Array, visible: Array | float = 1.0) -> Array:
        """Light [..., 3] on surfaces with unit `normals` [..., 3]; `visible`: sun, 0 to 1."""
        normals = np.asarray(normals, np.float32)
        facing = np.maximum(normals @ np.asarray(self.sun, np.float32), 0) * visible
        above = 0.86 + 0.14 * normals[..., 1]
        ambient = above[..., None] * np.asarray(self.ambient, np.float32)
        return ambient + facing[..., None] * np.asarray(self.sunlight, np.float32)


@dataclass(frozen=True)
class Side:
    """One side of the street, widths in metres from the road outwards; `park`: trees, no houses."""

    verge: float
    pavement: float
    garden: float
    park: bool

    @property
    def depth(self) -> float:
        """From the edge of the road to the walls."""
        return KERB + self.verge + self.pavement + self.garden


@dataclass(frozen=True)
class Street:
    """The street along z: x = 0 is its middle, which bends by `bend` * z² to the right."""

    lanes: int
    parking: bool
    left: Side
    right: Side
    bend: float
    crossing: tuple[float, float] | None
    zebra: bool
    end: float

    @property
    def half(self) -> float:
        """Half the width of the road."""
        return self.lanes * LANE + (PARKING if self.parking else 0.0)

    def wall(self, side: int) -> float:
        """Street x of the walls on the left (-1) or right (+1) side."""
        return side * (self.half + (self.left if side < 0 else self.right).depth)


@dataclass
class World:
    """What a scene is made of, whatever its size in pixels; `shadow` is (z0, z1, x) of eaves."""

    camera: Camera
    light: Light
    street: Street
    seed: int
    shadow: list[tuple[float, float, float]] = field(default_factory=list)

    def x(self, street_x: float, z: float) -> float:
        """Camera x of a street position."""
        return street_x - self.camera.offset + self.street.bend * z * z

    def shadow_edge(self, z: Array) -> Array:
        """Street x up to which the walls on the sun's side shade the ground, at each z."""
        edge = np.full(np.shape(z), np.copysign(99.0, self.light.sun[0]), np.float32)
        for start, stop, x in self.shadow:
            edge = np.where((z >= start) & (z < stop), np.float32(x), edge)
        return edge

    def sunlit(self, street_x: float, z: float) -> float:
        """1 where the sun reaches the ground, 0 in the shadow of walls."""
        side = 1.0 if self.light.sun[0] < 0 else -1.0
        inside = any(a <= z < b and side * street_x <= side * x for a, b, x in self.shadow)
        return float(not inside)


_LIGHTS = {
    "sunny": dict(
        sky_top=(0.33, 0.56, 0.87), sky_low=(0.76, 0.86, 0.95), cloud=(1.0, 1.0, 1.0),
        cloud_shade=(0.72, 0.77, 0.85), clouds=0.42, ambient=(0.61, 0.64, 0.70),
        sunlight=(0.62, 0.55, 0.43), elevation=48.0, haze_distance=420.0,
    ),
    "hazy": dict(
        sky_top=(0.56, 0.70, 0.87), sky_low=(0.90, 0.92, 0.94), cloud=(0.98, 0.98, 0.99),
        cloud_shade=(0.80, 0.83, 0.88), clouds=0.55, ambient=(0.70, 0.73, 0.78),
        sunlight=(0.38, 0.35, 0.29), elevation=55.0, haze_distance=260.0,
    ),
    "overcast": dict(
        sky_top=(0.64, 0.69, 0.76), sky_low=(0.87, 0.89, 0.91), cloud=(0.93, 0.94, 0.95),
        cloud_shade=(0.62, 0.66, 0.72), clouds=0.85, ambient=(0.86, 0.88, 0.90),
        sunlight=(0.07, 0.07, 0.06), elevation=70.0, haze_distance=230.0,
    ),
    "evening": dict(
        sky_top=(0.44, 0.56, 0.80), sky_low=(1.0, 0.87, 0.69), cloud=(1.0, 0.91, 0.80),
        cloud_shade=(0.84, 0.72, 0.70), clouds=0.45, ambient=(0.70, 0.66, 0.65),
        sunlight=(0.60, 0.45, 0.26), elevation=36.0, haze_distance=320.0,
    ),
}  # fmt: skip


def random_light(rng: np.random.Generator) -> Light:
    """One of four kinds of weather, with the sun from the left or the right, in front or behind."""
    kind = str(rng.choice(["sunny", "sunny", "hazy", "overcast", "evening"]))
    values = dict(_LIGHTS[kind])
    elevation = np.radians(values.pop("elevation") + rng.uniform(-6, 6))
    azimuth = np.radians(rng.uniform(35, 75)) * rng.choice([-1, 1])
    forward = float(rng.choice([-1, -1, 1]))
    sun = (np.sin(azimuth) * np.cos(elevation), np.sin(elevation),
           np.cos(azimuth) * np.cos(elevation) * forward)  # fmt: skip
    tint = 1 + rng.uniform(-0.03, 0.03, 3)
    for name in ("ambient", "sunlight", "sky_top", "sky_low"):
        values[name] = tuple(float(value) for value in np.asarray(values[name]) * tint)
    values["clouds"] = float(values["clouds"] + rng.uniform(-0.12, 0.12))
    return Light(**values, sun=tuple(float(value) for value in sun))


def random_street(rng: np.random.Generator) -> Street:
    """Lanes, parking, verges, a bend, and most often a crossing."""
    lanes = 1 if rng.random() < 0.62 else 2
    parking = bool(rng.random() < (0.8 if lanes == 1 else 0.45))
    park = int(rng.choice([-1, 0, 0, 0, 0, 1]))
    sides = []
    for side in (-1, 1):
        verge = float(rng.uniform(1.0, 2.2)) if rng.random() < 0.45 or side == park else 0.0
        garden = float(rng.uniform(1.2, 2.6)) if rng.random() < 0.3 else 0.0
        sides.append(Side(verge, float(rng.uniform(2.4, 4.2)), garden, side == park))
    start = float(rng.uniform(24, 48))
    crossing = (start, start + float(rng.uniform(8.5, 12))) if rng.random() < 0.65 else None
    bend = float(rng.uniform(-1, 1) * 0.0007) if rng.random() < 0.6 else 0.0
    zebra, end = bool(rng.random() < 0.7), float(rng.uniform(95, 150))
    return Street(lanes, parking, *sides, bend, crossing, zebra, end)


def random_world(seed: int) -> World:
    """Camera, light and street of scene `seed`."""
    rng = np.random.default_rng((seed, 1))
    street = random_street(rng)
    lane = int(rng.integers(street.lanes))
    camera = Camera(
        u0=float(rng.uniform(0.44, 0.56)),
        v0=float(rng.uniform(0.40, 0.46)),
        focal=float(rng.uniform(0.78, 0.92)),
        height=float(rng.uniform(1.35, 1.7)),
        offset=LANE * (lane + 0.5) + float(rng.uniform(-0.3, 0.3)),
    )
    return World(camera, random_light(rng), street, seed)
