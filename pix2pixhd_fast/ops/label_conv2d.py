"""The convolution of a label map that stays a label map, and the statistics of what comes out."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd_fast._launches import register_launches
from pix2pixhd_fast._library import define, kernel
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.ops import label_launches
from pix2pixhd_fast.ops.channel_statistics import channel_statistics, wide
from pix2pixhd_fast.ops.norm_act_conv import Conv, autocast_weight, norm_act_conv
from pix2pixhd_fast.ops.norm_act_pad import DTYPES, Norm, check_padding
from pix2pixhd_fast.ops.norm_act_pad_kernels import MODES, activated, no_second_derivative
from pix2pixhd_fast.ops.wanted import wanted_gradients
from pix2pixhd_fast.semantic import SemanticMap, semantic_channels

LEVELS = (0, 1, 2)
# Activations after which the sign is still that of what went in: their derivative follows from it.
ACTIVATIONS = ("none", "relu", "leaky_relu")


def label_conv2d(
    scene: SemanticMap,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: str = "none",
    pad: int = 0,
    level: int = 0,
    dead_bias: bool = False,
    eps: float | None = None,
    act: str = "none",
    slope: float = 0.2,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y = act(conv(pad(pool(scene)))) and, where `eps` is given, the statistics of y.

    In this order, summed in float32: the channels of `scene`, averaged `level` times (0, 1 or 2;
    3x3, stride 2, padding 1, `count_include_pad=False`: sides are halved and rounded up); the
    padding, as in `norm_act_pad`; the convolution by `weight` [K, scene.num_channels, kh, kw] with
    `stride`; `bias` [K], unless it is `dead_bias` (as in `norm_act_conv`); `act`: "none", "relu" or
    "leaky_relu", whose `slope` is at least 0; rounding. The one-hot channels are never written.

    The dense channels of `scene` are convolved as in `norm_act_conv` and added before `act`. They
    are not averaged: at a level above 0 they have its size already, else `InputError`.

    weight, bias and dense: one dtype, float32, float16, bfloat16 or float64 (by the reference);
    under autocast they are converted to its dtype first. Gradients go to them; there is no second
    derivative. Of the size of y, nothing is saved but y itself where there is an activation.

    Returns y [N, K, H', W'], channels_last, dtype of weight; mean and rstd = 1 / sqrt(variance +
    eps) of y over its pixels, [N, K] float32 (float64 for float64) without gradient, empty where
    `eps` is None. Results do not depend on the number of threads and repeat exactly. Raises
    `InputError` for arguments that do not fit.
    """
    weight, bias, dense = autocast_weight(weight, bias, scene.dense)
    _check(scene.with_dense(dense), weight, bias)
    _check_sizes(scene.with_dense(dense), weight, stride, padding, pad, level)
    if not keeps_sign(act, slope):
        raise InputError(
            f"act must be one of {', '.join(ACTIVATIONS)}, with a slope of at least 0, "
            f"got {act!r} and {slope}"
        )
    addend = None
    if dense is not None:
        own = Conv(weight[:, scene.num_semantic :], None, stride)
        addend = norm_act_conv(dense, Norm(), own, padding=padding, pad=pad)[0]
    # No kernel is for float64, and the reference has PyTorch's own gradient.
    exact = weight.dtype == torch.float64
    op = label_conv2d_ref if exact else torch.ops.pix2pixhd_fast.label_conv2d
    return op(
        scene.labels, scene.edges, weight[:, : scene.num_semantic], bias, addend,
        scene.num_labels, level, stride, padding, pad, dead_bias, act, slope, eps,
    )  # fmt: skip


def keeps_sign(act: str, slope: float) -> bool:
    """Whether `label_conv2d` has the activation."""
    return act in ACTIVATIONS and (act != "leaky_relu" or slope >= 0)


