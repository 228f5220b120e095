"""`loss_log.txt`: the losses of a run, line by line, in the original's format."""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.report.files import explain_failure, make_folder, replace_file

# Exactly three decimals: a number cut short by a crash is no number of this format.
_NUMBER = r"(?:-?\d+\.\d{3}|-?inf|nan)"
_ROW = re.compile(
    rf"\(epoch: (\d+), iters: (\d+), time: ({_NUMBER})\)((?: [^\s:]+: {_NUMBER})*)\s*"
)
_LOSS = re.compile(rf"([^\s:]+): ({_NUMBER})")
_POSITION = re.compile(rb"\(epoch: (\d+), iters: (\d+),")


@dataclass(frozen=True)
class LossRow:
    """One line of the log: `iters` images into `epoch` (from 1), seconds per image, losses by name.

    A loss of exactly zero is not in the log, and so not in `losses`.
    """

    epoch: int
    iters: int
    seconds: float
    losses: dict[str, float]


class LossLog:
    """Writer of the loss log at `path`. Raises `InputError` when the file cannot be written."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def start(self) -> None:
        """Append the line that begins a run: `================ Training Loss (<now>) ...`.

        A last line that an earlier run left unfinished is ended first, so that nothing is glued to
        it.
        """
        make_folder(self.path.parent)
        with explain_failure(self.path), open(self.path, "ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read() != b"\n":
                    file.write(b"\n")
            rule = "=" * 16
            file.write(f"{rule} Training Loss ({time.ctime()}) {rule}\n".encode())

    def append(self, epoch: int, iters: int, seconds: float, losses: dict[str, float]) -> str:
        """Append one row without losses that are exactly zero; return the line without its end."""
        parts = [f"(epoch: {epoch}, iters: {iters}, time: {seconds:.3f}) "]
        parts += [f"{name}: {value:.3f} " for name, value in losses.items() if value != 0]
        line = "".join(parts)
        with explain_failure(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        return line

    def truncate_after(self, epoch: int, iters: int) -> int:
        """Remove the rows after image `iters` of `epoch`, where a run goes on; return how many.

        All other lines stay as they are. The file is replaced in one step, or left alone when there
        is nothing to remove; a file that does not exist has nothing to remove.
        """
        if not self.path.exists():
            return 0
        lines = _read(self.path).splitlines(keepends=True)
        kept = [line for line in lines if _position(line) <= (epoch, iters)]
        if len(kept) < len(lines):
            with replace_file(self.path, sync=True) as file:
                file.writelines(kept)
        return len(lines) - len(kept)


def read_loss_log(path: Path | str) -> list[LossRow]:
    """Read the rows of a loss log, ours or the original's, in the order of the file.

    Lines that begin a run, lines that are damaged and a last line without its end (a run was cut
    off while it wrote) are skipped. Raises `InputError` when the file cannot be read.
    """
    text = _read(Path(path)).decode(errors="replace")
    rows = [_parse(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [row for row in rows if row is not None]


def _parse(line: str) -> LossRow | None:
    match = _ROW.fullmatch(line)
    if match is None:
        return None
    epoch, iters, seconds, losses = match.groups()
    values = {name: float(value) for name, value in _LOSS.findall(losses)}
    return LossRow(int(epoch), int(iters), float(seconds), values)


def _position(line: bytes) -> tuple[int, int]:
    """(epoch, iters) of a row, also of a damaged one that still says it; else (-1, -1)."""
    match = _POSITION.match(line)
    return (int(match[1]), int(match[2])) if match else (-1, -1)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
