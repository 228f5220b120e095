"""Normalisation, activation, padding and convolution, and the statistics of what comes out."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd_fast._launches import Launch, register_launches
from pix2pixhd_fast._library import define, kernel, register_triton
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.ops import winograd
from pix2pixhd_fast.ops.channel_statistics import channel_statistics
from pix2pixhd_fast.ops.memory_format import to_channels_last
from pix2pixhd_fast.ops.norm_act_pad import (
    Norm,
    check_act_pad,
    check_picture,
    normalise_backward,
    unpad,
)
from pix2pixhd_fast.ops.norm_act_pad_kernels import (
    ACT_PAD,
    PROLOGUE,
    no_second_derivative,
)
from pix2pixhd_fast.ops.wanted import wanted_gradients
from pix2pixhd_fast.ops.weight_gradient import suits_products, weight_gradient


class Conv(NamedTuple):
    """A square-strided convolution without groups and dilation.

    weight [K, C, kh, kw], or [C, K, kh, kw] where `transposed`; bias [K] or None. `dead_bias`: what
    follows takes the mean away, so that the bias has no effect: it is not added, its gradient is
    exactly zero.
    """

    weight: Tensor
    bias: Tensor | None = None
    stride: int = 1
    transposed: bool = False
    output_padding: int = 0
    dead_bias: bool = False


def norm_act_conv(
    x: Tensor,
    norm: Norm,
    conv: Conv,
    act: str = "none",
    slope: float = 0.2,
    padding: str = "none",
    pad: int = 0,
    eps: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y = conv(pad(act(norm(x)))) and, where `eps` is given, the statistics of y.

    `norm`, `act`, `slope`, `padding`, `pad` as in `normalise`; then the convolution, whose own
    padding is none ("zero" with `pad` is what others call the padding of the convolution; a
    transposed one takes `pad` off its result, with padding "zero"). x [N, C, H, W], channels_last
    is fastest; under autocast x and the weights are converted to its dtype first.

    Returns y [N, K, H', W'], channels_last, dtype of x; mean and rstd = 1 / sqrt(variance + eps) of
    y over its pixels, [N, K] float32 (float64 for float64) without gradient, empty where `eps` is
    None. Sums are at least float32.

    Saved are x, the statistics and the weights; the padded input is computed anew in the backward.
    There is no second derivative. Raises `InputError` for arguments that do not fit.
    """
    x, weight, bias = autocast_weight(x, conv.weight, conv.bias)
    conv = conv._replace(weight=weight, bias=bias)
    check_picture(x)
    check_act_pad(x, act, padding, pad)
    check_channels(x, conv.weight, x.dtype, conv.transposed)
    if conv.transposed and padding not in ("none", "zero"):
        raise InputError(
            f"padding of a transposed convolution must be none or zero, got {padding!r}"
        )
    return torch.ops.pix2pixhd_fast.norm_act_conv(
        x, *norm.tensors, conv.weight, conv.bias, norm.kind, act, slope, padding, pad,
        conv.stride, conv.transposed, conv.output_padding, conv.dead_bias, eps,
    )  # fmt: skip


def autocast_weight(x: Tensor, *parameters: Tensor | None) -> list[Tensor | None]:
    """x and parameters of a convolution in the dtype of autocast, where that is on."""
    if not torch.is_autocast_enabled(x.device.type) or x.dtype == torch.float64:
        return [x, *parameters]
    dtype = torch.get_autocast_dtype(x.device.type)
    return [None if t is None else t.to(dtype) for t in (x, *parameters)]


def check_channels(x: Tensor, weight: Tensor, dtype: torch.dtype, transposed: bool) -> None:
    """Raise `InputError` where a weight does not suit x, whose dtype will be `dtype`."""
    channels = weight.shape[0 if transposed else 1]
    if channels != x.shape[1]:
        raise InputError(f"x must have the {channels} channels of the weight, got {x.shape[1]}")
    if weight.dtype != dtype:
        raise InputError(f"weight must have the dtype of x, {dtype}, got {weight.dtype}")


def convolve(p: Tensor, conv: Conv, padding: str, pad: int) -> Tensor:
    """The convolution of an input that is padded already, unless with zeros."""
    own = pad if padding == "zero" else 0
    bias = None if conv.dead_bias else conv.bias
    if winograd.suits(p, conv.weight, conv.stride, own, conv.transposed):
        return winograd.convolve(p, conv.weight, bias, conv.stride, own)
    if conv.transposed:
        y = F.conv_transpose2d(p, conv.weight, bias, conv.stride, own, conv.output_padding)
    else:
        y = F.conv2d(p, conv.weight, bias, conv.stride, own)
    return to_channels_last(y)


