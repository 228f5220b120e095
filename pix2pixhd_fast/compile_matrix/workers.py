"""Compiling in processes of their own: a compiler that dies takes only its own rows with it."""

import contextlib
import multiprocessing
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from pix2pixhd_fast.compile_matrix.machine_code import examine
from pix2pixhd_fast.compile_matrix.triton_kernels import tools
from pix2pixhd_fast.compile_matrix.units import Binary, Row, Unit, failed_row, make_row

# Forked: kernels cannot be pickled, and Triton is imported once (2 s).
PROCESSES = multiprocessing.get_context("fork")
# Of a compiler's complaint, which may repeat the whole kernel.
LONGEST_MESSAGE = 4000


def compile_units(units: Sequence[Unit], jobs: int) -> Iterator[tuple[int, list[Row]]]:
    """Compile `units` in `jobs` processes; yield the place of each and its rows, as they get
    ready.

    Units of one kernel and architecture go to one process together, as the disassembler is slow to
    start. Where that process dies they are compiled once more, one by one.
    """
    families: dict[tuple[str, int], list[int]] = {}
    for index, unit in enumerate(units):
        families.setdefault((unit.family, unit.capability), []).append(index)
    waiting = deque(families.values())
    with tempfile.TemporaryDirectory(prefix="pix2pixhd_fast-") as folder:
        workers = [_Worker(units, Path(folder)) for _ in range(min(jobs, len(waiting)))]
        try:
            while waiting or any(worker.indices for worker in workers):
                for worker in workers:
                    if waiting and not worker.indices:
                        worker.start(waiting.popleft())
                ready = wait([worker.pipe for worker in workers if worker.indices])
                for worker in (each for each in workers if each.pipe in ready):
                    yield from worker.finish(waiting)
        finally:
            for worker in workers:
                worker.stop()


class _Worker:
    """A process that compiles some of the units at a time; started anew after it has died."""

    def __init__(self, units: Sequence[Unit], folder: Path) -> None:
        self.units, self.folder = units, folder
        self.indices: list[int] = []  # what it is at
        self.process, self.pipe = None, None

    def start(self, indices: list[int]) -> None:
        if self.process is None:
            self.pipe, other = PROCESSES.Pipe()
            self.log = Path(tempfile.mkdtemp(dir=self.folder), "log")
            arguments = (self.units, other, self.log)
            self.process = PROCESSES.Process(target=_work, args=arguments, daemon=True)
            self.process.start()
            other.close()
        self.indices = indices
        self.pipe.send(indices)

    def finish(self, waiting: deque[list[int]]) -> Iterator[tuple[int, list[Row]]]:
        """The rows that are ready; where the process has died, units go back to `waiting`."""
        indices, self.indices = self.indices, []
        try:
            rows = self.pipe.recv()
        except EOFError:
            self.process.join()
            code, self.process = self.process.exitcode, None
            if len(indices) > 1:
                waiting.extend([index] for index in indices)
                return
            reason = f"signal {-code}" if code < 0 else f"exit status {code}"
            said = f"the compiler ended with {reason}\n{_read(self.log)}"
            rows = [[failed_row(self.units[indices[0]], said)]]
        yield from zip(indices, rows, strict=True)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _work(units: Sequence[Unit], pipe: Connection, log: Path) -> None:
    os.environ["TRITON_CACHE_DIR"] = str(log.parent / "triton")
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # of no use here, and half of the binary
    os.environ.pop("TRITON_INTERPRET", None)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    with contextlib.suppress(EOFError):
        while True:
            indices = pipe.recv()
            os.truncate(log, 0)
            pipe.send(_compile([units[index] for index in indices], log))
            shutil.rmtree(log.parent / "triton", ignore_errors=True)


def _compile(units: list[Unit], log: Path) -> list[list[Row]]:
    binaries: list[Binary | str] = []
    for unit in units:
        before = len(_read(log))
        try:
            binaries.append(unit.compile())
        except Exception as error:
            binaries.append(f"{type(error).__name__}: {error}\n{_read(log)[before:]}")
    compiled = [binary for binary in binaries if isinstance(binary, Binary)]
    found = iter(examine([each.cubin for each in compiled], units[0].capability, tools()))
    return [
        [make_row(unit, symbol, code, binary) for symbol, code in next(found).items()]
        if isinstance(binary, Binary)
        else [failed_row(unit, binary[:LONGEST_MESSAGE])]
        for unit, binary in zip(units, binaries, strict=True)
    ]


def _read(log: Path) -> str:
    return log.read_text(errors="replace")[-LONGEST_MESSAGE:] if log.is_file() else ""
