"""Who computes a norm_act_conv on the GPU: the Triton kernel, or passes around the library's.

The rule is a model, not a measurement; nothing of it has run on a GPU. Seconds are those of an
H100 80GB (3.0 TB/s and 798 TFLOP/s in bf16, measured elsewhere; TF32 from the data sheet):

- library: the pass that normalises and pads (reads x, writes p), where there is something to write;
  the convolution, the longer of its bytes and of its arithmetic at 70 % of the peak, C rounded up
  to 8 and K to 32; the statistics (read y).
- triton: the longest of its bytes, of the arithmetic of its tiles with all that they are padded by
  at 50 % of the peak, and of its instructions at 75 % of the issue rate; then the statistics of the
  tiles. Instructions per value of x that a tile reads, from the machine code for sm_90: 5 with a
  norm or an activation, 2.5 without, 8 where channels do not come in fours.
- either: 4 us for each kernel.

Large and thin layers are the Triton kernel's: there the passes cost more than the convolution. The
rates are known to no better than a tenth, so that times within a tenth of each other are a draw:
it goes to the engine that moves fewer bytes, which is the better one on cards with less bandwidth.
"""

import math
import os
from functools import lru_cache
from typing import NamedTuple

import torch
from pix2pixhd_fast.kernels.norm_act_conv_plan import BLOCK_M, Layer, plan, unsupported

from pix2pixhd_fast.errors import InputError

VARIABLE = "PIX2PIXHD_FAST_CONV_ENGINE"
ENGINES = ("auto", "triton", "library")

BANDWIDTH = 3.0e12
PEAK = {torch.bfloat16: 798e12, torch.float16: 798e12, torch.float32: 494e12}
LIBRARY_SHARE, TRITON_SHARE = 0.7, 0.5
# 132 processors of 4 times 32 lanes at 1.755 GHz.
INSTRUCTIONS = 0.75 * 132 * 128 * 1.755e9
LAUNCH_SECONDS = 4e-6
DRAW = 1.1


class Modelled(NamedTuple):
    """Of a layer's forward: bytes that are read and written, kernels, seconds."""

    bytes: int
    kernels: int
    seconds: float


def engine(layer: Layer) -> str:
    """ "triton" or "library": as PIX2PIXHD_FAST_CONV_ENGINE says, or what the model prefers.

    "library" for every layer that the kernel does not support. Raises `InputError` for another
    value of the variable.
    """
    wanted = os.getenv(VARIABLE, "auto")
    if wanted not in ENGINES:
        raise InputError(f"{VARIABLE} must be one of {', '.join(ENGINES)}, got {wanted!r}")
    if wanted == "library" or unsupported(layer):
        return "library"
    if wanted == "auto":
        return _faster(layer, torch.backends.cudnn.allow_tf32)
    return wanted


@lru_cache(maxsize=4096)
def _faster(layer: Layer, tf32: bool) -> str:
    # Exact products of float32 do not run on tensor cores; the library has better kernels for them.
    if layer.dtype == torch.float32 and not tf32:
        return "library"
    ours, passes = triton(layer), library(layer)
    if max(ours.seconds, passes.seconds) < DRAW * min(ours.seconds, passes.seconds):
        return "triton" if ours.bytes < passes.bytes else "library"
    return "triton" if ours.seconds < passes.seconds else "library"


class Sizes(NamedTuple):
    """Bytes of the tensors of a layer; p: what the library's convolution reads, 0 where that is x.

    parameters: mean and rstd of x. statistics: mean and rstd of y.
    """

    x: int
    p: int
    weight: int
    bias: int
    y: int
    parameters: int
    statistics: int


def sizes(layer: Layer) -> Sizes:
    n, channels, height, width = layer.x
    size = layer.dtype.itemsize
    bordered = layer.padding in ("reflect", "replicate")
    border = 2 * layer.pad if bordered else 0
    written = layer.normed or layer.act != "none" or bordered
    return Sizes(
        x=math.prod(layer.x) * size,
        p=n * channels * (height + border) * (width + border) * size if written else 0,
        weight=math.prod(layer.weight) * size,
        bias=layer.channels * size if layer.bias else 0,
        y=math.prod(layer.y) * size,
        parameters=8 * n * channels if layer.normed else 0,
        statistics=8 * n * layer.channels if layer.statistics else 0,
    )


def library(layer: Layer) -> Modelled:
    """The composition: apply, convolution, statistics and their combination."""
    moved = sizes(layer)
    channels, outputs = layer.x[1], layer.channels
    padded = -(-channels // 8) * 8 * -(-outputs // 32) * 32
    arithmetic = layer.flops / (channels * outputs) * padded / (LIBRARY_SHARE * PEAK[layer.dtype])
    convolution = (moved.p or moved.x) + moved.weight + moved.y
    passes = (moved.x + moved.p if moved.p else 0) + (moved.y if layer.statistics else 0)
    kernels = 1 + bool(moved.p) + 2 * layer.statistics
    seconds = max(convolution / BANDWIDTH, arithmetic) + passes / BANDWIDTH
    return Modelled(convolution + passes, kernels, seconds + kernels * LAUNCH_SECONDS)


def triton(layer: Layer) -> Modelled:
    """The Triton kernel, of weights that are channels_last, and what combines its statistics."""
    moved, shape = sizes(layer), plan(layer)
    products = shape.steps(layer) * -(-shape.r // shape.block_r) * shape.block_r
    # A phase of a transposed convolution has its share of the taps.
    tiles = layer.x[0] * shape.tiles * BLOCK_M / shape.up**2
    columns = shape.blocks * shape.block_n
    arithmetic = 2 * tiles * products * columns / (TRITON_SHARE * PEAK[layer.dtype])
    each = 8.0 if layer.x[1] % 4 else 5.0 if layer.normed or layer.act != "none" else 2.5
    instructions = each * tiles * products * shape.blocks / INSTRUCTIONS
    partial = 8 * layer.x[0] * layer.channels * shape.tiles if layer.statistics else 0
    moving = moved.x + moved.weight + moved.y + partial
    kernels = 1 + layer.statistics
    seconds = max(moving / BANDWIDTH, arithmetic, instructions) + partial / BANDWIDTH
    return Modelled(moving + partial, kernels, seconds + kernels * LAUNCH_SECONDS)
