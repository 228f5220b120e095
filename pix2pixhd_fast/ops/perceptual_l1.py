"""The weighted L1 distances of two pictures' features in a frozen chain of 3x3 convolutions."""

from collections.abc import Sequence

import torch
from torch import Tensor

import pix2pixhd_fast.ops.conv3x3
import pix2pixhd_fast.ops.first_l1
import pix2pixhd_fast.ops.relu_codes  # noqa: F401  (these define what this is composed of)
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
    float16, bfloat16 or float64; y, the weights and biases are converted to its dtype, under
    autocast all of them to that of autocast. The gradient flows to x alone, in the dtype and memory
    format of x. For it one bit is kept for each ReLU, two where a feature is, four for each result
    of a pooling, weights that were converted, and no picture. Behind the first pooling x and y are
    one batch. The first features of y are computed twice where they are a feature of the loss,
    which takes less memory than to keep them. There is no second derivative. Raises `InputError`
    for arguments that do not fit.
    """
    _check(x, y, weights, biases, behind, factors)
    device, dtype = x.device.type, x.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    keep = torch.is_grad_enabled() and x.requires_grad
    weights, biases = ([t.detach() for t in group] for group in (weights, biases))
    loss, _, _ = torch.ops.pix2pixhd_fast.perceptual_l1(
        x, y.detach(), weights, biases, list(behind), list(factors), dtype, keep
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
    return kernel("conv3x3", x, weight)


def _input_gradient(dy: Tensor, weight: Tensor) -> Tensor:
    """Of `_convolve`: it needs no x."""
    return kernel("conv3x3_input_gradient", dy, weight)


def _picture_as(x: Tensor, dtype: torch.dtype, last: bool) -> Tensor:
    """In the dtype and memory format, by at most one copy."""
    if x.dtype == dtype:
        return to_channels_last(x) if last else to_default_format(x)
    return x.to(dtype, memory_format=torch.channels_last if last else torch.contiguous_format)


def _converted(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """One buffer with the numbers of all tensors in the dtype; none where they have it.

    One launch on a GPU, where a conversion of each would be two for each layer.
    """
    if all(t.dtype == dtype for t in tensors):
        return []
    size = sum(t.numel() for t in tensors)
    buffer = torch.empty(size, dtype=dtype, device=tensors[0].device)
    torch._foreach_copy_(_parts_of([buffer], tensors), list(tensors))
    return [buffer]


def _parts_of(converted: list[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as `_converted` has made them."""
    if not converted:
        return list(tensors)
    sizes = [t.numel() for t in tensors]
    parts = converted[0][: sum(sizes)].split(sizes)
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


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


class _Pair:
    """x and y on their way through the chain: each by itself, behind the first pooling one batch.

    Before it, at the sides of the pictures, there is no room for both and what is made of them.
    """

    def __init__(self, x: Tensor, y: Tensor, keep: bool):
        self.x, self.y = x, y  # y: None where x holds both
        self.pictures, self.keep = x.shape[0], keep
        self.coded = x.shape[0] if keep else 0
        self.skipped: tuple | None = None  # what y still has to go through first
        self.sums: Tensor | None = None
        self.codes: list[Tensor] = []

    def first_l1(self, weight: Tensor, bias: Tensor, scale: float, dtype: torch.dtype) -> None:
        """The first layer; its result of y would be a third of the peak, and is computed again."""
        self.skipped = (weight.permute(1, 2, 3, 0).contiguous(), bias, dtype)
        given = (self.x, self.y, *self.skipped, scale, self.keep)
        self.x, self.sums, codes = kernel("first_l1", *given)
        self.codes.append(codes)

    def relu(self, weight: Tensor, bias: Tensor) -> None:
        self.x = _convolve(self.x, weight)
        self.codes.append(kernel("relu_bits_", self.x, bias, self.coded))
        if self.y is not None:
            self.y = self._convolved_y(weight)
            kernel("relu_bits_", self.y, bias, 0)

    def pool(self, weight: Tensor, bias: Tensor) -> None:
        self.x = _convolve(self.x, weight)
        self.x, codes = kernel("relu_pool", self.x, bias, self.coded, 2 * self.pictures)
        self.codes.append(codes)
        if self.y is not None:
            kernel("relu_pool_into_", self._convolved_y(weight), bias, self.x[self.pictures :])
            self.y = None

    def l1(self, weight: Tensor, bias: Tensor, scale: float, last: bool) -> None:
        self.x = _convolve(self.x, weight)
        if self.y is None:
            x, y = self.x.split(self.pictures)
        else:
            x, y = self.x, self._convolved_y(weight)
            self.y = y
        options = (scale, not last, not last, self.keep)
        self.sums, codes = kernel("relu_l1_", x, y, bias, self.sums, *options)
        self.codes.append(codes)

    def _convolved_y(self, weight: Tensor) -> Tensor:
        y = self.y if self.skipped is None else kernel("first_relu", self.y, *self.skipped)
        self.skipped = None
        return _convolve(y, weight)


