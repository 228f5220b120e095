"""The kernels of norm_act_pad, without gradients: forward, the two passes of backward, folding."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd_fast._launches import Launch, bytes_of, register_launches, scratch_of
from pix2pixhd_fast._library import define, register_triton
from pix2pixhd_fast.ops.blocks import Plan, layout_of
from pix2pixhd_fast.ops.channel_statistics import wide

# The names that F.pad has for them.
MODES = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}


def laid_out_like(x: Tensor, values: Tensor) -> Tensor:
    """`values` in the dtype of x, dense in the format that `layout_of` gives."""
    layout = layout_of(x)
    # Not .contiguous(): that keeps odd strides of sides of one.
    return torch.empty(values.shape, dtype=x.dtype, device=x.device, memory_format=layout).copy_(
        values
    )


def per_channel(values: Tensor) -> Tensor:
    """[N, C] or [C] -> what broadcasts over [N, C, H, W]."""
    return values[..., None, None]


def normalised(x: Tensor, minus: Tensor | None, mean: Tensor | None, rstd: Tensor | None):
    """xhat: x - minus, or (x - mean) * rstd, or x."""
    if minus is not None:
        return wide(x) - wide(minus)
    return wide(x) if mean is None else (wide(x) - per_channel(mean)) * per_channel(rstd)


def affine(xhat: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    xhat = xhat if gamma is None else xhat * per_channel(gamma.to(xhat.dtype))
    return xhat if beta is None else xhat + per_channel(beta.to(xhat.dtype))


def activated(z: Tensor, act: str, slope: float) -> Tensor:
    """act(z)"""
    if act == "relu":
        return z.relu()
    if act == "leaky_relu":
        return torch.where(z > 0, z, z * slope)
    return z.tanh() if act == "tanh" else z


def activated_backward(g: Tensor, z: Tensor, act: str, slope: float) -> Tensor:
    """g * act'(z)"""
    if act == "relu":
        return torch.where(z > 0, g, 0.0)
    if act == "leaky_relu":
        return torch.where(z > 0, g, g * slope)
    return g * (1 - z.tanh().square()) if act == "tanh" else g


def norm_act_pad_apply_ref(
    x: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    residual: Tensor | None,
    act: str,
    slope: float,
    padding: str,
    pad: int,
) -> Tensor:
    y = activated(affine(normalised(x, None, mean, rstd), gamma, beta), act, slope)
    y = y if residual is None else y + wide(residual)
    if pad > 0:
        # Without values all paddings are the same, but only this one is implemented.
        y = F.pad(y, (pad,) * 4, mode=MODES[padding] if x.numel() > 0 else "constant")
    return laid_out_like(x, y)


def _gradient_before_norm(
    dy: Tensor,
    x: Tensor,
    minus: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    act: str,
    slope: float,
    padding: str,
    pad: int,
) -> tuple[Tensor, Tensor]:
    """g, the gradient with respect to gamma * xhat + beta, and xhat."""
    xhat = normalised(x, minus, mean, rstd)
    z = affine(xhat, gamma, beta)
    return activated_backward(_folded(wide(dy), padding, pad), z, act, slope), xhat


def norm_act_pad_reduce_ref(
    dy: Tensor,
    x: Tensor,
    minus: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    act: str,
    slope: float,
    padding: str,
    pad: int,
) -> tuple[Tensor, Tensor]:
    """The means of g and of g * xhat over the pixels, [N, C] each."""
    g, xhat = _gradient_before_norm(dy, x, minus, mean, rstd, gamma, beta, act, slope, padding, pad)
    return g.mean((2, 3)), (g * xhat).mean((2, 3))


def norm_act_pad_backward_ref(
    dy: Tensor,
    x: Tensor,
    minus: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean_g: Tensor | None,
    mean_dot: Tensor | None,
    act: str,
    slope: float,
    padding: str,
    pad: int,
) -> Tensor:
    """dx = gamma * rstd * (g - mean_g - xhat * mean_dot), by the format rule of x."""
    g, xhat = _gradient_before_norm(dy, x, minus, mean, rstd, gamma, beta, act, slope, padding, pad)
    if mean_g is not None:
        g = g - per_channel(mean_g) - xhat * per_channel(mean_dot)
    g = g if gamma is None else g * per_channel(gamma.to(g.dtype))
    return laid_out_like(x, g if rstd is None else g * per_channel(rstd))


def inner(padded: Tensor, border: int) -> Tensor:
    """A view of a padded tensor without its border."""
    if border == 0:
        return padded
    return padded[:, :, border:-border, border:-border]


def fold_ref(dy: Tensor, padding: str, pad: int) -> Tensor:
    """The gradient of a padding: each pixel of the unpadded picture sums its copies in dy.

    By the format rule of dy, in its dtype, summed in float32 or wider.
    """
    return laid_out_like(dy, _folded(wide(dy), padding, pad))


def fold_add_ref(dx: Tensor, dy: Tensor, border: int, padding: str, pad: int) -> None:
    """Add `fold` of dy to inner(dx, border), in place."""
    into = inner(dx, border)
    into.copy_(wide(into) + _folded(wide(dy), padding, pad))


