"""The weighted L1 distances of two pictures' features in a frozen chain of 3x3 convolutions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import pix2pixhd_fast.ops.relu_codes  # noqa: F401  (defines the passes behind the convolutions)
from pix2pixhd_fast._library import define, kernel
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.ops.memory_format import to_channels_last, to_default_format
from pix2pixhd_fast.ops.norm_act_pad import check_picture
from pix2pixhd_fast.ops.norm_act_pad_kernels import no_second_derivative

BEHIND = ("l1", "pool", "relu")


def perceptual_l1(
    x: Tensor,
    y: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    behind: Sequence[str],
    factors: Sequence[float],
) -> Tensor:
    """Compute the sum over the features k of factors[k] * mean |x_k - y_k|.

    x and y [N, C, H, W] go through the same chain: convolutions of 3x3 that pad one zero, `weights`
    [K, C, 3, 3] and `biases` [K], each with a ReLU behind it, and then, as `behind` says for each
    convolution: "l1", its result is a feature, of which `factors` has one number each; "pool", a
    maximum over windows of 2x2 as by `nn.MaxPool2d(2, 2)`; "relu", nothing more.

    Returns one number, float32 (float64 for float64), the sums in that dtype. x may be float32,
    float16, bfloat16 or float64, y is converted to its dtype and the weights are as well; under
    autocast x is converted to that of autocast first. The gradient flows to x alone, in the memory
    format of x. For it one bit is kept for each ReLU, two where a feature is, four for each result
    of a pooling, and no picture. The first features of y are computed twice where they are a
    feature of the loss, which takes less memory than to keep them. There is no second derivative.
    Raises `InputError` for arguments that do not fit.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    _check(x, y, weights, biases, behind, factors)
    keep = torch.is_grad_enabled() and x.requires_grad
    with torch.no_grad():
        y = y.to(x.dtype)
        weights, biases = ([t.detach() for t in group] for group in (weights, biases))
    loss, _ = torch.ops.pix2pixhd_fast.perceptual_l1(
        x, y, weights, biases, list(behind), list(factors), keep
    )
    return loss


def _check(x, y, weights, biases, behind, factors) -> None:
    check_picture(x)
    if x.shape[0] == 0:
        raise InputError(f"x must hold at least one picture, got {list(x.shape)}")
    if y.shape != x.shape or y.device != x.device or not y.is_floating_point():
        raise InputError(
            f"y must be a floating picture {list(x.shape)} on {x.device} as x is, got "
            f"{list(y.shape)}, {y.dtype} on {y.device}"
        )
    if not len(weights) == len(biases) == len(behind) > 0:
        raise InputError(
            f"weights, biases and behind must be of one length and not empty, got {len(weights)}, "
            f"{len(biases)} and {len(behind)}"
        )
    channels = x.shape[1]
    for weight, bias in zip(weights, biases, strict=True):
        outputs = weight.shape[0]
        if weight.shape != (outputs, channels, 3, 3) or bias.shape != (outputs,):
            raise InputError(
                f"weights and biases must be [K, {channels}, 3, 3] and [K] here, got "
                f"{list(weight.shape)} and {list(bias.shape)}"
            )
        channels = outputs
    _check_chain(x, behind, factors)


