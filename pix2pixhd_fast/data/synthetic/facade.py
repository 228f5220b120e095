"""What is on a wall: bricks, windows, shops, doors, cornices, roof tiles."""

from dataclasses import dataclass

import numpy as np

from pix2pixhd_fast.data.synthetic.buildings import View, Wall, finish, view_of
from pix2pixhd_fast.data.synthetic.canvas import Canvas
from pix2pixhd_fast.data.synthetic.texture import Array, band, mix, noise, planes, pulse, sample

_ROOM, _SHOP_ROOM, _CURTAIN = (0.19, 0.25, 0.32), (0.20, 0.23, 0.26), (0.82, 0.78, 0.70)
_RAIL, _PLINTH, _BRICKWORK = (0.21, 0.22, 0.24), (0.42, 0.41, 0.40), (0.48, 0.33, 0.27)
_COARSE = 2.2


@dataclass(frozen=True)
class House:
    """A wall of a house as something to draw."""

    wall: Wall

    @property
    def nearest(self) -> float:
        """Smallest distance z."""
        return self.wall.nearest

    def view(self, canvas: Canvas, skyline: Array) -> View | None:
        """What is seen of it above nearer walls; raises `skyline`."""
        return view_of(canvas, self.wall, skyline)

    def draw(self, canvas: Canvas, view: View) -> None:
        """Put the wall on the maps."""
        finish(canvas, self.wall, view, _Facade(self.wall, view).albedo())


