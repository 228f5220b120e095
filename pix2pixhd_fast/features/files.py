"""Arrays in files: our `.npz`, and the original's pickled `.npy`, of which no code is run."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.report.files import replace_file


def _from_buffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


# All that a pickled dict of arrays is made of, under the names of old and new versions of NumPy.
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("__builtin__", "bytes"): bytes,
    ("_codecs", "encode"): lambda text, encoding="latin1": text.encode("latin1"),
}


class _ArraysOnly(pickle.Unpickler):
    """Refuses everything but arrays of numbers."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")
        return _ALLOWED[module, name]


def read_original(path: Path) -> dict[int, np.ndarray]:
    """A dict of arrays by class that the original wrote with `np.save`: features or clusters.

    Raises `InputError` for a file that is anything else; no code in it is run.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        version = np.lib.format.read_magic(content)
        read = np.lib.format.read_array_header_1_0
        shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(
            content
        )
        if not dtype.hasobject or shape != ():
            raise ValueError(f"it is an array {list(shape)} of {dtype}")
        found = _ArraysOnly(content, encoding="latin1").load()
        found = found.item() if isinstance(found, np.ndarray) else found
        return {int(label): _numbers(rows) for label, rows in found.items()}
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path} cannot be read ({reason}): it must be a .npy file of the original project, "
            "a dict of arrays by class"
        ) from error


def _numbers(rows: object) -> np.ndarray:
    if not isinstance(rows, np.ndarray) or rows.dtype.kind != "f" or rows.ndim != 2:
        raise ValueError("it holds something else than arrays [rows, features] of numbers")
    if not np.isfinite(rows).all():
        raise ValueError("it holds numbers that are not finite")
    return rows


def load_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays `names` of an `.npz` file, all of the same length; `InputError` otherwise."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in names}
        lengths = {len(array) for array in found.values()}
        if len(lengths) != 1:
            raise ValueError("its arrays are of different lengths")
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read ({reason}): it must be an .npz file with {', '.join(names)}"
        ) from error
    return found


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an `.npz` file, compressed; the file appears whole or not at all."""
    with replace_file(path) as file:
        np.savez_compressed(file, **arrays)
