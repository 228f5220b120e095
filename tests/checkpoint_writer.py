"""`python checkpoint_writer.py FOLDER`: per line on stdin, a child that saves until killed.

Prints `pid N` for the child, `start N` (the counter it resumes from), `saved N` after every save
and `dead` once it is gone. Children are forked: they need no import of their own.
"""

import os
import sys

import torch
from torch import Tensor, nn

from pix2pixhd_fast.checkpoints import CheckpointFolder

SIZES = {"G": 250_000, "D": 80_000, "E": 40_000}


class Counted(nn.Module):
    """`size` floats that all hold the number of the save."""

    def __init__(self, size: int = 5, counter: int = 0):
        super().__init__()
        self.values: Tensor
        self.register_buffer("values", torch.full((size,), float(counter)))

    def set(self, counter: int) -> None:
        self.values.fill_(counter)

    def counter(self) -> int:
        counters = self.values.unique().tolist()
        assert len(counters) == 1, counters
        return int(counters[0])


def has_encoder(counter: int) -> bool:
    """E comes and goes: its file is deleted by the saves that have none."""
    return counter % 4 != 0


def labels(counter: int) -> tuple[str, ...]:
    return ("latest", "10") if counter % 3 == 0 else ("latest",)


def _say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def _save_for_ever(folder: CheckpointFolder) -> None:
    networks = {letter: Counted(size) for letter, size in SIZES.items()}
    counter = 0
    if folder.labels():
        folder.load("latest", {"G": networks["G"]})
        counter = networks["G"].counter()
    _say(f"start {counter}")
    while True:
        counter += 1
        for network in networks.values():
            network.set(counter)
        saved = {k: v for k, v in networks.items() if k != "E" or has_encoder(counter)}
        folder.save(labels(counter), saved, {"counter": counter})
        _say(f"saved {counter}")


def main() -> None:
    torch.set_num_threads(1)
    folder = CheckpointFolder(sys.argv[1])
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            _save_for_ever(folder)
        _say(f"pid {child}")
        os.waitpid(child, 0)
        _say("dead")


if __name__ == "__main__":
    main()
