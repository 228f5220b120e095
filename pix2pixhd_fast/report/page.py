"""A static HTML page with pictures: one file and a folder of pictures, nothing from elsewhere."""

import html
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.report.files import make_folder, replace_file
from pix2pixhd_fast.report.theme import SCRIPT, STYLE

_EAGER = 12  # pictures: about what is seen first; later ones load when they are scrolled to

# What HTML cannot hold: control characters but tab and line feed, lone surrogates (undecodable
# names).
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Page:
    """The page `folder/index.html`; its pictures lie in `folder/images/`, the attribute `images`.

    Blocks appear in the order in which they are added; `save` writes the page, as often as wanted.
    With `refresh` the page loads itself again every so many seconds. Both folders are created. All
    text is escaped, any file name works. Raises `InputError` when a folder cannot be made.
    """

    def __init__(self, folder: Path | str, title: str, refresh: int | None = None):
        self.folder = Path(folder)
        self.images = self.folder / "images"
        self.title = title
        self.refresh = refresh
        self._blocks: list[str] = []
        self._in_section = False
        self._shown = 0
        make_folder(self.images)

    def header(self, text: str) -> None:
        """Begin a section with this heading."""
        end = "</section>\n" if self._in_section else ""
        self._in_section = True
        self._blocks.append(f"{end}<section>\n<h2>{_escape(text)}</h2>")

    def text(self, paragraph: str) -> None:
        """Add a paragraph."""
        self._blocks.append(f"<p>{_escape(paragraph)}</p>")

    def pictures(self, pictures: Sequence[tuple[str, str]], width: int = 512) -> None:
        """Add a row of pictures (file name in `images`, caption), each at most `width` pixels wide.

        A narrow window shrinks them to six tenths of that, then breaks the row. Raises `InputError`
        when a file is not there.
        """
        figures = "\n".join(self._figure(name, caption) for name, caption in pictures)
        if figures:
            style = f"--count: {len(pictures)}; --width: {int(width)}px"
            self._blocks.append(f'<div class="row" style="{style}">\n{figures}\n</div>')

    def figure(self, filename: str, caption: str) -> None:
        """Add one picture of `images` in its own size, or as wide as the window if that is less."""
        self._blocks.append(self._figure(filename, caption, ' class="wide"'))

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; floats have four digits, columns of numbers are aligned to the right.

        Raises `InputError` when a row has more or fewer cells than there are headers.
        """
        for row in rows:
            if len(row) != len(headers):
                raise InputError(f"a row of {len(headers)} cells is needed, got {list(row)!r}")
        kinds = [
            ' class="number"' if rows and all(_is_number(row[i]) for row in rows) else ""
            for i in range(len(headers))
        ]
        head = _cells('<th scope="col"{}>{}</th>', kinds, headers)
        body = "\n".join(f"<tr>{_cells('<td{}>{}</td>', kinds, row)}</tr>" for row in rows)
        self._blocks.append(
            f'<div class="scroll">\n<table>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
        )

    def save(self) -> None:
        """Write `index.html` in one step: a browser sees the old page or the new one.

        Raises `InputError` when it cannot be written.
        """
        title = _escape(self.title)
        again = f' data-refresh="{int(self.refresh)}"' if self.refresh else ""
        meta = f'<meta http-equiv="refresh" content="{int(self.refresh)}">' if self.refresh else ""
        end = "\n</section>" if self._in_section else ""
        body = "\n".join(self._blocks) + end
        text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{STYLE}
</style>{f"<noscript>{meta}</noscript>" if meta else ""}
</head>
<body{again}>
<header><h1>{title}</h1></header>
<main>
{body}
</main>
<script>
{SCRIPT}
</script>
</body>
</html>
"""
        with replace_file(self.folder / "index.html") as file:
            file.write(text.encode())

    def _figure(self, name: str, caption: str, attributes: str = "") -> str:
        path = self.images / name
        if name != path.name or not path.is_file():
            raise InputError(f"{path} must be a picture in the images folder of the page")
        link = "images/" + quote(os.fsencode(name), safe="")
        # Only a page that loads itself again meets changed pictures under names browsers remember.
        source = f"{link}?{path.stat().st_mtime_ns:x}" if self.refresh else link
        caption = _escape(caption)
        self._shown += 1
        lazy = ' loading="lazy"' if self._shown > _EAGER else ""
        return (
            f'<figure{attributes}><a href="{link}"><img src="{source}" alt="{caption or "picture"}"'
            f"{_size(path)}{lazy}></a><figcaption>{caption}</figcaption></figure>"
        )


def _size(path: Path) -> str:
    """The attributes that let a browser reserve the space; none for a file that is no picture."""
    try:
        with Image.open(path) as picture:
            return f' width="{picture.width}" height="{picture.height}"'
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""


def _escape(text: object) -> str:
    return html.escape(_UNPRINTABLE.sub("\ufffd", str(text)))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cells(pattern: str, kinds: Sequence[str], values: Sequence[object]) -> str:
    shown = (f"{value:.4g}" if isinstance(value, float) else value for value in values)
    return "".join(
        pattern.format(kind, _escape(value)) for kind, value in zip(kinds, shown, strict=True)
    )