class _Facade:
    """Albedo [3, h, w] of a wall, painted from the masonry outwards.

    `column` [w] counts bays along the wall and `level` [h, w] floors above the ground floor; `half`
    and `reach` are half a pixel of them.
    """

    def __init__(self, wall: Wall, view: View):
        self.wall, self.style, self.view = wall, wall.style, view
        bay = np.float32(view.length / max(1, round(view.length / wall.style.bay)))
        self.column, self.half = view.s / bay, view.hs / bay
        self.number = np.floor(self.column).astype(np.int32)
        self.coarse = float(np.median(self.half)) * 2 * _COARSE > 1
        floor = np.float32(wall.style.floor)
        self.level = (view.y - np.float32(wall.style.ground_floor)) / floor
        self.reach = view.hy / floor
        self.image = _masonry(wall, view)

    def albedo(self) -> Array:
        """Everything on the wall."""
        height = self.wall.height
        low = np.float32(self.style.ground_floor)
        if float(self.view.y.max()) > low:
            self._windows()
        self._bands()
        if self.wall.front and float(self.view.y.min()) < low:
            self._street_level()
        if self.wall.roof > 0 and float(self.view.y.max()) > height:
            self._roof()
        return self.image

    def _columns(self, start: float, stop: float) -> Array:
        return pulse(self.column, self.half, start, stop)

    def _rows(self, start: float, stop: float) -> Array:
        return pulse(self.level, self.reach, start, stop)

    def _heights(self, start: float, stop: float) -> Array:
        return band(self.view.y, self.view.hy, start, stop)

    def _windows(self) -> None:
        """Rows of windows above the ground floor: shutters, frames, panes, sills, balconies."""
        style, image = self.style, self.image
        width, sill, lintel = style.window
        width *= 1.0 if self.wall.front else 0.6
        left, right = 0.5 - width / 2, 0.5 + width / 2
        upper = self._heights(style.ground_floor, self.wall.height - 0.45)
        storey = np.floor(self.level)
        chance = style.table[storey.astype(np.int32) & 15, self.number & 31]
        if not self.wall.front:
            upper *= chance < 0.4
        if style.shutters and not self.coarse:
            beside = self._columns(left - 0.13, right + 0.13) - self._columns(left, right)
            mix(image, style.accent, self._rows(sill, lintel) * upper * beside * np.float32(0.9))
        around = self._rows(sill - 0.04, lintel + 0.04) * upper
        mix(image, style.trim, around * self._columns(left - 0.04, right + 0.04))
        panes = self._columns(left + 0.01, right - 0.01)
        if not self.coarse:
            panes -= self._columns(0.485, 0.515)
        glass = self._rows(sill + 0.015, lintel - 0.015) * upper
        if style.material != "concrete" and not self.coarse:
            glass -= self._rows(lintel - 0.20, lintel - 0.175) * upper
        self._glass(np.maximum(glass, 0) * panes, chance, self.level - storey, (sill, lintel))
        if self.coarse:
            return
        ledge = self._columns(left - 0.07, right + 0.07) * upper
        mix(image, style.trim, self._rows(sill - 0.085, sill - 0.03) * ledge)
        image *= 1 - np.float32(0.22) * (self._rows(sill - 0.14, sill - 0.085) * ledge)
        if style.balconies and self.wall.front:
            self._balconies(upper)

    def _glass(self, cover: Array, chance: Array, inside: Array, span: tuple[float, float]) -> None:
        """Panes: dark rooms under the shade of the lintel, the sky's reflection, curtains."""
        share = (inside - np.float32(span[0])) / np.float32(span[1] - span[0])
        tone = np.float32(0.45) + np.float32(0.55) * share + np.float32(0.4) * chance
        tone -= np.float32(0.55) * np.clip((share - np.float32(0.86)) * 8, 0, 1)
        for plane, value in zip(self.image, _ROOM, strict=True):
            plane += (np.float32(value) * tone - plane) * cover
        drawn = (chance > 0.62) & (share > 1.9 - 1.6 * chance)
        mix(self.image, _CURTAIN, cover * drawn * np.float32(0.7))

    def _balconies(self, upper: Array) -> None:
        """A slab and a railing in front of every third bay."""
        chosen = self._columns(0.06, 0.94) * (self.number % 3 == 1) * upper
        bars = pulse(self.column * 12, self.half * 12, 0, 0.35)
        mix(self.image, _RAIL, self._rows(0.03, 0.34) * chosen * (0.25 + 0.6 * bars))
        mix(self.image, _RAIL, self._rows(0.31, 0.35) * chosen)
        mix(self.image, self.style.trim, self._rows(0.0, 0.05) * chosen)
        self.image *= 1 - np.float32(0.3) * self._rows(0.90, 1.0) * chosen

    def _bands(self) -> None:
        """Cornices over the ground floor and under the eaves, corner stones, the plinth."""
        style, view, image = self.style, self.view, self.image
        eaves, low = self.wall.height, style.ground_floor
        mix(image, style.trim, self._heights(eaves - 0.42, eaves))
        mix(image, style.trim, self._heights(low - 0.25, low))
        if self.coarse:
            return
        shade = self._heights(eaves - 0.75, eaves - 0.42)
        shade += np.float32(0.7) * self._heights(low - 0.42, low - 0.25)
        image *= 1 - np.float32(0.35) * shade
        if style.material != "concrete":
            ends = band(view.s, view.hs, -1, 0.35) + band(view.s, view.hs, view.length - 0.35, 999)
            near = np.flatnonzero(ends)
            if near.size:
                stones = pulse(
                    view.y[:, near] / np.float32(0.7), view.hy[near] / np.float32(0.7), 0, 0.5
                )
                stones *= (view.y[:, near] < eaves) * np.float32(0.25)
                stones += (view.y[:, near] < eaves) * np.float32(0.55)
                image[:, :, near] += (np.float32(style.trim[0]) - image[:, :, near]) * (
                    stones * ends[near]
                )
        mix(image, _PLINTH, self._heights(-9, 0.45) * np.float32(0.85))

    def _street_level(self) -> None:
        """Shop windows under signs, or house doors between windows."""
        style, view, image = self.style, self.view, self.image
        fate = style.table[15, self.number & 31]
        door = fate < (0.22 if style.shop else 0.34)
        top = style.ground_floor - 1.0
        left, right, sill = (0.06, 0.94, 0.5) if style.shop else (0.24, 0.76, 1.0)
        frame = self._columns(left, right) * ~door
        pane = self._columns(left + 0.03, right - 0.03) * ~door
        if not self.coarse:
            middle = (0.31, 0.34) if style.shop else (0.48, 0.52)
            pane = np.maximum(pane - self._columns(*middle), 0)
        mix(image, style.trim, self._heights(sill - 0.08, top + 0.08) * frame)
        share = np.clip((view.y - np.float32(sill)) / np.float32(top - sill), 0, 1)
        tone = np.float32(0.65) + np.float32(0.6) * share + np.float32(0.5) * (fate - 0.5)
        glass = self._heights(sill, top) * pane
        for plane, value in zip(image, _SHOP_ROOM, strict=True):
            plane += (np.float32(value) * tone - plane) * glass
        if style.shop:
            self._shop(glass, fate, (sill, top))
        opening, inner = self._columns(0.30, 0.70) * door, self._columns(0.35, 0.65) * door
        mix(image, style.trim, self._heights(0.0, 2.6) * opening)
        mix(image, tuple(0.75 * value for value in style.accent), self._heights(0.0, 2.1) * inner)
        mix(image, _ROOM, self._heights(2.15, 2.5) * inner)
        if not self.coarse:
            panel = self._columns(0.40, 0.60) * door
            image *= (
                1 - np.float32(0.25) * (self._heights(1.15, 1.95) + self._heights(0.2, 0.9)) * panel
            )

    def _shop(self, glass: Array, fate: Array, span: tuple[float, float]) -> None:
        """Goods on shelves, lamps, and the sign over the window."""
        style, view, image = self.style, self.view, self.image
        sill, top = span
        if not self.coarse:
            boxes = np.floor(view.s * 3.1).astype(np.int32)[None] * 7
            shelf = np.floor((view.y - np.float32(sill)) * np.float32(2.2)).astype(np.int32)
            pick = noise("grain")[(boxes + shelf * 31) & 255, (boxes * 3 + shelf) & 255]
            rows = pulse(
                view.y * np.float32(2.2) - np.float32(2.2 * sill), view.hy * 2.2, 0.04, 0.62
            )
            gaps = pulse(view.s * np.float32(3.1), view.hs * np.float32(3.1), 0.1, 0.9)
            goods = glass * rows * gaps * (shelf < 2) * np.clip(0.35 + 0.25 * pick, 0, 0.8)
            mix(image, (0.66, 0.52, 0.36), goods * (fate > 0.5))
            mix(image, (0.36, 0.47, 0.56), goods * (fate <= 0.5))
            mix(
                image,
                (0.98, 0.92, 0.76),
                glass * self._heights(top - 0.22, top - 0.12) * np.float32(0.75),
            )
        mix(image, style.accent, self._heights(top + 0.14, top + 0.70) * self._columns(0.02, 0.98))
        letters = pulse(self.column * 9 + fate, self.half * 9, 0.2, 0.7) * self._columns(0.2, 0.8)
        mark = self._heights(top + 0.31, top + 0.54)
        mix(image, (0.92, 0.90, 0.85), mark * letters * np.float32(0.85))

    def _roof(self) -> None:
        """Tiles above the eaves with dormer windows, and chimneys."""
        style, view, image = self.style, self.view, self.image
        eaves, roof = np.float32(self.wall.height), self.wall.roof
        above = np.clip((view.y - eaves) / (2 * view.hy) + np.float32(0.5), 0, 1)
        tiles = pulse((view.y - eaves) / np.float32(0.3), view.hy / np.float32(0.3), 0, 0.25)
        rows, columns = (view.y * 3.3).astype(np.int32), (view.s * 4).astype(np.int32)
        shade = np.float32(0.05) * noise("grain")[rows & 255, columns & 255]
        shade += 1.05 - np.float32(0.22) * tiles
        for plane, value in zip(image, style.roof, strict=True):
            plane += (np.float32(value) * shade - plane) * above
        if self.wall.front and not self.coarse:
            low, high = float(eaves) + 0.4, float(eaves) + max(roof - 0.6, 0.9)
            column, half = self.column / 2, self.half / 2
            mix(image, style.trim, self._heights(low, high) * pulse(column, half, 0.38, 0.62))
            dark = self._heights(low + 0.15, high - 0.15) * pulse(column, half, 0.41, 0.59)
            mix(image, _ROOM, dark)
        mix(image, _BRICKWORK, self._heights(float(eaves) + roof, 999))


