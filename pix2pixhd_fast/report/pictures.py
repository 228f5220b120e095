"""Writing pictures to disk."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.report.files import replace_file

LARGEST_JPEG = 65500  # pixels per side, the limit of libjpeg
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


def save_picture(
    array: np.ndarray, path: Path | str, quality: int = 90, width_factor: float = 1.0
) -> None:
    """Write uint8 [H, W, 3] (RGB) or [H, W] (grey) to `path`, a JPEG or a PNG by its extension.

    First the picture is made `width_factor` times as wide (bicubic), then it is encoded (`quality`
    of JPEG: 1 to 100, colours at full resolution so that edges of label maps stay sharp), then it
    takes the place of an older file in one step. Raises `InputError`, naming `path`, for another
    extension, another array, a bad factor or quality, or a place that cannot be written.
    """
    path = Path(path)
    _check(array, path, quality, width_factor)
    picture = Image.fromarray(np.ascontiguousarray(array))
    if width_factor != 1:
        width = max(1, round(picture.width * width_factor))
        picture = picture.resize((width, picture.height), Image.Resampling.BICUBIC)
    with replace_file(path) as file:
        if FORMATS[path.suffix.lower()] == "PNG":
            picture.save(file, format="PNG")
        else:
            picture.save(file, format="JPEG", quality=quality, subsampling=0)


def _check(array: np.ndarray, path: Path, quality: int, width_factor: float) -> None:
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path} must end in {', '.join(FORMATS)} to be written as a picture")
    colour = array.ndim == 3 and array.shape[2] == 3
    if array.dtype != np.uint8 or not (colour or array.ndim == 2) or array.size == 0:
        raise InputError(
            f"the picture for {path} must be uint8 [height, width, 3] or [height, width], "
            f"got {array.dtype} {list(array.shape)}"
        )
    if not 1 <= quality <= 100:
        raise InputError(f"quality of {path} must be between 1 and 100, got {quality}")
    if not 0 < width_factor < math.inf:
        raise InputError(f"width_factor of {path} must be a positive number, got {width_factor}")
    height, width = array.shape[0], round(array.shape[1] * width_factor)
    if max(height, width) > LARGEST_JPEG and FORMATS[path.suffix.lower()] == "JPEG":
        raise InputError(
            f"{path} would be {width}x{height}: a JPEG has at most {LARGEST_JPEG} pixels per side"
        )