def _written(padding: str, pad: int) -> tuple[str, int]:
    """The padding that must be written: zeros are the convolution's own."""
    return (padding, pad) if padding in ("reflect", "replicate") else ("none", 0)


def padded_input(x: Tensor, norm: Norm, act: str, slope: float, padding: str, pad: int) -> Tensor:
    """What the convolution reads, channels_last. Not differentiable; x itself where it is that."""
    x = to_channels_last(x)
    padding, pad = _written(padding, pad)
    if norm.does_nothing and act == padding == "none":
        return x
    return kernel("norm_act_pad_apply", x, *norm.tensors, None, act, slope, padding, pad)


def _forward(
    x, mean, rstd, gamma, beta, weight, bias, norm, act, slope, padding, pad,
    stride, transposed, output_padding, dead_bias, eps,
):  # fmt: skip
    conv = Conv(weight, bias, stride, transposed, output_padding, dead_bias)
    p = padded_input(x, Norm(norm, mean, rstd, gamma, beta), act, slope, padding, pad)
    y = convolve(p, conv, padding, pad)
    if eps is not None:
        return y, *channel_statistics(y, eps)
    dtype = torch.promote_types(y.dtype, torch.float32)
    return y, *(torch.empty(0, dtype=dtype, device=y.device) for _ in range(2))


def data_gradient(dy: Tensor, conv: Conv, size: tuple[int, int], pad: int) -> Tensor:
    """Of the convolution, for its padded input of `size` (H, W), whose values it does not need.

    By Winograd's method where that suits. Else a transposed convolution, or of such a one an
    ordinary one: what the library computes too, to the bit and in the same time on the CPU.
    """
    if _by_winograd(dy, conv, pad):
        return winograd.input_gradient(dy, size, conv.weight, conv.stride, pad)
    if conv.transposed:
        return F.conv2d(dy, conv.weight, None, conv.stride, pad)
    # Pixels at the end that no step of the stride reaches.
    beyond = tuple(
        side + 2 * pad - kernel - (steps - 1) * conv.stride
        for side, kernel, steps in zip(size, conv.weight.shape[2:], dy.shape[2:], strict=True)
    )
    return F.conv_transpose2d(dy, conv.weight, None, conv.stride, pad, beyond)


def input_gradient(dy: Tensor, like: Tensor, conv: Conv, padding: str, pad: int) -> Tensor:
    """Of conv(pad(p)) for p, which is `like` in size; channels_last."""
    border, written = _written(padding, pad)
    size = tuple(side + 2 * written for side in like.shape[2:])
    dp = data_gradient(dy, conv, size, pad if padding == "zero" else 0)
    return unpad(to_channels_last(dp), border, written)


