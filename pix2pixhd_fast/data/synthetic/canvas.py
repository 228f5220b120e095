"""The three maps of a scene, and the ways to put something on them."""

from collections import Counter

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pix2pixhd_fast.data.synthetic.texture import Array
from pix2pixhd_fast.data.synthetic.world import World

FIRST_THING = 24
_LONGEST_REACH = 120


class Canvas:
    """`label` uint8 [H, W], `inst` int32 [H, W], `image` float32 [3, H, W] (1.0 is white)."""

    def __init__(self, width: int, height: int, world: World):
        self.width, self.height, self.world = width, height, world
        self.label = np.zeros((height, width), np.uint8)
        self.inst = np.zeros((height, width), np.int32)
        self.image = np.zeros((3, height, width), np.float32)
        self.sky_low = np.asarray(world.light.sky_low, np.float32)
        self._objects: Counter[int] = Counter()

    def new_instance(self, label: int) -> int:
        """The id of the next object: label * 1000 + k for things, the label itself for stuff."""
        if label < FIRST_THING:
            return label
        self._objects[label] += 1
        return label * 1000 + self._objects[label] - 1

    def scale(self, z: float) -> tuple[float, float]:
        """Pixels per metre across and down at distance z."""
        share = self.world.camera.focal / z
        return share * self.width, 2 * share * self.height

    def project(self, points: Array) -> Array:
        """Camera points [n, 3] in metres to pixel coordinates (x, y) [n, 2]."""
        camera = self.world.camera
        scale = camera.focal / points[:, 2]
        pixels = np.empty((len(points), 2))
        pixels[:, 0] = (camera.u0 + scale * points[:, 0]) * self.width
        pixels[:, 1] = (camera.v0 + 2 * scale * (camera.height - points[:, 1])) * self.height
        return pixels

    def place(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Pixel coordinates (x, y) of one camera point."""
        camera, (across, down) = self.world.camera, self.scale(z)
        return (
            camera.u0 * self.width + across * x,
            camera.v0 * self.height + down * (camera.height - y),
        )

    def sees(self, x: float, z: float, reach: float) -> bool:
        """Whether what reaches `reach` metres to both sides of camera (x, z) is in the frame."""
        camera = self.world.camera
        middle, half = camera.u0 + camera.focal * x / z, camera.focal * reach / z
        return middle + half > 0 and middle - half < 1

    def rows_on_ground(self, z: float, depth: float) -> float:
        """Height in pixels of a strip of ground, `depth` metres deep, at distance z."""
        camera = self.world.camera
        return 2 * camera.focal * camera.height * self.height * depth / (z * z)

    def haze(self, z: Array | float) -> Array:
        """Share of haze in what is seen at distance z, in [0, 1)."""
        return 1 - np.exp(-np.asarray(z, np.float32) / np.float32(self.world.light.haze_distance))

    def stamp(
        self, left: int, top: int, colour: Array, cover: Array, label: int, inst: int
    ) -> None:
        """Put `colour` [3, h, w] on the maps where `cover` [h, w] is at least one half.

        Inside that mask the image blends by `cover`, outside it nothing changes. The box must lie
        inside the frame. Overwrites `colour`.
        """
        colour *= cover
        self.stamp_covered(left, top, colour, cover, label, inst)

    def stamp_covered(
        self, left: int, top: int, colour: Array, cover: Array, label: int, inst: int
    ) -> None:
        """`stamp` of a `colour` that is multiplied by `cover` already."""
        part = np.s_[top : top + cover.shape[0], left : left + cover.shape[1]]
        mask = cover >= 0.5
        target = self.image[:, part[0], part[1]]
        target *= 1 - cover * mask
        colour *= mask
        target += colour
        np.copyto(self.label[part], np.uint8(label), where=mask)
        np.copyto(self.inst[part], np.int32(inst), where=mask)

    def shadow(self, points: Array, strength: float, blur: float) -> None:
        """Darken the image inside the camera polygon [n, 3]; its edges are `blur` metres soft."""
        corners = self.project(points)
        soft = blur * self.scale(float(points[:, 2].mean()))[0]
        low, high = corners.min(0), corners.max(0)
        if high[1] - low[1] < 0.7 or high[0] - low[0] < 1.5:
            return
        reach = int(min(soft * 2 + 1, _LONGEST_REACH))
        x0, y0 = max(int(low[0]) - reach, 0), max(int(low[1]) - reach, 0)
        x1 = min(int(high[0]) + 1 + reach, self.width)
        y1 = min(int(high[1]) + 1 + reach, self.height)
        if x1 <= x0 or y1 <= y0:
            return
        shrink = max(1, int(soft // 3))
        size = ((x1 - x0) // shrink + 2, (y1 - y0) // shrink + 2)
        picture = Image.new("L", size, 0)
        outline = ((corners - (x0, y0)) / shrink).ravel().tolist()
        ImageDraw.Draw(picture).polygon(outline, fill=round(255 * strength))
        if soft > 0.5:
            picture = picture.filter(ImageFilter.GaussianBlur((soft / shrink, soft / shrink / 2)))
        if shrink > 1:
            full = (size[0] * shrink, size[1] * shrink)
            picture = picture.resize(full, Image.Resampling.BILINEAR)
        weight = np.asarray(picture)[: y1 - y0, : x1 - x0] * np.float32(-1 / 255)
        weight += 1
        self.image[:, y0:y1, x0:x1] *= weight