def level_size(size: tuple[int, int], level: int) -> tuple[int, int]:
    """(H, W) of a level of the pyramid of a picture of `size`."""
    for _ in range(level):
        size = (-(-size[0] // 2), -(-size[1] // 2))
    return size


def _check(scene: SemanticMap, weight: Tensor, bias: Tensor | None) -> None:
    if weight.dtype not in DTYPES:
        raise InputError(
            f"weight must be float32, float16, bfloat16 or float64, got {weight.dtype}"
        )
    if weight.dim() != 4 or weight.shape[1] != scene.num_channels or 0 in weight.shape:
        raise InputError(
            f"weight must be [K, {scene.num_channels}, kh, kw] for the channels of the scene, "
            f"got {list(weight.shape)}"
        )
    for name, given in (("bias", bias), ("dense", scene.dense)):
        if given is not None and given.dtype != weight.dtype:
            raise InputError(
                f"{name} must have the dtype of weight, {weight.dtype}, got {given.dtype}"
            )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"bias must be [{weight.shape[0]}], got {list(bias.shape)}")


def _check_sizes(
    scene: SemanticMap, weight: Tensor, stride: int, padding: str, pad: int, level: int
) -> None:
    if stride < 1:
        raise InputError(f"stride must be at least 1, got {stride}")
    if level not in LEVELS:
        raise InputError(f"level must be 0, 1 or 2, got {level}")
    height, width = level_size(tuple(scene.labels.shape[2:]), level)
    check_padding(height, width, padding, pad)
    if height + 2 * pad < weight.shape[2] or width + 2 * pad < weight.shape[3]:
        raise InputError(
            f"weight must be no larger than the padded picture, {height + 2 * pad} x "
            f"{width + 2 * pad}, got {weight.shape[2]} x {weight.shape[3]}"
        )
    if scene.dense is not None and tuple(scene.dense.shape[2:]) != (height, width):
        raise InputError(
            f"dense must be {height} x {width}, the size of level {level}, "
            f"got {scene.dense.shape[2]} x {scene.dense.shape[3]}"
        )


def _padded_channels(
    labels: Tensor,
    edges: Tensor | None,
    dtype: torch.dtype,
    num_labels: int,
    level: int,
    padding: str,
    pad: int,
) -> Tensor:
    """What the convolution reads, dense."""
    x = semantic_channels(labels, edges, num_labels, dtype)
    for _ in range(level):
        x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    if pad == 0:
        return x
    # Without values all paddings are the same, but only this one is implemented.
    return F.pad(x, (pad,) * 4, mode=MODES[padding] if x.numel() > 0 else "constant")


def label_conv2d_ref(
    labels: Tensor,
    edges: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    addend: Tensor | None,
    num_labels: int,
    level: int,
    stride: int,
    padding: str,
    pad: int,
    dead_bias: bool,
    act: str,
    slope: float,
    eps: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = wide(weight)
    x = _padded_channels(labels, edges, weights.dtype, num_labels, level, padding, pad)
    y = F.conv2d(x, weights, None, stride)
    if bias is not None:
        # A dead one keeps its place in the graph: its gradient is zero, not missing.
        y = y + (wide(bias) * (not dead_bias))[:, None, None]
    if addend is not None:
        y = y + wide(addend)
    y = activated(y, act, slope)
    rounded = torch.empty_like(y, dtype=weight.dtype, memory_format=torch.channels_last).copy_(y)
    if eps is not None:
        return rounded, *channel_statistics(rounded, eps)
    return rounded, *(torch.empty(0, dtype=weights.dtype, device=y.device) for _ in range(2))


def label_conv2d_backward_ref(
    dy: Tensor,
    labels: Tensor,
    edges: Tensor | None,
    num_labels: int,
    kernel_height: int,
    kernel_width: int,
    level: int,
    stride: int,
    padding: str,
    pad: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of weight [K, num_labels (+ 1), kh, kw] and bias [K], in the dtype of dy."""
    dtype, found = dy.dtype, wide(dy)
    x = _padded_channels(labels, edges, found.dtype, num_labels, level, padding, pad)
    shape = (dy.shape[1], x.shape[1], kernel_height, kernel_width)
    dweight = torch.ops.aten.convolution_backward(
        found, x, found.new_empty(shape), None, [stride] * 2, [0, 0], [1, 1], False, [0, 0], 1,
        [False, True, False],
    )[1]  # fmt: skip
    return dweight.contiguous().to(dtype), found.sum((0, 2, 3)).to(dtype)


def before_activation(dy: Tensor, y: Tensor, act: str, slope: float) -> Tensor:
    """dy * act', the gradient of what became y by an activation that `label_conv2d` has."""
    return kernel("norm_act_pad_backward", dy, y, *(None,) * 7, act, slope, "none", 0)


def _setup_context(ctx, inputs, output):
    labels, edges, weight, ctx.bias, _, num_labels, *options, ctx.dead_bias, act, slope, _ = inputs
    ctx.options = (num_labels, *weight.shape[2:], *options)
    ctx.act, ctx.slope = act, slope
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(labels, edges, None if act == "none" else output[0])


def _backward(ctx, dy, *_):
    dweight = dbias = None
    needs_weight, needs_bias, needs_addend = wanted_gradients(ctx)[2:5]
    needs_own = needs_weight or (needs_bias and not ctx.dead_bias)
    labels, edges, y = ctx.saved_tensors
    if dy is not None and y is not None and (needs_own or needs_addend):
        dy = before_activation(dy, y, ctx.act, ctx.slope)
    if dy is not None and needs_own:
        dweight, dbias = torch.ops.pix2pixhd_fast.label_conv2d_backward(
            dy, labels, edges, *ctx.options
        )
    if dy is not None and needs_bias and ctx.dead_bias:
        dbias = torch.zeros_like(ctx.bias)
    found = (dweight, dbias, dy)
    needs = (needs_weight, needs_bias, needs_addend)
    kept = (t if needed else None for t, needed in zip(found, needs, strict=True))
    return None, None, *kept, *(None,) * 9


PICTURE = "int level, int stride, str padding, int pad"
define(
    "label_conv2d",
    "(Tensor labels, Tensor? edges, Tensor weight, Tensor? bias, Tensor? addend, int num_labels,"
    f" {PICTURE}, bool dead_bias, str act, float slope, float? eps)"
    " -> (Tensor y, Tensor mean, Tensor rstd)",
    label_conv2d_ref,
)
define(
    "label_conv2d_backward",
    "(Tensor dy, Tensor labels, Tensor? edges, int num_labels, int kernel_height,"
    f" int kernel_width, {PICTURE}) -> (Tensor dweight, Tensor dbias)",
    label_conv2d_backward_ref,
)
torch.library.register_autograd(
    "pix2pixhd_fast::label_conv2d", _backward, setup_context=_setup_context
)
torch.library.register_autograd(
    "pix2pixhd_fast::label_conv2d_backward", no_second_derivative("label_conv2d")
)
register_launches("label_conv2d", label_launches.forward)
register_launches("label_conv2d_backward", label_launches.backward)
