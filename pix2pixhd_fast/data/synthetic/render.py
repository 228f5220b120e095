"""One synthetic street scene: label, instance and colour map."""

import numbers
from dataclasses import dataclass

import numpy as np

from pix2pixhd_fast.data.synthetic.canvas import Canvas
from pix2pixhd_fast.data.synthetic.ground import draw_ground, draw_sky
from pix2pixhd_fast.data.synthetic.layout import plan_scene
from pix2pixhd_fast.data.synthetic.sprite import Sprite
from pix2pixhd_fast.data.synthetic.texture import Array, noise
from pix2pixhd_fast.data.synthetic.world import random_world
from pix2pixhd_fast.errors import InputError

EGO, OUT_OF_ROI = 1, 3
SMALLEST = 32


@dataclass(frozen=True)
class Scene:
    """`label` uint8 [H, W], `inst` int32 [H, W], `image` uint8 [H, W, 3]."""

    label: Array
    inst: Array
    image: Array


def scene(width: int = 2048, height: int = 1024, seed: int = 0) -> Scene:
    """Draw the street scene of `seed` at any size from 32 x 32 pixels.

    Labels are Cityscapes ids. Instance ids are those of Cityscapes: the label itself for stuff,
    label * 1000 + k for objects. The same arguments give the same bits, the same seed at another
    size the same scene (stretched where the ratio is not 2 to 1). Raises `InputError` for a size
    below 32 or a negative seed.
    """
    check_size(width, height, seed)
    world = random_world(int(seed))
    plan = plan_scene(world)
    canvas = Canvas(int(width), int(height), world)
    draw_sky(canvas)
    draw_ground(canvas)
    plan.draw(canvas)
    _draw_bonnet(canvas)
    _draw_border(canvas)
    return Scene(canvas.label, canvas.inst, _develop(canvas))


def check_size(width: int, height: int, seed: int) -> None:
    """Raise `InputError` unless a scene of this size and seed can be drawn."""
    for name, value, least in (
        ("width", width, SMALLEST),
        ("height", height, SMALLEST),
        ("seed", seed, 0),
    ):
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _draw_bonnet(canvas: Canvas) -> None:
    """The bonnet of the car that carries the camera: dark paint that mirrors the sky."""
    u = np.linspace(0.13, 0.87, 41)
    arch = 0.925 + 0.075 * np.abs((u - 0.5) / 0.37) ** 3.2
    sky = 0.4 * np.asarray(canvas.world.light.sky_low) + 0.45
    sprite = Sprite(canvas, (0, 0.90 * canvas.height, canvas.width, canvas.height))
    for share, tone in ((0.0, 0.30), (0.06, 0.50), (0.16, 0.36), (0.34, 0.26), (0.6, 0.20)):
        curve = [(a * canvas.width, (v + (1 - v) * share + 0.004) * canvas.height)
                 for a, v in zip(u, arch, strict=True)]  # fmt: skip
        bottom = [
            (0.87 * canvas.width, 1.01 * canvas.height),
            (0.13 * canvas.width, 1.01 * canvas.height),
        ]
        sprite.polygon(np.array(curve + bottom), sky * tone)
    sprite.stamp(EGO, EGO, 0.0)


def _draw_border(canvas: Canvas) -> None:
    """The frame of pixels outside the region of interest, dark as the edge of a lens."""
    edge_x, edge_y = max(1, round(canvas.width * 0.0025)), max(1, round(canvas.height * 0.005))
    for part in (np.s_[:, :edge_x], np.s_[:, -edge_x:], np.s_[:edge_y], np.s_[-edge_y:]):
        canvas.label[part] = canvas.inst[part] = OUT_OF_ROI
    outside = canvas.label == OUT_OF_ROI
    canvas.image *= 1 - np.float32(0.4) * outside


def _develop(canvas: Canvas) -> Array:
    """Vignette, tone curve and sensor noise: linear planes to uint8 [H, W, 3]."""
    v = (np.arange(canvas.height, dtype=np.float32)[:, None] + 0.5) / canvas.height * 2 - 1
    u = (np.arange(canvas.width, dtype=np.float32)[None] + 0.5) / canvas.width * 2 - 1
    lens = 1 - np.float32(0.13) * (u * u) * (u * u) - np.float32(0.06) * v * v
    repeats = (canvas.height // 256 + 1, canvas.width // 256 + 1)
    grain = np.tile(noise("grain"), repeats)[: canvas.height, : canvas.width]
    image = np.empty((canvas.height, canvas.width, 3), np.uint8)
    for channel, plane in enumerate(canvas.image):
        value = plane * lens
        np.clip(value, 0, 1.25, out=value)
        value *= 1.06 + 0.10 * value - 0.165 * value * value
        value += np.float32(0.006) * np.roll(grain, 91 * channel, 1)
        value *= 255
        np.clip(value, 0, 254.5, out=value)
        image[..., channel] = value + np.float32(0.5)
    return image
