"""Sky, road, pavement and grass: the surfaces that are shaded pixel by pixel."""

import numpy as np

from pix2pixhd_fast.data.synthetic.canvas import Canvas
from pix2pixhd_fast.data.synthetic.texture import (
    Array,
    band,
    mix,
    noise,
    planes,
    pulse,
    resize,
    sample,
)
from pix2pixhd_fast.data.synthetic.world import KERB, LANE, World

ROAD, SIDEWALK, TERRAIN, SKY = 7, 8, 22, 23
FARTHEST = 600.0
SKY_GRID = (208, 88)


def draw_sky(canvas: Canvas) -> None:
    """A gradient, a glow around the sun and clouds that shrink towards the horizon."""
    world, light = canvas.world, canvas.world.light
    rng = np.random.default_rng((world.seed, 2))
    width, height = SKY_GRID
    u = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None]
    fall = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    low = np.clip(fall / world.camera.v0, 0, 1)
    sky = planes(light.sky_top, np.ones((height, width), np.float32))
    mix(sky, light.sky_low, low**1.6)
    side, above, forward = light.sun
    sun_u = world.camera.u0 + (side / max(forward, 0.3)) * 0.5
    glow = np.exp(
        -(((u - sun_u) / 0.32) ** 2) - ((fall - world.camera.v0 + 0.6 * above) / 0.3) ** 2
    )
    mix(sky, (1.0, 0.97, 0.88), glow * (0.45 if forward > 0 else 0.1) * min(light.sunlight[0], 0.6))
    depth = 1 / (np.maximum(world.camera.v0 - fall, 0) + 0.10)
    x, y = rng.uniform(0, 256, 2)
    rows, columns = depth * 22 + y, (u - 0.5) * depth * 40 + x
    density = bilinear(noise("cloud"), rows, columns)
    lower = bilinear(noise("cloud"), rows + 3.0, columns - 2 * np.sign(side))
    cover = np.clip((density + light.clouds * 3.2 - 1.25) * 0.75, 0, 1)
    cover = cover * cover * (3 - 2 * cover) * np.clip(1.25 - low, 0.25, 1)
    body = planes(light.cloud, np.ones_like(cover))
    mix(body, light.cloud_shade, np.clip(0.35 + 0.5 * (density - lower) + 0.25 * density, 0, 1))
    mix(sky, body, cover * 0.92)
    rows_seen = int(canvas.height * (world.camera.v0 + 0.02)) + 1
    for plane, values in zip(canvas.image, sky, strict=True):
        part = values[: max(2, round(height * rows_seen / canvas.height))]
        plane[:rows_seen] = resize(part, canvas.width, rows_seen)
    canvas.label[:] = canvas.inst[:] = SKY


def bilinear(tile: Array, rows: Array, columns: Array) -> Array:
    """Periodic bilinear look-up of `tile` at float coordinates that broadcast together."""
    size = tile.shape[0]
    row, column = np.floor(rows).astype(np.int32), np.floor(columns).astype(np.int32)
    down, across = rows - row, columns - column
    r0, r1, c0, c1 = row % size, (row + 1) % size, column % size, (column + 1) % size
    upper = tile[r0, c0] * (1 - across) + tile[r0, c1] * across
    lower = tile[r1, c0] * (1 - across) + tile[r1, c1] * across
    return upper * (1 - down) + lower * down


class Ground:
    """Street coordinates of every pixel below the horizon.

    `x` [h, w] and `z` [h, 1] in metres, `hx` and `hz` [h, 1]: half the size of a pixel there;
    `wide` [h, w]: half the width of street that a pixel spans, which grows to the sides.
    """

    def __init__(self, canvas: Canvas):
        world, camera = canvas.world, canvas.world.camera
        self.canvas, self.street = canvas, world.street
        v = (np.arange(canvas.height, dtype=np.float32) + 0.5) / canvas.height
        self.top = int(np.argmax(v > camera.v0)) if v[-1] > camera.v0 else canvas.height - 1
        below = np.maximum(v[self.top :] - np.float32(camera.v0), 1e-4)[:, None]
        self.z = np.minimum(2 * camera.focal * camera.height / below, FARTHEST)
        self.hx = self.z / (2 * camera.focal * canvas.width)
        self.hz = self.z**2 / (4 * camera.focal * camera.height * canvas.height)
        u = ((np.arange(canvas.width, dtype=np.float32) + 0.5) / canvas.width)[None]
        self.x = (u - np.float32(camera.u0)) * (self.z / camera.focal)
        self.x += camera.offset - self.street.bend * self.z**2
        self.wide = np.abs(u - np.float32(camera.u0)) * (self.hz / camera.focal)
        self.wide += self.hx
        self.right = self.x > 0
        self.beyond = np.abs(self.x) - np.float32(self.street.half)
        rng = np.random.default_rng((world.seed, 3))
        self.shift = rng.uniform(0, 256, 8).astype(np.float32)

    def by_side(self, left: float, right: float) -> Array:
        """`left` or `right` by the side of the street, float32 [h, w]."""
        return np.where(self.right, np.float32(right), np.float32(left))

    def texture(self, name: str, texel: float, shift: int) -> Array:
        """Noise with texels of `texel` metres that fades where they are finer than pixels."""
        fade = np.clip(0.75 * texel / np.maximum(self.hx, 0.35 * self.hz), 0, 1)
        rows = self.z / texel + self.shift[shift]
        return sample(name, rows, self.x / texel + (self.shift[shift + 1] + 4096)) * fade


