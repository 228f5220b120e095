"""matched_norm_backward in Triton: one pass over the gradient and both features."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from pix2pixhd_fast.kernels.blocks import dense, program_of
from pix2pixhd_fast.kernels.layers import LAYERS
from pix2pixhd_fast.kernels.norm_act_pad import activate, parameter
from pix2pixhd_fast.kernels.norm_act_pad_backward import activate_backward
from pix2pixhd_fast.kernels.variants import Variant, launches
from torch import Tensor

from pix2pixhd_fast.ops.blocks import Plan


@triton.jit
def _sign_of_difference(a, b):
    """sign(a - b), a NaN where one is.

    Compared first: in a fused multiply-add the difference of equal numbers need not be 0.
    """
    d = a - b
    return tl.where(a == b, 0.0, tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, d)))


@triton.jit
def _normalised(x, at, mask, mean, rstd, own, there):
    values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    return (values - parameter(mean, own, there, 0.0)) * parameter(rstd, own, there, 1.0)


@triton.jit
def _backward_kernel(
    dp,  # [images, pixels, channels], as x, real and dx
    x,
    real,
    mean,  # [images, channels] or None, as all that follow
    rstd,
    mean_g,
    mean_dot,
    real_mean,
    real_rstd,
    match_g,
    match_dot,
    dloss,  # 0-d
    dx,
    weight,
    slope,
    pixels,
    channels,
    blocks,
    ACT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, c, block = program_of(blocks, channels, BLOCK_C)
    there, own, first = c < channels, image * channels + c, image * pixels * channels
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    mask = (p < pixels)[:, None] & there[None, :]
    at = p[:, None] * channels + c[None, :]
    z = _normalised(x + first, at, mask, mean, rstd, own, there)
    target = _normalised(real + first, at, mask, real_mean, real_rstd, own, there)
    sign = _sign_of_difference(activate(z, slope, ACT), activate(target, slope, ACT))
    scale = tl.load(dloss).to(tl.float32) * weight
    g = tl.load(dp + first + at, mask=mask, other=0.0).to(tl.float32) + scale * sign
    g = activate_backward(g, z, slope, ACT)
    if mean_g is not None:
        g -= parameter(mean_g, own, there, 0.0) + scale * parameter(match_g, own, there, 0.0)
        of_match = scale * parameter(match_dot, own, there, 0.0)
        g -= z * (parameter(mean_dot, own, there, 0.0) + of_match)
    g *= parameter(rstd, own, there, 1.0)
    tl.store(dx + first + at, g.to(dx.dtype.element_ty), mask=mask)


def backward(
    dp: Tensor,
    x: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    mean_g: Tensor | None,
    mean_dot: Tensor | None,
    real: Tensor,
    real_mean: Tensor | None,
    real_rstd: Tensor | None,
    match_g: Tensor | None,
    match_dot: Tensor | None,
    dloss: Tensor,
    weight: float,
    act: str,
    slope: float,
) -> Tensor:
    plan = Plan(x, *x.shape[2:])
    dx = plan.new(x)
    if x.numel() == 0:
        return dx
    dp, x, real = (plan.rows(t.contiguous(memory_format=plan.layout)).tensor for t in (dp, x, real))
    blocks = plan.blocks(plan.pixels)
    parameters = (mean, rstd, mean_g, mean_dot, real_mean, real_rstd, match_g, match_dot)
    with torch.cuda.device_of(x):
        _backward_kernel[(plan.columns * blocks,)](
            dp, x, real, *dense(*parameters), dloss, dx, weight, slope, plan.pixels, plan.channels,
            blocks, ACT=act, BLOCK_P=plan.block_p, BLOCK_C=plan.block_c,
        )  # fmt: skip
    return dx


def variants() -> Iterator[Variant]:
    for layer in LAYERS:
        if layer.norm == "affine" or layer.added:
            continue
        normalised = layer.norm != "none"
        pair = (layer.per_channel(),) * 2 if normalised else (None, None)
        x, dloss = layer.picture(), torch.empty((), device="meta")
        given = (x, x, *pair, *pair, x, *pair, *pair, dloss, 1e-8, layer.act, 0.2)
        yield from launches(backward, *given)
