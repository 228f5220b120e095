"""Normalisation, activation, residual and padding in one: what stands between two convolutions."""

from typing import NamedTuple

import torch
from torch import Tensor

from pix2pixhd_fast._library import define, kernel
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.ops.channel_statistics import channel_statistics
from pix2pixhd_fast.ops.norm_act_pad_kernels import (
    ACT_PAD,
    PROLOGUE,
    inner,
    no_second_derivative,
)
from pix2pixhd_fast.ops.wanted import wanted_gradients

ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh")
PADDINGS = ("none", "reflect", "replicate", "zero")
# What the mean and rstd of a normalisation were taken of: nothing is normalised; each image; the
# whole batch; something else (running statistics), so that they are constants.
NORMS = ("none", "instance", "batch", "fixed")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Norm(NamedTuple):
    """A normalisation (x - mean) * rstd * gamma + beta that is still to be done.

    `kind` is one of `NORMS`; mean and rstd [N, C] float32 (float64 for float64), None where kind is
    "none"; gamma and beta [C], or None for 1 and 0.
    """

    kind: str = "none"
    mean: Tensor | None = None
    rstd: Tensor | None = None
    gamma: Tensor | None = None
    beta: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """mean, rstd, gamma, beta: the order in which the ops take them."""
        return self[1:]

    @property
    def does_nothing(self) -> bool:
        return self.kind == "none" and self.gamma is None and self.beta is None


