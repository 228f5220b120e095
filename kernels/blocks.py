"""What the kernels of the memory passes share: which block a program works on, small tensors, and
which of the programs that share a sum is the last one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pix2pixhd_fast.ops.blocks import PROGRAMS

_counters: dict[tuple[torch.device, int], Tensor] = {}


@triton.jit
def program_of(parts, channels, BLOCK_C: tl.constexpr):
    """Of the grid [images, channel blocks, parts]: the image, its channels, the part."""
    program = tl.program_id(0)
    block = program // parts
    blocks = tl.cdiv(channels, BLOCK_C)
    c = (block % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return (block // blocks).to(tl.int64), c, program % parts


@triton.jit
def is_last(counter, parts):
    """Whether this program is the last of `parts` to come here; the counter is 0 before and after.

    What the others stored before they came is there for its loads, which must go past the first
    cache (".cg"): the order is that of the counter, released by each and acquired by the last.
    """
    tl.debug_barrier()  # the stores of all threads, before the count of one
    last = tl.atomic_add(counter, 1, sem="acq_rel") == parts - 1
    if last:
        tl.store(counter, 0)
    return last


def counters(x: Tensor) -> Tensor:
    """`PROGRAMS` counters for `is_last` on the device of x: int32, zero between launches.

    They are kept, for each stream those of its own: launches on one stream do not overlap. A graph
    that is being captured gets new ones, which it fills with zeros whenever it runs.
    """
    stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return torch.zeros(PROGRAMS, dtype=torch.int32, device=x.device)
    key = (x.device, stream)
    if key not in _counters:
        _counters[key] = torch.zeros(PROGRAMS, dtype=torch.int32, device=x.device)
    return _counters[key]


def per_channel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two uninitialised results of [N, C]."""
    return tuple(torch.empty(x.shape[:2], dtype=torch.float32, device=x.device) for _ in range(2))


def dense(*parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in parameters)