def _forward(x, y, weights, biases, behind, factors, dtype, keep):
    converted = _converted([*weights, *biases], dtype)
    parts = _parts_of(converted, [*weights, *biases])
    scales = [scale for scale, _, _ in _scales(x.shape, weights, behind, factors)]
    last = len(behind) - 1
    if behind[0] == "l1" and last > 0:
        pair = _Pair(x, y, keep)
        pair.first_l1(weights[0], biases[0], scales[0], dtype)
    else:
        pair = _Pair(*(_picture_as(t, dtype, True) for t in (x, y)), keep)
    for n in range(len(pair.codes), last + 1):
        layer = (parts[n], parts[len(behind) + n])
        if behind[n] == "l1":
            pair.l1(*layer, scales[n], n == last)
        else:
            getattr(pair, behind[n])(*layer)
    return pair.sums.sum(), pair.codes, converted


def _backward_kernel(dloss, codes, weights, behind, factors, shape, dtype, x_dtype, last_format):
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
    return _picture_as(g, x_dtype, last_format)


def _setup_context(ctx, inputs, output):
    x, _, weights, _, behind, factors, dtype, _ = inputs
    _, codes, converted = output
    ctx.options = (behind, factors, x.shape, dtype, x.dtype, not x.is_contiguous())
    ctx.layers = len(weights)
    ctx.mark_non_differentiable(*codes, *converted)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*codes, *weights, *converted)


def _backward(ctx, dloss, *_):
    needed, layers = ctx.needs_input_grad[0], ctx.layers
    dx = None
    if dloss is not None and needed:
        saved = ctx.saved_tensors
        weights = _parts_of(list(saved[2 * layers :]), saved[layers : 2 * layers])
        dx = torch.ops.pix2pixhd_fast.perceptual_l1_backward(
            dloss, saved[:layers], weights, *ctx.options
        )
    return dx, None, [None] * layers, [None] * layers, None, None, None, None


define(
    "perceptual_l1",
    "(Tensor x, Tensor y, Tensor[] weights, Tensor[] biases, str[] behind, float[] factors,"
    " ScalarType dtype, bool keep) -> (Tensor loss, Tensor[] codes, Tensor[] converted)",
    _forward,
)
define(
    "perceptual_l1_backward",
    "(Tensor dloss, Tensor[] codes, Tensor[] weights, str[] behind, float[] factors,"
    " SymInt[] shape, ScalarType dtype, ScalarType x_dtype, bool last_format) -> Tensor",
    _backward_kernel,
)
torch.library.register_autograd(
    "pix2pixhd_fast::perceptual_l1", _backward, setup_context=_setup_context
)
torch.library.register_autograd(
    "pix2pixhd_fast::perceptual_l1_backward", no_second_derivative("perceptual_l1")
)