def draw_ground(canvas: Canvas) -> None:
    """Road with markings, kerbs, pavement and grass, with the shadow of the walls."""
    ground = Ground(canvas)
    label = _ground_labels(ground)
    image = _asphalt(ground)
    _mark_road(ground, image)
    for target, shade in ((SIDEWALK, _slabs), (TERRAIN, _grass)):
        mask = label == target
        if mask.any():
            np.copyto(image, shade(ground), where=mask)
    _gutter(ground, image, label)
    image *= _ground_light(canvas, ground)
    mix(image, canvas.world.light.sky_low, canvas.haze(ground.z))
    canvas.image[:, ground.top :] = image
    canvas.label[ground.top :] = label
    canvas.inst[ground.top :] = label


def _ground_labels(ground: Ground) -> Array:
    street, beyond = ground.street, ground.beyond
    label = np.full(ground.x.shape, SIDEWALK, np.uint8)
    verge = ground.by_side(KERB + street.left.verge, KERB + street.right.verge)
    label[(beyond >= KERB) & (beyond < verge)] = TERRAIN
    for side, chosen in ((street.left, ~ground.right), (street.right, ground.right)):
        inner = side.depth - side.garden
        if side.garden or side.park:
            label[chosen & (beyond >= inner)] = TERRAIN
    label[beyond < 0] = ROAD
    if street.crossing:
        across = (ground.z >= street.crossing[0]) & (ground.z < street.crossing[1])
        label[across[:, 0]] = ROAD
        near = (ground.z >= street.crossing[0] - 7) & (ground.z < street.crossing[1] + 7)
        label[near & (label == TERRAIN)] = SIDEWALK
    return label


def _asphalt(ground: Ground) -> Array:
    """Road surface: coarse stains, grain, darker wheel tracks and repaired patches."""
    rng = np.random.default_rng((ground.canvas.world.seed, 4))
    shade = ground.texture("patch", 0.06, 0) * np.float32(0.018)
    shade += ground.texture("grain", 0.012, 2) * np.float32(0.026)
    shade += np.float32(0.345 + rng.uniform(-0.03, 0.03))
    lane = np.abs(pulse_centre(ground.x / np.float32(LANE)) - 0.25)
    shade -= np.clip(0.16 - lane, 0, 1) * np.float32(0.22) / (1 + ground.hx)
    for _ in range(int(rng.integers(2, 6))):
        x, z = rng.uniform(-1, 1) * ground.street.half, rng.uniform(6, 40)
        broad, long = rng.uniform(0.6, 1.8), rng.uniform(1.5, 9)
        rows = np.flatnonzero((ground.z[:, 0] > z - 1) & (ground.z[:, 0] < z + long + 1))
        if rows.size:
            part = np.s_[rows[0] : rows[-1] + 1]
            cover = band(ground.x[part], ground.wide[part], x, x + broad)
            cover = cover * band(ground.z[part], ground.hz[part], z, z + long)
            shade[part] -= cover * np.float32(rng.uniform(0.03, 0.07))
    return planes((0.985, 1.0, 1.03), shade)


def pulse_centre(t: Array) -> Array:
    """Distance of t to the middle of its period, in [0, 0.5]."""
    return np.abs(t - np.floor(t) - np.float32(0.5))


