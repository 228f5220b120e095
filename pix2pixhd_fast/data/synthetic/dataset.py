"""A data set of synthetic scenes on disk, in the folders and names of Cityscapes."""

import io
import json
import numbers
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pix2pixhd_fast.data.synthetic.render import Scene, check_size, scene
from pix2pixhd_fast.errors import InputError

MANIFEST = "synthetic.json"
# Raised whenever the same seed gives other pictures: older folders are then drawn anew.
DRAWING = 1
MOST = 999_999
SPLITS = ("train", "test")
KINDS = {"label": "gtFine_labelIds", "inst": "gtFine_instanceIds", "img": "leftImg8bit"}
_OURS = re.compile(r"scene_\d{6}_\d{6}_(gtFine_labelIds|gtFine_instanceIds|leftImg8bit)\.png")
_LEFTOVER = re.compile(r"\.(scene_|synthetic\.json).*\.tmp")


def write_dataset(
    folder: Path,
    train: int,
    test: int,
    width: int = 2048,
    height: int = 1024,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `train` and `test` scenes of `width` x `height` pixels, all different, into `folder`.

    Makes `train_label/`, `train_inst/`, `train_img/` and the same for `test`, with files
    `scene_000000_000001_gtFine_labelIds.png` (8 bits), `..._gtFine_instanceIds.png` (16 bits) and
    `..._leftImg8bit.png` (RGB), and the manifest `synthetic.json`. Afterwards the folder holds
    exactly these scenes: those that are there with the same size and seed are kept, missing ones
    are drawn, others are removed. Files are complete or absent: an interrupted call is finished by
    the next one. `progress` gets the number of scenes done, after each.

    Raises `InputError` for a size, count or seed that cannot be drawn, and for a folder that holds
    anything else where these would go; nothing is changed then.
    """
    folder = Path(folder)
    check_size(width, height, seed)
    _check_counts(train, test)
    _check_folder(folder)
    scenes = list(_scenes(train, test, seed))
    manifest = {"drawing": DRAWING, "width": int(width), "height": int(height), "seed": int(seed)}
    wanted = {path for *place, _ in scenes for path in _paths(folder, *place).values()}
    _prepare(folder, wanted, manifest)
    for done, (split, name, number) in enumerate(scenes, 1):
        paths = _paths(folder, split, name)
        if not all(path.exists() for path in paths.values()):
            _write_scene(paths, scene(width, height, number))
        if progress is not None:
            progress(done)


def _check_counts(train: int, test: int) -> None:
    for name, count in (("train", train), ("test", test)):
        whole = isinstance(count, numbers.Integral) and not isinstance(count, bool)
        if not whole or not 0 <= count <= MOST:
            raise InputError(f"{name} must be a whole number from 0 to {MOST}, got {count!r}")


def _scenes(train: int, test: int, seed: int) -> Iterator[tuple[str, str, int]]:
    """Folder prefix, name and seed of every scene; no two scenes of any data sets share a seed."""
    for part, (split, count) in enumerate(zip(SPLITS, (train, test), strict=True)):
        for number in range(1, count + 1):
            own = (int(seed) * len(SPLITS) + part) * (MOST + 1) + number
            yield split, f"scene_{part:06d}_{number:06d}", own


def _paths(folder: Path, split: str, name: str) -> dict[str, Path]:
    return {kind: folder / f"{split}_{kind}" / f"{name}_{end}.png" for kind, end in KINDS.items()}


def _folders(folder: Path) -> list[Path]:
    return [folder / f"{split}_{kind}" for split in SPLITS for kind in KINDS]


def _check_folder(folder: Path) -> None:
    """Raise `InputError` where a file is in a folder's place, or a folder holds other pictures."""
    for part in [folder, *_folders(folder)]:
        if part.exists() and not part.is_dir():
            raise InputError(f"{part} must be a folder to hold synthetic scenes, but is a file")
    for part in _folders(folder):
        for path in sorted(part.iterdir()) if part.exists() else []:
            if not (_OURS.fullmatch(path.name) or _LEFTOVER.fullmatch(path.name)):
                raise InputError(
                    f"{part} must be empty or hold synthetic scenes only, but holds {path.name}: "
                    "choose another folder"
                )


def _prepare(folder: Path, wanted: set[Path], manifest: dict[str, int]) -> None:
    """Make the folders; remove all but `wanted` files of the same manifest, and leftovers."""
    for part in [folder, *_folders(folder)]:
        part.mkdir(parents=True, exist_ok=True)
    same = _read_manifest(folder / MANIFEST) == manifest
    if not same:
        (folder / MANIFEST).unlink(missing_ok=True)
    keep = wanted if same else set()
    for part in [folder, *_folders(folder)]:
        for path in part.iterdir():
            scene_file = part != folder and _OURS.fullmatch(path.name)
            if (scene_file and path not in keep) or _LEFTOVER.fullmatch(path.name):
                path.unlink()
    if not same:
        _write(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _read_manifest(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _write_scene(paths: dict[str, Path], drawn: Scene) -> None:
    """Encode and write the three maps of a scene."""
    maps = {"label": drawn.label, "inst": drawn.inst.astype(np.uint16), "img": drawn.image}
    for kind, path in paths.items():
        encoded = io.BytesIO()
        Image.fromarray(maps[kind]).save(encoded, "PNG", compress_level=4)
        _write(path, encoded.getvalue())


def _write(path: Path, content: bytes) -> None:
    """Write a file so that it is either complete under its name or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
