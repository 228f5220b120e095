"""Files of one folder, replaced together: all or none, whenever the process or machine stops.

A transaction first writes every file under a temporary name (`.<name>.<token>.tmp`), then a journal
(`.<token>.commit.json`) that says which temporary file becomes which file, then it renames. The
journal appears with one rename: before it the old files count, after it the new ones. What a killed
writer left to do is done by the next one; until then readers look through the journal.
"""

import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from pix2pixhd_fast.errors import InputError

_TEMPORARY = re.compile(r"\..+\.\d+-(\d+)\.tmp")
_JOURNAL = re.compile(r"\.\d+-(\d+)\.commit\.json")
_OPENING_ATTEMPTS = 100


class Transaction:
    """`with Transaction(folder) as files`: `files.write(...)`, `files.remove(...)`; then commits.

    Entering finishes what an interrupted writer had committed and deletes the temporary files of
    writers that no longer run. An exception inside leaves the folder as it was. One writer per
    folder.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._token = f"{time.time_ns()}-{os.getpid()}"
        self._replace: dict[str, str] = {}
        self._remove: list[str] = []

    def __enter__(self) -> "Transaction":
        _make_folder(self._folder)
        for journal in _journals(self._folder):
            _roll_forward(self._folder, journal)
        for name in os.listdir(self._folder):
            match = _TEMPORARY.fullmatch(name)
            if match and not _is_other_live_process(int(match[1])):
                (self._folder / name).unlink(missing_ok=True)
        return self

    def write(self, name: str, content: object) -> None:
        """Save `content` with torch.save under a temporary name; file `name` is not touched yet.

        Raises `InputError` naming the file and the reason where it cannot be written (disk full).
        """
        self._replace[name] = self._temporary(name)
        self._store(name, lambda file: torch.save(content, file))

    def remove(self, names: Iterable[str]) -> None:
        """Delete these files with the commit."""
        self._remove += names

    def __exit__(self, kind, error, traceback) -> None:
        journal = self._folder / f".{self._token}.commit.json"
        try:
            if kind is None:
                self._write_journal(journal)
        finally:
            if not journal.exists():
                for name in (*self._replace.values(), self._temporary("journal")):
                    (self._folder / name).unlink(missing_ok=True)
        if kind is None:
            _roll_forward(self._folder, _Journal(journal, self._replace, self._remove))

    def _temporary(self, name: str) -> str:
        return f".{name}.{self._token}.tmp"

    def _store(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        try:
            with open(self._folder / self._temporary(name), "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            # torch raises its own error as it closes an archive that a failed write left incomplete
            cause = error if isinstance(error, OSError) else error.__context__
            reason = getattr(cause, "strerror", None) or error
            raise InputError(
                f"cannot write {self._folder / name}: {reason}; what was saved before is unchanged"
            ) from error

    def _write_journal(self, journal: Path) -> None:
        _sync_folder(self._folder)  # the journal may only reach the disk after what it names
        entries = json.dumps({"replace": self._replace, "remove": self._remove})
        self._store("journal", lambda file: file.write(entries.encode()))
        os.replace(self._folder / self._temporary("journal"), journal)
        _sync_folder(self._folder)


@dataclass(frozen=True)
class _Journal:
    path: Path
    replace: dict[str, str]  # file -> temporary file that becomes it
    remove: list[str]


def settle(folder: Path) -> None:
    """Finish the commits of writers that no longer run, where the folder can be written."""
    for journal in _journals(folder):
        if not _is_other_live_process(int(_JOURNAL.fullmatch(journal.path.name)[1])):
            try:
                _roll_forward(folder, journal)
            except OSError:
                return  # a read-only folder: readers look through the journal


def committed_names(folder: Path) -> set[str]:
    """Names of the files in the folder, as they are once every commit is finished."""
    names = {name for name in os.listdir(folder) if not name.startswith(".")}
    for journal in _journals(folder):
        names = (names | journal.replace.keys()) - set(journal.remove)
    return names


def open_together(folder: Path, names: Iterable[str]) -> dict[str, BinaryIO | None]:
    """Open files that belong to one commit, also while a writer is busy; None for missing ones.

    The caller closes them. Raises `InputError` for a file that cannot be opened.
    """
    names = list(names)
    for _ in range(_OPENING_ATTEMPTS):
        files: dict[str, BinaryIO | None] = {}
        try:
            for name in names:
                path = _locate(folder, name)
                files[name] = path and open(path, "rb")
            if all(_is_same_file(_locate(folder, name), file) for name, file in files.items()):
                return files
        except FileNotFoundError:
            pass  # renamed by a writer since it was located
        except OSError as error:
            _close(files)
            raise InputError(f"cannot open {folder / name}: {error.strerror}") from error
        _close(files)
    raise InputError(f"cannot read {folder}: its files change faster than they can be opened")


def _close(files: dict[str, BinaryIO | None]) -> None:
    for file in files.values():
        if file:
            file.close()


def _is_same_file(path: Path | None, file: BinaryIO | None) -> bool:
    if path is None or file is None:
        return path is None and file is None
    return os.path.samestat(os.stat(path), os.fstat(file.fileno()))


def _locate(folder: Path, name: str) -> Path | None:
    """Where the committed content of the file `name` is now, None if it has none."""
    for journal in _journals(folder):
        if name in journal.remove:
            return None
        temporary = folder / journal.replace.get(name, "/")
        if name in journal.replace and temporary.exists():
            return temporary
    return folder / name if (folder / name).exists() else None


def _journals(folder: Path) -> list[_Journal]:
    names = sorted(name for name in os.listdir(folder) if _JOURNAL.fullmatch(name))
    journals = [_read_journal(folder / name) for name in names]
    return [journal for journal in journals if journal]


def _read_journal(path: Path) -> _Journal | None:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        journal = _Journal(path, dict(entries["replace"]), list(entries["remove"]))
        names = [*journal.replace, *journal.replace.values(), *journal.remove]
        if any(os.path.basename(name) != name or name in ("", ".", "..") for name in names):
            raise ValueError("a name is outside the folder")
    except FileNotFoundError:
        return None  # its writer has just finished
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} must be the journal of an unfinished save (JSON: replace, remove), "
            f"it is damaged"
        ) from error
    return journal


def _roll_forward(folder: Path, journal: _Journal) -> None:
    """Do what the journal says, or what is left of it, and delete it."""
    for name, temporary in journal.replace.items():
        try:
            os.replace(folder / temporary, folder / name)
        except FileNotFoundError:
            pass  # done before
    for name in journal.remove:
        (folder / name).unlink(missing_ok=True)
    _sync_folder(folder)
    journal.path.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in the folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def _is_other_live_process(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
