"""Mean and reciprocal deviation of each image and channel."""

import torch
from torch import Tensor

from pix2pixhd_fast._launches import Launch, bytes_of, register_launches
from pix2pixhd_fast._library import define, kernel, register_triton
from pix2pixhd_fast.ops.blocks import Plan


def wide(x: Tensor) -> Tensor:
    """In the precision of sums: float32, or float64 for float64."""
    return x if x.dtype == torch.float64 else x.float()


def channel_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """mean and 1 / sqrt(variance + eps), variance biased, over the pixels of x [N, C, H, W].

    Both [N, C], float32 (float64 for float64), contiguous. Without gradient: who normalises by them
    knows that they are taken of x, and puts that into its own.
    """
    return kernel("channel_statistics", x.detach(), eps)


def channel_statistics_ref(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = wide(x)
    mean = x.mean((2, 3))
    variance = (x - mean[..., None, None]).square().mean((2, 3))
    return mean, (variance + eps).rsqrt()


def _launches(x: Tensor, eps: float, result: tuple[Tensor, Tensor]) -> list[Launch]:
    if x.numel() == 0:
        return []
    plan = Plan(x, *x.shape[2:], sums=True)
    name = "channel_statistics.statistics"
    return plan.sum_launches(name, plan.copies([x]), plan.pixels, bytes_of(x), result)


define(
    "channel_statistics",
    "(Tensor x, float eps) -> (Tensor mean, Tensor rstd)",
    channel_statistics_ref,
)
register_triton("channel_statistics", "pix2pixhd_fast.kernels.channel_statistics:launch")
register_launches("channel_statistics", _launches)