def _masonry(wall: Wall, view: View) -> Array:
    """Bricks, plaster or panels, a little dirtier towards the ground."""
    style = wall.style
    reach = float(np.median(view.hs)) * 2
    stain = sample("patch", view.y / np.float32(0.16) + 99, view.s / np.float32(0.16), reach / 0.16)
    shade = np.clip(np.float32(0.86) + view.y * np.float32(0.035), 0.86, 1.0)
    shade += np.float32(0.03) * stain
    if style.material == "brick":
        rows, columns = view.y / np.float32(0.16), view.s / np.float32(0.36)
        fade = np.clip(np.float32(0.12) / view.hs, 0, 1)
        shifted = columns + np.float32(0.5) * (np.floor(rows) % 2)
        tone = noise("grain")[rows.astype(np.int32) & 255, shifted.astype(np.int32) & 255]
        shade *= 1 + np.float32(0.085) * tone * fade
        image = planes(style.wall, shade)
        joints = pulse(rows, view.hy / np.float32(0.16), 0, 0.16)
        mix(image, (0.70, 0.66, 0.60), joints * np.float32(0.4))
        return image
    if style.material == "concrete":
        seams = pulse(view.y / style.floor, view.hy / style.floor, 0, 0.02)
        shade *= 1 - np.float32(0.25) * seams
    fine = sample("grain", view.y / np.float32(0.03) + 999, view.s / np.float32(0.03), reach / 0.03)
    shade += np.float32(0.014) * fine
    return planes(style.wall, shade)