def _gradients(
    dy: Tensor,
    p: Tensor | None,
    size: tuple[int, int],
    conv: Conv,
    pad: int,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of the convolution, for p, weight and bias; None where it is not needed.

    p, of `size` (H, W), is read for that of the weight alone.
    """
    needs_p, needs_weight, needs_bias = needs
    ours = _by_winograd(dy, conv, pad) or (
        needs_weight and suits_products(conv.weight, p, conv.stride)
    )
    if needs_weight and not ours:
        return torch.ops.aten.convolution_backward(
            dy, p, conv.weight, [conv.weight.shape[1 if conv.transposed else 0]],
            [conv.stride] * 2, [pad] * 2, [1, 1], conv.transposed, [conv.output_padding] * 2, 1,
            list(needs),
        )  # fmt: skip
    dp = data_gradient(dy, conv, size, pad) if needs_p else None
    dweight = _weight_gradient(dy, p, conv, pad) if needs_weight else None
    return dp, dweight, dy.sum((0, 2, 3)) if needs_bias else None


def _by_winograd(dy: Tensor, conv: Conv, pad: int) -> bool:
    return winograd.suits_gradients(dy, conv.weight, conv.stride, pad, conv.transposed)


def _weight_gradient(dy: Tensor, p: Tensor, conv: Conv, pad: int) -> Tensor:
    if _by_winograd(dy, conv, pad):
        return winograd.weight_gradient(dy, p, conv.weight, conv.stride, pad)
    # A transposed convolution is the gradient of one that reads what it writes.
    written, read = (p, dy) if conv.transposed else (dy, p)
    kernel_size = tuple(conv.weight.shape[2:])
    written, read = to_channels_last(written), to_channels_last(read)
    return weight_gradient(written, read, kernel_size, conv.stride, pad)


def _backward_kernel(
    dy, x, mean, rstd, gamma, beta, weight, norm, act, slope, padding, pad,
    stride, transposed, output_padding, needs_x, needs_weight, needs_bias,
):  # fmt: skip
    norm = Norm(norm, mean, rstd, gamma, beta)
    conv = Conv(weight, None, stride, transposed, output_padding)
    own = pad if padding == "zero" else 0
    written = _written(padding, pad)
    size = tuple(side + 2 * written[1] for side in x.shape[2:])
    p = padded_input(x, norm, act, slope, padding, pad) if needs_weight else None
    needs = (needs_x, needs_weight, needs_bias)
    dp, dweight, dbias = _gradients(dy, p, size, conv, own, needs)
    dx = dgamma = dbeta = None
    if needs_x:
        dp, reads = to_channels_last(dp), act != "none" or not norm.does_nothing
        x = to_channels_last(x) if reads else x
        dx, dgamma, dbeta = normalise_backward(dp, x, None, norm, act, slope, *written)
    # A list: an op cannot return None, and a placeholder for each would be an allocation.
    return [t for t in (dx, dweight, dbias, dgamma, dbeta) if t is not None]


def _setup_context(ctx, inputs, output):
    *tensors, bias, norm, act, slope, padding, pad, stride, transposed, out_pad, dead, _ = inputs
    ctx.options = (norm, act, slope, padding, pad, stride, transposed, out_pad)
    ctx.bias, ctx.dead_bias = bias, dead
    ctx.mark_non_differentiable(*output[1:])
    # Else each backward fills zeros for the statistics, two launches more.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy, *_):
    if dy is None:
        return (None,) * len(ctx.needs_input_grad)
    x, *norm, weight = ctx.saved_tensors
    needs = wanted_gradients(ctx)
    needs_x = needs[0] or needs[3] or needs[4]
    needs_bias = needs[6] and not ctx.dead_bias
    found = iter(
        torch.ops.pix2pixhd_fast.norm_act_conv_backward(
            dy, x, *norm, weight, *ctx.options, needs_x, needs[5], needs_bias
        )
    )
    there = (needs_x, needs[5], needs_bias, *(needs_x and t is not None for t in norm[2:]))
    dx, dweight, dbias, dgamma, dbeta = (next(found) if is_there else None for is_there in there)
    if needs[6] and ctx.dead_bias:
        dbias = torch.zeros_like(ctx.bias)
    found = (dx, None, None, dgamma, dbeta, dweight, dbias)
    found = tuple(t if needed else None for t, needed in zip(found, needs, strict=False))
    return *found, *(None,) * 10


def _launches(*arguments, result) -> list[Launch] | None:
    from pix2pixhd_fast.kernels.conv_launches import launches

    return launches(*arguments, result=result)


CONVOLUTION = "int stride, bool transposed, int output_padding"
define(
    "norm_act_conv",
    f"(Tensor x, {PROLOGUE}, Tensor weight, Tensor? bias, str norm, {ACT_PAD}, {CONVOLUTION},"
    " bool dead_bias, float? eps) -> (Tensor y, Tensor mean, Tensor rstd)",
    _forward,
)
define(
    "norm_act_conv_backward",
    f"(Tensor dy, Tensor x, {PROLOGUE}, Tensor weight, str norm, {ACT_PAD}, {CONVOLUTION},"
    " bool needs_x, bool needs_weight, bool needs_bias)"
    # of dx, dweight, dbias, dgamma, dbeta those that there are
    " -> Tensor[]",
    _backward_kernel,
)
torch.library.register_autograd(
    "pix2pixhd_fast::norm_act_conv", _backward, setup_context=_setup_context
)
torch.library.register_autograd(
    "pix2pixhd_fast::norm_act_conv_backward", no_second_derivative("norm_act_conv")
)
register_triton("norm_act_conv", "pix2pixhd_fast.kernels.norm_act_conv:forward")
register_launches("norm_act_conv", _launches)