def _folded(dy: Tensor, padding: str, pad: int) -> Tensor:
    like = inner(dy, pad)
    if pad == 0 or padding == "zero" or dy.numel() == 0:
        return like
    # Of `like`, only the shape is used.
    if padding == "reflect":
        return torch.ops.aten.reflection_pad2d_backward(dy, like, [pad] * 4)
    return torch.ops.aten.replication_pad2d_backward(dy, like, [pad] * 4)


def no_second_derivative(name: str):
    """The backward of the backward of the op `name`: a clear refusal."""

    def refuse(ctx, *_):
        raise RuntimeError(f"{name} has no second derivative")

    return refuse


def _apply_launches(
    x, mean, rstd, gamma, beta, residual, act, slope, padding, pad, result
) -> list[Launch]:
    if result.numel() == 0:
        return []
    parameters = (mean, rstd, gamma, beta)
    copies = Plan(x, *x.shape[2:]).copies((), (x, residual), parameters)
    read, scratch = bytes_of(x, residual, *parameters), scratch_of(copies)
    return [*copies, Launch("norm_act_pad.apply", read, bytes_of(result), scratch=scratch)]


def _reduce_launches(
    dy, x, minus, mean, rstd, gamma, beta, act, slope, padding, pad, result
) -> list[Launch]:
    if x.numel() == 0:
        return []
    plan = Plan(x, *x.shape[2:], sums=True)
    parameters = (mean, rstd, gamma, beta)
    copies = plan.copies((dy,), (x, minus), parameters)
    name, pixels = "norm_act_pad_backward.reduce", dy.shape[2] * dy.shape[3]
    return plan.sum_launches(name, copies, pixels, bytes_of(dy, x, minus, *parameters), result)


def _backward_launches(
    dy, x, minus, mean, rstd, gamma, beta, mean_g, mean_dot, act, slope, padding, pad, result
) -> list[Launch]:
    if x.numel() == 0:
        return []
    parameters = (mean, rstd, gamma, beta, mean_g, mean_dot)
    copies = Plan(x, *x.shape[2:]).copies((dy,), (x, minus), parameters)
    read, scratch = bytes_of(dy, x, minus, *parameters), scratch_of(copies)
    name = "norm_act_pad_backward.backward"
    return [*copies, Launch(name, read, bytes_of(result), scratch=scratch)]


def _fold_launches(dy, padding, pad, result) -> list[Launch]:
    if result.numel() == 0:
        return []
    copies = Plan(dy, *result.shape[2:]).copies([dy])
    read, scratch = bytes_of(dy), scratch_of(copies)
    return [*copies, Launch(FOLD, read, bytes_of(result), scratch=scratch)]


def _fold_add_launches(dx, dy, border, padding, pad, result) -> list[Launch]:
    """Where the rows of dx are not dense, into a copy, which is copied back."""
    into = inner(dx, border)
    if into.numel() == 0:
        return []
    plan = Plan(dx, *into.shape[2:])
    copies = plan.copies([dy], [into])
    size, scratch = bytes_of(into), scratch_of(copies)
    fold = Launch(FOLD, bytes_of(dy) + size, size, scratch=scratch)
    if plan.has_dense_rows(into):
        return [*copies, fold]
    return [*copies, fold, Launch("aten::copy_", size, size, scratch=scratch)]


FOLD = "norm_act_pad_backward.fold"
PROLOGUE = "Tensor? mean, Tensor? rstd, Tensor? gamma, Tensor? beta"
ACT_PAD = "str act, float slope, str padding, int pad"
define(
    "norm_act_pad_apply",
    f"(Tensor x, {PROLOGUE}, Tensor? residual, {ACT_PAD}) -> Tensor",
    norm_act_pad_apply_ref,
)
define(
    "norm_act_pad_reduce",
    f"(Tensor dy, Tensor x, Tensor? minus, {PROLOGUE}, {ACT_PAD})"
    " -> (Tensor mean_g, Tensor mean_dot)",
    norm_act_pad_reduce_ref,
)
define(
    "norm_act_pad_backward",
    f"(Tensor dy, Tensor x, Tensor? minus, {PROLOGUE}, Tensor? mean_g, Tensor? mean_dot, {ACT_PAD})"
    " -> Tensor",
    norm_act_pad_backward_ref,
)
define("fold", "(Tensor dy, str padding, int pad) -> Tensor", fold_ref)
define(
    "fold_add_",
    "(Tensor(a!) dx, Tensor dy, int border, str padding, int pad) -> ()",
    fold_add_ref,
)
for name in ("norm_act_pad_reduce", "norm_act_pad_backward", "fold"):
    torch.library.register_autograd(f"pix2pixhd_fast::{name}", no_second_derivative("norm_act_pad"))
register_launches("norm_act_pad_apply", _apply_launches)
register_launches("norm_act_pad_reduce", _reduce_launches)
register_launches("norm_act_pad_backward", _backward_launches)
register_launches("fold", _fold_launches)
register_launches("fold_add_", _fold_add_launches)
register_triton("norm_act_pad_apply", "pix2pixhd_fast.kernels.norm_act_pad:apply")
register_triton("norm_act_pad_reduce", "pix2pixhd_fast.kernels.norm_act_pad_backward:reduce")
register_triton("norm_act_pad_backward", "pix2pixhd_fast.kernels.norm_act_pad_backward:backward")
register_triton("fold", "pix2pixhd_fast.kernels.norm_act_pad_backward:fold")
register_triton("fold_add_", "pix2pixhd_fast.kernels.norm_act_pad_backward:fold_add")
