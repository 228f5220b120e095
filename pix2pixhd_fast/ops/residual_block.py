"""A residual block: h' = h + norm(conv(pad(act(norm(conv(pad(h)))))))."""

from typing import NamedTuple

import torch
from torch import Tensor

from pix2pixhd_fast._library import define, kernel
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.ops.norm_act_conv import autocast_weight, check_channels
from pix2pixhd_fast.ops.norm_act_pad import (
    Norm,
    check_act_pad,
    check_picture,
    normalise_backward,
)
from pix2pixhd_fast.ops.norm_act_pad_kernels import inner, no_second_derivative
from pix2pixhd_fast.ops.wanted import wanted_gradients


class Bordered(NamedTuple):
    """A picture with `border` pixels of padding on each side that are written already."""

    padded: Tensor
    border: int = 0


def residual_block(
    h: Bordered,
    weights: tuple[Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
    act: str = "relu",
    slope: float = 0.2,
    padding: str = "reflect",
    eps: tuple[float, float] = (1e-5, 1e-5),
    border: int = 0,
) -> Bordered:
    """Compute h + norm(conv(pad(act(norm(conv(pad(h))))))), with the border that comes next.

    Both convolutions are 3x3 with stride 1 and `padding` by 1, weights [C, C, 3, 3]; both norms are
    instance norms without gamma and beta (`eps` of each), so that the `biases` have no effect:
    they are not added and their gradient is exactly zero. `h.border` is 0, or 1 where the border
    that `padding` wants is written already (not with "zero"). The result has `border` (0 or 1; 0
    with "zero").

    Saved are h, the result, the raw output of the first convolution, statistics and weights; that
    of the second one follows from the result. Under autocast as in `norm_act_conv`. There is no
    second derivative. Raises `InputError` for arguments that do not fit.
    """
    _check(h, act, padding, border)
    padded, *weights = autocast_weight(h.padded, *weights)
    for weight in weights:
        check_channels(padded, weight, padded.dtype, transposed=False)
        if weight.shape != (padded.shape[1], padded.shape[1], 3, 3):
            raise InputError(f"weights must be [C, C, 3, 3], got {list(weight.shape)}")
    out, *_ = torch.ops.pix2pixhd_fast.residual_block(
        padded, *weights, *biases, act, slope, padding, h.border, border, *eps
    )
    return Bordered(out, border)


def _check(h: Bordered, act: str, padding: str, border: int) -> None:
    """Raise `InputError` for a picture, an activation or borders that do not fit."""
    check_picture(h.padded)
    if padding not in ("reflect", "replicate", "zero"):
        raise InputError(f"padding must be reflect, replicate or zero, got {padding!r}")
    for size in (h.border, border):
        if size not in (0, 1):
            raise InputError(f"border must be 0 or 1, got {size}")
        if size and padding == "zero":
            raise InputError(f"border must be 0 where padding is zero, got {size}")
    x = inner(h.padded, h.border)
    check_picture(x)
    check_act_pad(x, act, padding, 1)


def _first_padding(padding: str, border: int) -> tuple[str, int]:
    """What the first convolution must still pad."""
    return ("none", 0) if border else (padding, 1)


def _forward(h, weight1, weight2, bias1, bias2, act, slope, padding, border, next_border, *eps):
    conv = torch.ops.pix2pixhd_fast.norm_act_conv
    plain = (1, False, 0, True)  # stride, transposed, output_padding, dead_bias
    none = (None,) * 4
    y1, mean1, rstd1 = conv(
        h, *none, weight1, None, "none", "none", slope, *_first_padding(padding, border), *plain,
        eps[0],
    )  # fmt: skip
    first = (mean1, rstd1, None, None)
    y2, mean2, rstd2 = conv(
        y1, *first, weight2, None, "instance", act, slope, padding, 1, *plain, eps[1]
    )
    rest = ("none", slope, padding if next_border else "none", next_border)
    second = (mean2, rstd2, None, None)
    out = kernel("norm_act_pad_apply", y2, *second, inner(h, border), *rest)
    return out, y1, mean1, rstd1, rstd2


def _backward_kernel(
    dout, out, h, y1, mean1, rstd1, rstd2, weight1, weight2, act, slope, padding, border,
    next_border, needs_weight1, needs_weight2,
):  # fmt: skip
    conv_backward = torch.ops.pix2pixhd_fast.norm_act_conv_backward
    plain = (1, False, 0)  # stride, transposed, output_padding
    none = (None,) * 4
    dout = dout.contiguous(memory_format=torch.channels_last)
    after = (padding if next_border else "none", next_border)
    dy2 = normalise_backward(
        dout, inner(out, next_border), inner(h, border), Norm("instance", None, rstd2), "none",
        slope, *after,
    ).dx  # fmt: skip
    first = (mean1, rstd1, None, None)
    dy1, *dweight2 = conv_backward(
        dy2, y1, *first, weight2, "instance", act, slope, padding, 1, *plain, True, needs_weight2,
        False,
    )  # fmt: skip
    del dy2
    dh, *dweight1 = conv_backward(
        dy1, h, *none, weight1, "none", "none", slope, *_first_padding(padding, border), *plain,
        True, needs_weight1, False,
    )  # fmt: skip
    kernel("fold_add_", dh, dout, border, *after)
    return [dh, *dweight1, *dweight2]


def _setup_context(ctx, inputs, output):
    h, weight1, weight2, bias1, bias2, *options, _, _ = inputs
    ctx.options, ctx.biases = options, (bias1, bias2)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    out, y1, mean1, rstd1, rstd2 = output
    ctx.save_for_backward(out, h, y1, mean1, rstd1, rstd2, weight1, weight2)


def _backward(ctx, dout, *_):
    needs = wanted_gradients(ctx)
    if dout is None:
        return (None,) * len(needs)
    dh, *dweights = torch.ops.pix2pixhd_fast.residual_block_backward(
        dout, *ctx.saved_tensors, *ctx.options, needs[1], needs[2]
    )
    dweights = iter(dweights)
    biases = [
        torch.zeros_like(bias) if needed else None
        for bias, needed in zip(ctx.biases, needs[3:5], strict=True)
    ]
    found = (next(dweights) if needed else None for needed in needs[1:3])
    return dh if needs[0] else None, *found, *biases, *(None,) * 7


OPTIONS = "str act, float slope, str padding, int border, int next_border"
define(
    "residual_block",
    f"(Tensor h, Tensor weight1, Tensor weight2, Tensor? bias1, Tensor? bias2, {OPTIONS},"
    " float eps1, float eps2)"
    " -> (Tensor out, Tensor y1, Tensor mean1, Tensor rstd1, Tensor rstd2)",
    _forward,
)
define(
    "residual_block_backward",
    "(Tensor dout, Tensor out, Tensor h, Tensor y1, Tensor mean1, Tensor rstd1, Tensor rstd2,"
    f" Tensor weight1, Tensor weight2, {OPTIONS}, bool needs_weight1, bool needs_weight2)"
    # dh, and of dweight1 and dweight2 those that are needed
    " -> Tensor[]",
    _backward_kernel,
)
torch.library.register_autograd(
    "pix2pixhd_fast::residual_block", _backward, setup_context=_setup_context
)
torch.library.register_autograd(
    "pix2pixhd_fast::residual_block_backward", no_second_derivative("residual_block")
)
