"""The rows of what has been compiled before, one small file for each unit."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import get_origin

import pix2pixhd_fast
from pix2pixhd_fast.compile_matrix.units import Row
from pix2pixhd_fast.report.files import make_folder, replace_file

TYPES = {each.name: get_origin(each.type) or each.type for each in fields(Row)}


def cache_folder() -> Path:
    """build/compile_matrix in a checkout, else a folder of the user's cache."""
    root = Path(pix2pixhd_fast.__file__).parents[1]
    if (root / "setup.py").is_file() and os.access(root, os.W_OK):
        return root / "build/compile_matrix"
    base = os.getenv("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pix2pixhd_fast/compile_matrix"


def load(folder: Path, digest: str) -> list[Row] | None:
    """The rows kept under `digest`; None where there are none, or not whole."""
    try:
        kept = json.loads((folder / f"{digest}.json").read_text())
        rows = [Row(**row) for row in kept["rows"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    whole = kept.get("digest") == digest and rows and all(map(_is_whole, rows))
    return rows if whole else None


def store(folder: Path, digest: str, rows: list[Row]) -> None:
    make_folder(folder)
    with replace_file(folder / f"{digest}.json") as file:
        content = {"digest": digest, "rows": [row.as_dict() for row in rows]}
        file.write(json.dumps(content).encode())


def _is_whole(row: Row) -> bool:
    return all(isinstance(getattr(row, name), kind) for name, kind in TYPES.items())
