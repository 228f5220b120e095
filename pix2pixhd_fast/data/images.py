"""Decoding of label maps, instance maps and pictures into exact arrays."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import Options

ARRAYS = (".npy", ".npz")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_TIFF_BITS, _TIFF_SAMPLE_FORMAT = 258, 339
# A damaged header may claim any size; 32768 x 32768 is beyond every picture in use. Pillow refuses
# files of more than twice its limit, which is one for the whole process.
_MOST_PIXELS = 2**30
_LIMIT_OF_PILLOW = threading.Lock()
_INT32, _INT64 = np.iinfo(np.int32), np.iinfo(np.int64)


def read_labels(path: str, options: Options) -> np.ndarray:
    """Label map of a file: class ids [H, W], checked, in the integer type of the file.

    Ids are 0 ... `label_nc` - 1, and `ignore_label`: such pixels keep that id here and contribute
    no class later (all-zero one-hot). Palette files give their indices, 1-bit files 0 and 1. Raises
    `InputError` for a file that cannot be decoded, that has more than one channel, or that holds
    another id.
    """
    ids = _read_ids(path, "label map")
    _check_labels(ids, path, options)
    return ids


def label_type(options: Options) -> type[np.integer]:
    """Type of the labels of a sample: uint8, or int32 where an id of the options exceeds 255."""
    return np.uint8 if options.label_nc <= 256 and options.ignore_label <= 255 else np.int32


def read_instances(path: str) -> np.ndarray:
    """Instance map of a file: instance ids [H, W] in the integer type of the file.

    8-, 16- and 32-bit files and arrays of any integer type are decoded without overflow. Raises
    `InputError` for a file that cannot be decoded, that has more than one channel, or that holds an
    id above 2**63 - 1.
    """
    ids = _read_ids(path, "instance map")
    if ids.dtype == np.uint64 and ids.max() > _INT64.max:
        raise InputError(f"{path} holds the id {ids.max()}: instance ids must be below 2**63")
    return ids


def instance_type(ids: np.ndarray) -> type[np.integer]:
    """Type of the instances of a sample: int32, or int64 where an id of the scene needs it."""
    if np.can_cast(ids.dtype, np.int32):
        return np.int32
    fits = _INT32.min <= int(ids.min()) and int(ids.max()) <= _INT32.max
    return np.int32 if fits else np.int64


def read_picture(path: str, channels: int, option: str) -> np.ndarray:
    """Picture of a file: [H, W, channels], uint8, uint16, or float32 to be used as it is.

    Picture files: converted to L, RGB or RGBA for 1, 3 or 4 channels; 16-bit greyscale stays uint16
    (repeated for 3 channels); other numbers of channels need a `.npy` array. `.npy`: [H, W] or
    [H, W, C] with exactly `channels` channels of uint8, uint16 or floating point. `option` names
    the option that asks for `channels`, for messages. Raises `InputError` for anything else.
    """
    if path.lower().endswith(ARRAYS):
        array = _read_npy(path)
        array = array[:, :, None] if array.ndim == 2 else array
        if array.shape[2:] != (channels,):
            raise InputError(
                f"{path} has {array.shape[-1]} channels (shape {array.shape}): {option} is "
                f"{channels}, so it must be of shape [H, W, {channels}]"
            )
        return _picture_values(array, path)
    with _opened(path) as image:
        array = _decode_picture(image, path, channels, option)
    return _picture_values(array, path)


def read_size(path: str) -> tuple[int, int]:
    """Height and width of a picture or map, of which no more is read than that needs."""
    if path.lower().endswith(ARRAYS):
        return _read_npy(path).shape[:2]
    with _opened(path) as image:
        return image.height, image.width


def _decode_picture(image: Image.Image, path: str, channels: int, option: str) -> np.ndarray:
    """[H, W, channels] of an opened picture; deep greyscale is not squeezed into 8 bits."""
    deep = image.mode in (*_GREY_16, "I", "F")
    if channels not in _MODES or (deep and channels == 4):
        raise InputError(
            f"{path} ({image.mode}) cannot give {channels} channels: {option} is {channels}, "
            f"so it must be a .npy array of shape [H, W, {channels}]"
        )
    if not deep:
        array = np.asarray(image.convert(_MODES[channels]))
        return array[:, :, None] if array.ndim == 2 else array
    array = _native(np.asarray(image))
    if image.mode == "I":
        if array.min() < 0 or array.max() > 65535:
            raise InputError(
                f"{path} holds values {array.min()} to {array.max()}: "
                "a greyscale picture must have 8 or 16 bits"
            )
        array = array.astype(np.uint16)
    return np.repeat(array[:, :, None], channels, axis=2)


def _picture_values(array: np.ndarray, path: str) -> np.ndarray:
    if array.dtype in (np.uint8, np.uint16):
        return array
    if array.dtype.kind != "f":
        raise InputError(
            f"{path} is of type {array.dtype}: a picture must be uint8, uint16 or floating point"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{path} holds values that are not finite (NaN or infinity)")
    return array.astype(np.float32, copy=False)


def _read_ids(path: str, content: str) -> np.ndarray:
    """Ids [H, W] of any native integer type."""
    if path.lower().endswith(ARRAYS):
        ids = _read_npy(path)
        ids = ids[:, :, 0] if ids.ndim == 3 and ids.shape[2] == 1 else ids
        found = f"shape {ids.shape}"
    else:
        with _opened(path) as image:
            found = f"{image.mode} with {len(image.getbands())} channels"
            ids = _unsigned_if_so(image, _native(np.asarray(image)))
    if ids.ndim != 2:
        raise InputError(f"{path} is {found}: {content}s must have one channel of ids")
    if ids.dtype.kind not in "biu":
        raise InputError(f"{path} is of type {ids.dtype}: {content}s must hold whole numbers")
    # Pillow fills the bytes of a 1-bit array with 255.
    return (ids.view(np.uint8) != 0).view(np.uint8) if ids.dtype == np.bool_ else ids


def _unsigned_if_so(image: Image.Image, ids: np.ndarray) -> np.ndarray:
    """Pillow decodes unsigned 32-bit TIFF into signed 32-bit: the same bits, read as unsigned."""
    tags = getattr(image, "tag_v2", {})
    unsigned = tags.get(_TIFF_BITS) == (32,) and tags.get(_TIFF_SAMPLE_FORMAT, (1,)) == (1,)
    return ids.view(np.uint32) if image.mode == "I" and unsigned else ids


def _check_labels(ids: np.ndarray, path: str, options: Options) -> None:
    if ids.max() < options.label_nc and (ids.dtype.kind == "u" or ids.min() >= 0):
        return
    foreign = (ids < 0) | (ids >= options.label_nc)
    if options.ignore_label >= 0:
        foreign &= ids != options.ignore_label
    values, counts = np.unique(ids[foreign], return_counts=True)
    if not len(values):
        return
    value, count = values[counts.argmax()], counts.max()
    others = f" and {len(values) - 1} more such ids" if len(values) > 1 else ""
    remedy = f", or --ignore_label {value} if it is no class" if value >= 0 else ""
    raise InputError(
        f"{path} holds label {value} ({count} pixels){others}: labels must be 0 to "
        f"{options.label_nc - 1} (label_nc {options.label_nc}) or ignore_label "
        f"({options.ignore_label}); give a larger --label_nc{remedy}"
    )


def _read_npy(path: str) -> np.ndarray:
    """Array of two or three dimensions, none empty, in native byte order."""
    with _explained(path):
        array = np.load(path, allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile) and len(array.files) == 1:
            with array:
                array = array[array.files[0]]
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or not array.size:
        found = f"of shape {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise InputError(f"{path} is {found}: it must be one array of shape [H, W] or [H, W, C]")
    return _native(array)


def _native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="), copy=False)


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    with _explained(path), _open(path) as image:
        yield image


def _open(path: str) -> Image.Image:
    """The picture, also where Pillow gives up before `_MOST_PIXELS` (TIFF checks again)."""
    try:
        return Image.open(path)
    except Image.DecompressionBombError:
        with _LIMIT_OF_PILLOW:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, _MOST_PIXELS // 2
            try:
                image = Image.open(path)
                image.load()
                return image
            finally:
                Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Whatever a decoder raises for a broken file becomes an `InputError` that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        empty = os.path.exists(path) and os.path.getsize(path) == 0
        reason = "the file is empty" if empty else " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read ({reason or type(error).__name__}): "
            "it must be a complete picture or .npy array"
        ) from error
