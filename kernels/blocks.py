"""What the kernels of the memory passes share: which block a program works on, small tensors."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def program_of(parts, channels, BLOCK_C: tl.constexpr):
    """Of the grid [images, channel blocks, parts]: the image, its channels, the part."""
    program = tl.program_id(0)
    block = program // parts
    blocks = tl.cdiv(channels, BLOCK_C)
    c = (block % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    return (block // blocks).to(tl.int64), c, program % parts


def per_channel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two uninitialised results of [N, C]."""
    return tuple(torch.empty(x.shape[:2], dtype=torch.float32, device=x.device) for _ in range(2))


def dense(*parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in parameters)
