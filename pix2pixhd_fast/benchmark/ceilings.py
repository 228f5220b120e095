"""What the machine can do at best, measured in the same run: a copy, and a matrix product."""

import torch

from pix2pixhd_fast.benchmark.method import clock_of, spread, warm_up
from pix2pixhd_fast.benchmark.request import DTYPES
from pix2pixhd_fast.benchmark.running import running

COPY_BYTES = 256 * 2**20
SIDES = {"cpu": 2048, "cuda": 8192}
REPEATS = 5


class Ceilings:
    """Rates of a device, each measured when it is asked for the first time."""

    def __init__(self, device: torch.device):
        self._device = device
        self._clock = clock_of(device)
        self._products: dict[str, float] = {}
        self._copy = 0.0

    def copy(self) -> float:
        """Bytes/s, read and written, of a copy of 256 MiB into memory that is there already."""
        if not self._copy:
            x = torch.ones(COPY_BYTES // 4, device=self._device)
            self._copy = 2 * COPY_BYTES / self._seconds(torch.empty_like(x).copy_, x)
        return self._copy

    def product(self, dtype: str) -> float | None:
        """FLOP/s of a square product (2048 on the CPU, 8192 on a GPU); None for integers."""
        if dtype not in DTYPES:
            return None
        if dtype not in self._products:
            side = SIDES[self._device.type]
            x = torch.ones(side, side, device=self._device, dtype=DTYPES[dtype])
            with running("eager", dtype):
                self._products[dtype] = 2 * side**3 / self._seconds(torch.mm, x, x)
        return self._products[dtype]

    def _seconds(self, function, *inputs) -> float:
        def call() -> None:
            function(*inputs)

        warm_up(call, self._clock, 2)
        return spread([self._clock(call, 1) for _ in range(REPEATS)]).median