def _mark_road(ground: Ground, image: Array) -> None:
    """White paint: centre, lane and edge lines, parking bays, zebra crossing and stop line."""
    street, z, hz, wide = ground.street, ground.z, ground.hz, ground.wide
    phase = ground.shift[6] / 256
    open_road = np.ones_like(z)
    if street.crossing:
        start, stop = street.crossing
        open_road -= band(z, hz, start - 6.5, stop + 6.5)
    distance = np.abs(ground.x)
    paint = band(ground.x, wide, -0.08, 0.08) * (pulse(z / 9 + phase, hz / 9, 0, 0.42) * open_road)
    for lane in range(1, street.lanes):
        edge = lane * LANE
        dashes = pulse(z / 6 + phase, hz / 6, 0, 0.5) * open_road
        paint += band(distance, wide, edge - 0.07, edge + 0.07) * dashes
    edge = street.lanes * LANE
    if street.parking:
        paint += band(distance, wide, edge - 0.07, edge + 0.07) * open_road
        bays = pulse(z / 6.2 + phase, hz / 6.2, 0, 0.02) * open_road
        paint += band(distance, wide, edge, street.half - 0.05) * bays
    else:
        paint += band(distance, wide, edge - 0.45, edge - 0.31) * open_road
    if street.crossing and street.zebra:
        stripes = pulse(ground.x, wide, 0.0, 0.52) * band(distance, wide, 0, street.half - 0.3)
        paint += stripes * band(z, hz, start - 4.6, start - 1.4)
        paint += stripes * band(z, hz, stop + 1.4, stop + 4.6)
        paint += band(ground.x, wide, 0.15, edge - 0.2) * band(z, hz, start - 6.1, start - 5.6)
    worn = 0.88 + 0.1 * ground.texture("patch", 0.03, 4)
    mix(image, (0.90, 0.90, 0.88), np.clip(paint * worn, 0, 0.95))


def _slabs(ground: Ground) -> Array:
    """Pavement: square slabs of slightly different tone with dark joints."""
    side = np.float32(0.75)
    rows, columns = ground.z / side, ground.x / side + 512
    tone = noise("grain")[rows.astype(np.int32) & 255, columns.astype(np.int32) & 255]
    shade = tone * (np.float32(0.022) * np.clip(0.4 / ground.hz, 0, 1))
    shade += ground.texture("grain", 0.02, 4) * np.float32(0.022)
    shade += ground.texture("patch", 0.09, 2) * np.float32(0.018)
    shade += np.float32(0.60)
    joints = pulse(columns, ground.wide / side, 0, 0.045) + pulse(rows, ground.hz / side, 0, 0.045)
    shade *= 1 - np.float32(0.30) * np.minimum(joints, 1)
    return planes((1.0, 0.965, 0.92), shade)


def _grass(ground: Ground) -> Array:
    """Grass: blades, tufts and drier patches."""
    blades = ground.texture("grain", 0.025, 0)
    tufts = ground.texture("leaf", 0.02, 2)
    dry = ground.texture("patch", 0.12, 4)
    image = planes((0.30, 0.46, 0.17), 1 + np.float32(0.16) * blades + np.float32(0.14) * tufts)
    mix(image, (0.50, 0.50, 0.24), np.clip(0.22 + 0.22 * dry, 0, 0.7))
    return image


def _gutter(ground: Ground, image: Array, label: Array) -> None:
    """Kerb stones: a light top, a dark face towards the road, and dirt in the gutter."""
    street, beyond = ground.street, ground.beyond
    along = np.ones_like(ground.z)
    if street.crossing:
        start, stop = street.crossing
        along -= band(ground.z, ground.hz, start, stop)
        for near, far in ((start - KERB, start), (stop, stop + KERB)):
            stone = band(ground.z, ground.hz, near, far) * (beyond > 0)
            mix(image, (0.72, 0.71, 0.69), stone * (label == SIDEWALK))
    dirt = np.clip(1 + beyond / np.float32(0.7), 0, 1) * (label == ROAD) * along
    image *= 1 - np.float32(0.25) * dirt * dirt
    pavement = label == SIDEWALK
    stone = band(beyond, ground.wide, 0.0, KERB) * along * pavement
    blocks = pulse(ground.z, ground.hz, 0, 0.03)
    mix(image, (0.74, 0.73, 0.71), stone * (1 - 0.35 * blocks))
    mix(image, (0.33, 0.33, 0.34), band(beyond, ground.wide, 0.0, 0.09) * along * pavement)


def _ground_light(canvas: Canvas, ground: Ground) -> Array:
    """Light on the ground [3, h, w]: the sky everywhere, the sun where no wall is in its way."""
    world: World = canvas.world
    light = world.light
    edge = world.shadow_edge(ground.z)
    soft = np.float32(0.12) + 2 * ground.hx
    lit = np.clip((ground.x - edge) / soft * (1 if light.sun[0] < 0 else -1), 0, 1)
    walls = ground.by_side(-world.street.wall(-1), world.street.wall(1)) - np.abs(ground.x)
    closed = 1 - np.float32(0.22) * np.clip(1 - walls / 2.5, 0, 1)
    up = np.array([0.0, 1.0, 0.0], np.float32)
    shaded, sunny = light.on(up, 0.0), light.on(up, 1.0) - light.on(up, 0.0)
    result = lit * sunny[:, None, None]
    result += shaded[:, None, None]
    result *= closed
    return result