def norm_act_pad(
    x: Tensor,
    act: str = "none",
    slope: float = 0.2,
    padding: str = "none",
    pad: int = 0,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y = pad(act(norm(x))), and the statistics of x.

    In this order, all in float32 (float64 for float64):

    1. mean and biased variance of each image and channel over its H*W pixels;
       rstd = 1 / sqrt(variance + eps)
    2. xhat = (x - mean) * rstd
    3. `act`: "none"; "relu": max(xhat, 0); "leaky_relu": xhat where xhat > 0, `slope` * xhat
       elsewhere; "tanh"
    4. `padding`, `pad` pixels on each of the four sides: "none" (pad is 0); "reflect", without
       repeating the border pixel (pad < H and pad < W); "replicate", the border pixel; "zero"
    5. rounding to the dtype of x

    `x`: [N, C, H, W], float32, float16, bfloat16 or float64, any strides; N or C may be 0, H and W
    not; a single pixel has variance 0. Kernels read x in place where it is contiguous, in the
    channels_last or the default memory format, and copy it first where it is neither.

    Returns y [N, C, H + 2 pad, W + 2 pad], dtype of x; mean and rstd [N, C], float32 (float64 for
    float64), contiguous, without gradient. y is contiguous: in the channels_last format where
    the channels of x lie next to each other in memory, as in an inner view of a channels_last
    tensor, unless x is contiguous in the default format as well or has but one channel; in the
    default format in all other cases. The same rule gives the format of the gradient.

    The gradient is recomputed from x, mean and rstd, which are all that is saved. Results do not
    depend on the number of threads and repeat exactly. There is no second derivative. Autocast
    changes nothing: y has the dtype of x. Raises `InputError` for other arguments.
    """
    check_picture(x)
    check_act_pad(x, act, padding, pad)
    if not eps > 0:
        raise InputError(f"eps must be positive, got {eps}")
    mean, rstd = channel_statistics(x, eps)
    return normalise(x, Norm("instance", mean, rstd), None, act, slope, padding, pad), mean, rstd


def normalise(
    x: Tensor,
    norm: Norm,
    residual: Tensor | None = None,
    act: str = "none",
    slope: float = 0.2,
    padding: str = "none",
    pad: int = 0,
) -> Tensor:
    """Compute y = pad(act(norm(x)) + residual) with statistics that are there already.

    Order, arguments and result as in `norm_act_pad`; `residual` [N, C, H, W], dtype of x, is added
    behind the activation and may be the inner part of a padded tensor of the format of x. The
    gradient treats the statistics as `norm.kind` says. Of x, y and residual two are saved: y and
    the residual where x follows from them, that is where act is "none", norm is "instance" and
    without gamma and beta.
    """
    return torch.ops.pix2pixhd_fast.norm_act_pad(
        x, *norm.tensors, residual, norm.kind, act, slope, padding, pad
    )


def check_picture(x: Tensor) -> None:
    """Raise `InputError` where x is no [N, C, H, W] of floats with pixels."""
    if x.dim() != 4:
        raise InputError(f"x must be [N, C, H, W], got {list(x.shape)}")
    if x.dtype not in DTYPES:
        raise InputError(f"x must be float32, float16, bfloat16 or float64, got {x.dtype}")
    if 0 in x.shape[2:]:
        raise InputError(f"x must have at least one pixel, got {list(x.shape)}")


def check_act_pad(x: Tensor, act: str, padding: str, pad: int) -> None:
    """Raise `InputError` for an activation or a padding that x cannot have."""
    if act not in ACTIVATIONS:
        raise InputError(f"act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
    check_padding(x.shape[2], x.shape[3], padding, pad)


def check_padding(height: int, width: int, padding: str, pad: int) -> None:
    """Raise `InputError` for a padding that a picture of this size cannot have."""
    if padding not in PADDINGS:
        raise InputError(f"padding must be one of {', '.join(PADDINGS)}, got {padding!r}")
    if pad < 0:
        raise InputError(f"pad must be at least 0, got {pad}")
    if padding == "none" and pad > 0:
        raise InputError(f"pad must be 0 where padding is none, got {pad}")
    if padding == "reflect" and pad >= min(height, width):
        raise InputError(
            f"pad must be less than both sides of x, {height} x {width}, to reflect, got {pad}"
        )


def unpad(dy: Tensor, padding: str, pad: int) -> Tensor:
    """The gradient of the padding alone: dy itself where there is none."""
    return kernel("fold", dy, padding, pad) if pad else dy


class Gradients(NamedTuple):
    """Of `normalise`, for x, gamma and beta; None where there is none."""

    dx: Tensor
    dgamma: Tensor | None
    dbeta: Tensor | None


def normalise_backward(
    dy: Tensor,
    x: Tensor,
    minus: Tensor | None,
    norm: Norm,
    act: str,
    slope: float,
    padding: str,
    pad: int,
) -> Gradients:
    """The two passes of the backward: the sums, then dx. Not differentiable.

    xhat is x - minus where minus is given, then of a norm without gamma and beta.
    """
    kind, mean, rstd, gamma, beta = norm
    if norm.does_nothing and act == "none":
        return Gradients(unpad(dy, padding, pad), None, None)
    mean_g = mean_dot = dgamma = dbeta = None
    if kind in ("instance", "batch") or gamma is not None or beta is not None:
        mean_g, mean_dot = kernel(
            "norm_act_pad_reduce", dy, x, minus, mean, rstd, gamma, beta, act, slope, padding, pad
        )
        pixels = x.shape[2] * x.shape[3]
        dgamma = None if gamma is None else (mean_dot.sum(0) * pixels).to(gamma.dtype)
        dbeta = None if beta is None else (mean_g.sum(0) * pixels).to(beta.dtype)
    if kind == "batch":
        mean_g, mean_dot = (m.mean(0, keepdim=True).expand_as(m) for m in (mean_g, mean_dot))
    elif kind != "instance":
        mean_g = mean_dot = None
    tensors = (dy, x, minus, mean, rstd, gamma, beta, mean_g, mean_dot)
    dx = kernel("norm_act_pad_backward", *tensors, act, slope, padding, pad)
    return Gradients(dx, dgamma, dbeta)


def _forward(x, mean, rstd, gamma, beta, residual, norm, act, slope, padding, pad):
    tensors = (x, mean, rstd, gamma, beta, residual)
    return kernel("norm_act_pad_apply", *tensors, act, slope, padding, pad)


def _setup_context(ctx, inputs, output):
    x, mean, rstd, gamma, beta, residual, ctx.kind, ctx.act, ctx.slope, ctx.padding, ctx.pad = (
        inputs
    )
    plain = ctx.kind == "instance" and ctx.act == "none" and gamma is None and beta is None
    ctx.by_difference = residual is not None and plain
    if ctx.by_difference:
        ctx.save_for_backward(output, residual, rstd)
    else:
        ctx.save_for_backward(x, mean, rstd, gamma, beta)


def _backward(ctx, dy):
    needs = wanted_gradients(ctx)
    rest = (ctx.act, ctx.slope, ctx.padding, ctx.pad)
    if ctx.by_difference:
        y, minus, rstd = ctx.saved_tensors
        x, tensors = inner(y, ctx.pad), (None, rstd, None, None)
    else:
        x, *tensors = ctx.saved_tensors
        minus = None
    dx, dgamma, dbeta = dy, None, None
    # Nothing at all to be done is none of the op's business: its results must be new tensors.
    does = not Norm(ctx.kind, *tensors).does_nothing or ctx.act != "none" or ctx.pad > 0
    if does and any(needs[:5]):
        found = iter(
            torch.ops.pix2pixhd_fast.normalise_backward(dy, x, minus, *tensors, ctx.kind, *rest)
        )
        there = (True, *(t is not None for t in tensors[2:]))
        dx, dgamma, dbeta = (next(found) if is_there else None for is_there in there)
    dresidual = unpad(dy, ctx.padding, ctx.pad) if needs[5] else None
    found = (dx, None, None, dgamma, dbeta, dresidual)
    found = tuple(t if needed else None for t, needed in zip(found, needs, strict=False))
    return *found, *(None,) * 5


def _backward_kernel(
    dy, x, minus, mean, rstd, gamma, beta, norm, act, slope, padding, pad
) -> list[Tensor]:
    norm = Norm(norm, mean, rstd, gamma, beta)
    found = normalise_backward(dy, x, minus, norm, act, slope, padding, pad)
    return [t for t in found if t is not None]


define(
    "norm_act_pad",
    f"(Tensor x, {PROLOGUE}, Tensor? residual, str norm, {ACT_PAD}) -> Tensor",
    _forward,
)
torch.library.register_autograd(
    "pix2pixhd_fast::norm_act_pad", _backward, setup_context=_setup_context
)
define(
    "normalise_backward",
    f"(Tensor dy, Tensor x, Tensor? minus, {PROLOGUE}, str norm, {ACT_PAD})"
    " -> Tensor[]",  # dx, and of dgamma and dbeta those that there are
    _backward_kernel,
)
torch.library.register_autograd(
    "pix2pixhd_fast::normalise_backward", no_second_derivative("norm_act_pad")
)
