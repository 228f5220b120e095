"""The two pages of a run: the training page and the results of a test."""

import re
import shutil
import time
from pathlib import Path

import numpy as np

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.report.files import explain_failure, file_name, replace_file
from pix2pixhd_fast.report.page import Page
from pix2pixhd_fast.report.pictures import save_picture

_EPOCH_PICTURE = re.compile(r"epoch(\d{3,})_(.+)\.(?:jpg|png)", re.DOTALL)
REFRESH = 30  # seconds
Row = tuple[str, list[tuple[str, str]]]  # name, (file, caption) of its pictures


class TrainingPage:
    """The training page of experiment `name`, usually in `checkpoints/<name>/web`.

    `folder/index.html` shows `folder/images/epoch<NNN>_<what>.jpg`, `display_winsize` pixels wide,
    the newest epoch first, and loads itself again every 30 s. Raises `InputError` when the folder
    cannot be made.
    """

    def __init__(self, folder: Path | str, name: str, display_winsize: int):
        self.folder = Path(folder)
        self.title = f"Experiment {name}"
        self.display_winsize = display_winsize
        self.images = Page(self.folder, self.title).images

    def update(
        self, epoch: int, pictures: dict[str, np.ndarray], curves: Path | None = None
    ) -> None:
        """Write the pictures of `epoch` over earlier ones of the same epoch, then the page.

        The page shows every epoch up to this one whose pictures are on disk, so also those before a
        run was resumed; files of later epochs (a run gone on from an earlier checkpoint) stay on
        disk unshown. `curves`, a picture of the losses, comes first; it is copied into `images`
        unless it lies there. Raises `InputError` when something cannot be read or written.
        """
        for what, array in pictures.items():
            save_picture(array, self.images / file_name(f"epoch{epoch:03d}_{what}", ".jpg"))
        page = Page(self.folder, self.title, refresh=REFRESH)
        page.text(f"Epoch {epoch}, {time.strftime('%d %b %Y, %H:%M:%S')}")
        if curves is not None:
            page.figure(self._take(Path(curves)), "losses")
        for shown, found in self._epochs(epoch, list(pictures)):
            page.header(f"Epoch {shown}")
            page.pictures(found, self.display_winsize)
        page.save()

    def _take(self, curves: Path) -> str:
        """The name in `images` of the picture of the losses, after copying it there if need be."""
        if not curves.is_file():
            raise InputError(f"{curves} must be the picture of the losses; there is no such file")
        if curves.resolve().parent != self.images.resolve():
            target = self.images / curves.name
            with explain_failure(target), open(curves, "rb") as source, replace_file(target) as out:
                shutil.copyfileobj(source, out)
        return curves.name

    def _epochs(self, last: int, order: list[str]) -> list[tuple[int, list[tuple[str, str]]]]:
        """(epoch, [(file, caption)]) on disk, newest first; pictures in `order`, others by name."""
        found: dict[int, list[tuple[str, str]]] = {}
        for path in self.images.iterdir():
            match = _EPOCH_PICTURE.fullmatch(path.name)
            if match and int(match[1]) <= last:
                found.setdefault(int(match[1]), []).append((path.name, match[2]))
        rank = {what: place for place, what in enumerate(order)}
        for files in found.values():
            files.sort(key=lambda file: (rank.get(file[1], len(rank)), file[1]))
        return [
            (epoch, [(name, _caption(what)) for name, what in found[epoch]])
            for epoch in sorted(found, reverse=True)
        ]


class ResultsPage:
    """The results of a test, usually in `results/<name>/<phase>_<epoch>`.

    `folder/index.html` shows `folder/images/<stem>_<what>.jpg`, one row per stem, `display_winsize`
    pixels wide. `width_factor` widens the files (the option `aspect_ratio`). Raises `InputError`
    when the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path | str,
        title: str,
        display_winsize: int,
        width_factor: float = 1.0,
    ):
        self.display_winsize = display_winsize
        self.width_factor = width_factor
        self._page = Page(folder, title)
        self._stems: set[str] = set()

    def add(self, stem: str, pictures: dict[str, np.ndarray]) -> None:
        """Write the pictures of one sample and add its row; call `save` to see it.

        A stem that this page has already (files of one name in several folders) gets `-2`, `-3`,
        ... Raises `InputError` when a picture cannot be written.
        """
        self.show(self.write(self.name(stem), pictures))

    def name(self, stem: str) -> str:
        """A name that no other row has."""
        plain = file_name(stem, "")
        unique, number = plain, 1
        while unique in self._stems:
            number += 1
            unique = f"{plain}-{number}"
        self._stems.add(unique)
        return unique

    def write(self, name: str, pictures: dict[str, np.ndarray]) -> Row:
        """Write the pictures of the row `name`; `show` it on a page of the same folder."""
        files = []
        for what, array in pictures.items():
            file = file_name(f"{name}_{what}", ".jpg")
            path = self._page.images / file
            save_picture(array, path, quality=95, width_factor=self.width_factor)
            files.append((file, _caption(what)))
        return name, files

    def show(self, row: Row) -> None:
        """Add a row whose pictures are written."""
        name, files = row
        self._page.header(name)
        self._page.pictures(files, self.display_winsize)

    def save(self) -> None:
        """Write the page with all rows so far: one small file, cheap after every picture."""
        self._page.save()


def _caption(what: str) -> str:
    return what.replace("_", " ")
