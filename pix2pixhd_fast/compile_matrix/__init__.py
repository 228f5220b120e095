"""The compile matrix: every GPU kernel, compiled for every architecture, and what came of it.

No GPU is needed. It says nothing about speed: docs/proving.md, rung 5.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pix2pixhd_fast
from pix2pixhd_fast._toolchain import CAPABILITIES, cuda_home
from pix2pixhd_fast.compile_matrix import cache, workers
from pix2pixhd_fast.compile_matrix.cuda_kernels import cuda_units
from pix2pixhd_fast.compile_matrix.triton_kernels import kernels_without_variant, triton_units
from pix2pixhd_fast.compile_matrix.units import Row, Unit
from pix2pixhd_fast.errors import InputError

__all__ = [
    "CAPABILITIES",
    "Row",
    "compile_matrix",
    "kernels_without_variant",
    "op_of",
    "without_cuda",
]

CSRC = Path(pix2pixhd_fast.__file__).parents[1] / "csrc"


def compile_matrix(
    capabilities: Sequence[int] = CAPABILITIES,
    kernel: str | None = None,
    jobs: int = 2,
    folder: Path | None = None,
    progress: Callable[[int, int, int], None] = lambda done, total, kept: None,
) -> list[Row]:
    """Compile every variant of every kernel for `capabilities` (90 is sm_90); return its rows.

    `kernel`: only this op (norm_act_pad) or kernel (mark_boundaries). `jobs`: processes. `folder`:
    where rows are kept, by a digest of all they depend on (default: `cache_folder()`); rows with
    errors are not. `progress` is called with how many units are done, of how many, of which so many
    came from the cache. CUDA kernels have rows only where `without_cuda` has nothing to say. The
    order is that of source, kernel, variant and architecture. Raises `InputError` for an unknown
    kernel, and where Triton is missing.
    """
    folder = folder or cache.cache_folder()
    every = [*triton_units(tuple(capabilities)), *cuda_units(tuple(capabilities), CSRC)]
    units = _asked_for(every, kernel)
    found = {}
    for position, unit in enumerate(units):
        rows = cache.load(folder, unit.digest)
        if rows is not None:
            found[position] = rows
    kept = len(found)
    progress(kept, len(units), kept)
    missing = [position for position in range(len(units)) if position not in found]
    for at, rows in workers.compile_units([units[position] for position in missing], jobs):
        found[missing[at]] = rows
        if not any(row.error for row in rows):
            cache.store(folder, units[missing[at]].digest, rows)
        progress(len(found), len(units), kept)
    rows = [row for position in sorted(found) for row in found[position]]
    return _only(rows, kernel, every)


def without_cuda() -> str:
    """Why there are no rows of CUDA kernels, or ""."""
    if cuda_home() is None:
        return "nvcc was not found (CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda)"
    return "" if CSRC.is_dir() else f"their source is not at {CSRC} (it is in a checkout only)"


def op_of(source: str) -> str:
    """norm_act_pad of kernels/norm_act_pad.py, or of csrc/norm_act_pad_cuda.cu."""
    return Path(source).stem.removesuffix("_cuda")


def _asked_for(units: list[Unit], kernel: str | None) -> list[Unit]:
    """Those of `kernel`. The names of CUDA kernels are in the binary: all, if it is none other."""
    if kernel is None:
        return units
    named = [unit for unit in units if kernel in (unit.kernel, op_of(unit.source))]
    return named or [unit for unit in units if unit.source.endswith(".cu")]


def _only(rows: list[Row], kernel: str | None, units: list[Unit]) -> list[Row]:
    rows = [row for row in rows if kernel in (None, row.kernel, op_of(row.source))]
    if kernel is not None and not rows:
        known = {op_of(unit.source) for unit in units} | {unit.kernel for unit in units}
        raise InputError(f"kernel must be one of {', '.join(sorted(known))}, got {kernel!r}")
    order = {f"sm_{capability}": capability for capability in CAPABILITIES}
    return sorted(rows, key=lambda row: (row.source, row.kernel, row.variant, order[row.arch]))