def _check_chain(x: Tensor, behind: Sequence[str], factors: Sequence[float]) -> None:
    for word in behind:
        if word not in BEHIND:
            raise InputError(f"behind must be of {', '.join(BEHIND)}, got {word!r}")
    features = sum(word == "l1" for word in behind)
    if len(factors) != features or behind[-1] != "l1":
        raise InputError(
            "factors must be one number for each l1 in behind, the last one at its end, got "
            f"{len(factors)} for {list(behind)}"
        )
    least = 2 ** sum(word == "pool" for word in behind)
    if min(x.shape[2:]) < least:
        raise InputError(
            f"x must have sides of at least {least} for its poolings, got {list(x.shape)}"
        )


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Without the bias, which the pass behind it adds."""
    return to_channels_last(F.conv2d(x, weight.to(x.dtype), None, 1, 1))


def _input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """Of `_convolve`: a convolution by the weight turned round, which needs no x.

    Measured on one core (AVX-512, noisy), ms, so and by aten::convolution_backward, 128 -> 256
    channels, 64x128: float32 177, 195; bfloat16 728, 5798.
    """
    turned = weight.to(dy.dtype).flip(2, 3).transpose(0, 1)
    return to_channels_last(F.conv2d(dy, turned, None, 1, 1))


def _scales(shape: Sequence[int], weights, behind, factors) -> list[tuple[float, int, int]]:
    """For each convolution the factor of one element of its feature (or 0), height and width."""
    found, rest = [], list(factors)
    n, _, h, w = shape
    for weight, word in zip(weights, behind, strict=True):
        numbers = n * weight.shape[0] * h * w
        found.append((rest.pop(0) / numbers if word == "l1" else 0.0, h, w))
        if word == "pool":
            h, w = h // 2, w // 2
    return found


def _pass_on(z: Tensor, bias: Tensor, word: str, keep: bool) -> tuple[Tensor, Tensor]:
    """Behind a convolution that gives no feature: what the next one reads, and the codes."""
    if word == "pool":
        return kernel("relu_pool", z, bias, keep)
    return z, kernel("relu_bits_", z, bias, keep)


def _forward(x, y, weights, biases, behind, factors, keep):
    x, y = to_channels_last(x), to_channels_last(y)
    dtype = torch.promote_types(x.dtype, torch.float32)
    loss = torch.zeros((), dtype=dtype, device=x.device)
    scales = _scales(x.shape, weights, behind, factors)
    codes, last = [], len(behind) - 1
    # Beside the features of x and what the next convolution makes of them, those of y would be a
    # third of the peak.
    twice = behind[0] == "l1" and last > 0
    for n, (weight, bias, word) in enumerate(zip(weights, biases, behind, strict=True)):
        x = _convolve(x, weight)
        if word != "l1":
            x, code = _pass_on(x, bias, word, keep)
        if n == 1 and twice:
            y = _convolve(y, weights[0])
            _pass_on(y, biases[0], "relu", False)
        if word == "l1":
            z = _convolve(y, weight)
            write_y = n < last and not (n == 0 and twice)
            options = (loss, scales[n][0], n < last, write_y, keep)
            code = kernel("relu_l1_", x, z, bias, *options)
            if n > 0 or not twice:
                y = z
            del z
        else:
            y = _convolve(y, weight)
            y, _ = _pass_on(y, bias, word, False)
        codes.append(code)
    return loss, codes


def _backward_kernel(dloss, codes, weights, behind, factors, shape, dtype, last_format):
    scales = _scales(shape, weights, behind, factors)
    n, g = shape[0], None
    for weight, word, code, (scale, height, width) in zip(
        reversed(weights), reversed(behind), reversed(codes), reversed(scales), strict=True
    ):
        if word == "l1":
            add = g is not None
            if not add:
                size = (n, weight.shape[0], height, width)
                g = torch.empty(
                    size, dtype=dtype, device=dloss.device, memory_format=torch.channels_last
                )
            kernel("relu_l1_backward_", g, code, dloss, scale, add)
        elif word == "pool":
            g = kernel("relu_pool_backward", g, code, height, width)
        else:
            kernel("relu_bits_backward_", g, code)
        g = _input_gradient(g, weight)
    return g if last_format else to_default_format(g)


def _setup_context(ctx, inputs, output):
    x, _, weights, _, behind, factors, _ = inputs
    _, codes = output
    ctx.options = (behind, factors, x.shape, x.dtype, not x.is_contiguous())
    ctx.layers = len(weights)
    ctx.mark_non_differentiable(*codes)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*codes, *weights)


def _backward(ctx, dloss, _):
    needed, layers = ctx.needs_input_grad[0], ctx.layers
    dx = None
    if dloss is not None and needed:
        saved = ctx.saved_tensors
        behind, factors, shape, dtype, last_format = ctx.options
        dx = torch.ops.pix2pixhd_fast.perceptual_l1_backward(
            dloss, saved[:layers], saved[layers:], behind, factors, shape, dtype, last_format
        )
    return dx, None, [None] * layers, [None] * layers, None, None, None


define(
    "perceptual_l1",
    "(Tensor x, Tensor y, Tensor[] weights, Tensor[] biases, str[] behind, float[] factors,"
    " bool keep) -> (Tensor loss, Tensor[] codes)",
    _forward,
)
define(
    "perceptual_l1_backward",
    "(Tensor dloss, Tensor[] codes, Tensor[] weights, str[] behind, float[] factors,"
    " SymInt[] shape, ScalarType dtype, bool last_format) -> Tensor",
    _backward_kernel,
)
torch.library.register_autograd(
    "pix2pixhd_fast::perceptual_l1", _backward, setup_context=_setup_context
)
torch.library.register_autograd(
    "pix2pixhd_fast::perceptual_l1_backward", no_second_derivative("perceptual_l1")
)
