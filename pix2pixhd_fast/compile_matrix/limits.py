"""What a multiprocessor of each architecture holds, and how much of it a kernel can fill."""

import math
from typing import NamedTuple

REGISTERS = 65536  # 32 bits each, in four equal parts, one for each scheduler
SCHEDULERS = 4
WARP = 32
REGISTER_UNIT = 256  # a warp is given registers, and
SHARED_UNIT = 128  # a block bytes of shared memory, in whole units
SHARED_RESERVED = 1024  # bytes of each block that the system keeps


class Limits(NamedTuple):
    """Of a multiprocessor: warps and blocks at a time, bytes of shared memory."""

    warps: int
    blocks: int
    shared: int

    @property
    def shared_of_block(self) -> int:
        """The most that one block may have."""
        return self.shared - SHARED_RESERVED


# CUDA C++ Programming Guide 13.0, technical specifications per compute capability; the units above
# and the blocks are those of cuda_occupancy.h of the same toolkit.
LIMITS = {
    80: Limits(warps=64, blocks=32, shared=164 * 1024),
    86: Limits(warps=48, blocks=16, shared=100 * 1024),
    89: Limits(warps=48, blocks=24, shared=100 * 1024),
    90: Limits(warps=64, blocks=32, shared=228 * 1024),
    100: Limits(warps=64, blocks=32, shared=228 * 1024),
    120: Limits(warps=48, blocks=24, shared=100 * 1024),
}


def occupancy(capability: int, registers: int, shared: int, block: int) -> float:
    """The share of the warps of a multiprocessor that can be there at a time; 0: no block fits.

    `registers` of a thread, `shared` bytes of a block without the reserved ones, `block` threads.
    """
    limits = LIMITS[capability]
    warps = math.ceil(block / WARP)
    if shared > limits.shared_of_block:
        return 0.0
    of_warp = _whole(max(registers, 1) * WARP, REGISTER_UNIT)
    by_registers = REGISTERS // SCHEDULERS // of_warp * SCHEDULERS // warps
    by_shared = limits.shared // _whole(shared + SHARED_RESERVED, SHARED_UNIT)
    blocks = min(limits.blocks, limits.warps // warps, by_registers, by_shared)
    return blocks * warps / limits.warps


def _whole(amount: int, unit: int) -> int:
    return math.ceil(amount / unit) * unit
