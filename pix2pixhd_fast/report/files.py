"""Writing files so that a reader never sees half of one, and names that every folder accepts."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pix2pixhd_fast.errors import InputError

LONGEST_NAME = 255  # bytes, the limit of ext4, xfs, tmpfs and NTFS


@contextmanager
def explain_failure(path: Path) -> Iterator[None]:
    """Turn the system's complaint about writing `path` into one sentence, an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def replace_file(path: Path, sync: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file that becomes `path` when the block ends without an error.

    It is written beside `path` under another name and takes its place in one step, so `path` is
    always the old file or the whole new one. After an error, or an interrupt, the old file stays
    and nothing is left over. With `sync` the bytes are on the disk before the old file goes. Raises
    `InputError` when the file cannot be written.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with explain_failure(path):
        try:
            with open(temporary, "xb") as file:
                yield file
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents where they are missing; `InputError` if that fails."""
    with explain_failure(folder):
        folder.mkdir(parents=True, exist_ok=True)


def file_name(name: str, suffix: str) -> str:
    """Return `name` + `suffix` as the name of a file in one folder.

    Path separators, and characters that control a terminal, become `_`. A name that is too long for
    the file system is cut and gets eight digits of its hash, so that two long names stay two names.
    """
    plain = "".join("_" if c in "/\\" or ord(c) < 32 or ord(c) == 127 else c for c in name)
    room = LONGEST_NAME - len(os.fsencode(suffix))
    encoded = os.fsencode(plain)
    if len(encoded) > room:
        digest = hashlib.sha256(encoded).hexdigest()[:8]
        plain = f"{encoded[: room - 9].decode(errors='ignore')}-{digest}"
    return plain + suffix
