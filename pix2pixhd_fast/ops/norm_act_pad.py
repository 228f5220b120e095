"""Instance norm, activation and padding in one: what stands between two convolutions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd_fast._backend import current_backend
from pix2pixhd_fast._launches import Launch, bytes_of, copies_of, register_launches
from pix2pixhd_fast._library import define, register_triton
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.ops.norm_act_pad_plan import Plan

ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh")
PADDINGS = ("none", "reflect", "replicate", "zero")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# The names that F.pad has for them.
MODES = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}


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
    float64), contiguous, without gradient. y is contiguous in the channels_last format where x is
    and is not in the default format as well; it has the default format in all other cases. The
    gradient with respect to x has, by the same rule, the format of x.

    The gradient is recomputed from x, mean and rstd, which are all that is saved. Results do not
    depend on the number of threads and repeat exactly. There is no second derivative. Autocast
    changes nothing: y has the dtype of x. Raises `InputError` for other arguments.
    """
    _check(x, act, padding, pad, eps)
    # No kernel is for float64.
    if current_backend() == "eager" or x.dtype == torch.float64:
        return norm_act_pad_ref(x, act, slope, padding, pad, eps)
    return torch.ops.pix2pixhd_fast.norm_act_pad(x, act, slope, padding, pad, eps)


def _check(x: Tensor, act: str, padding: str, pad: int, eps: float) -> None:
    if x.dim() != 4:
        raise InputError(f"x must be [N, C, H, W], got {list(x.shape)}")
    if x.dtype not in DTYPES:
        raise InputError(f"x must be float32, float16, bfloat16 or float64, got {x.dtype}")
    height, width = x.shape[2:]
    if height == 0 or width == 0:
        raise InputError(f"x must have at least one pixel, got {list(x.shape)}")
    if act not in ACTIVATIONS:
        raise InputError(f"act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
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
    if not eps > 0:
        raise InputError(f"eps must be positive, got {eps}")


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _laid_out_like(x: Tensor, values: Tensor) -> Tensor:
    """`values` in the dtype of x and the memory format that the contract gives."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    # Not .contiguous(): that keeps odd strides of sides of one.
    return torch.empty(values.shape, dtype=x.dtype, device=x.device, memory_format=layout).copy_(
        values
    )


def norm_act_pad_ref(
    x: Tensor, act: str, slope: float, padding: str, pad: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    wide = _wide(x)
    mean = wide.mean((2, 3))
    centred = wide - mean[..., None, None]
    rstd = (centred.square().mean((2, 3)) + eps).rsqrt()
    y = centred * rstd[..., None, None]
    if act == "relu":
        y = y.relu()
    elif act == "leaky_relu":
        y = torch.where(y > 0, y, y * slope)
    elif act == "tanh":
        y = y.tanh()
    if pad > 0:
        # Without values all paddings are the same, but only this one is implemented.
        y = F.pad(y, (pad,) * 4, mode=MODES[padding] if x.numel() > 0 else "constant")
    return _laid_out_like(x, y), mean.detach(), rstd.detach()


def norm_act_pad_backward_ref(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    act: str,
    slope: float,
    padding: str,
    pad: int,
) -> Tensor:
    rstd = rstd[..., None, None]
    xhat = (_wide(x) - mean[..., None, None]) * rstd
    g = _fold(_wide(dy), xhat, padding, pad)
    if act == "relu":
        g = torch.where(xhat > 0, g, 0.0)
    elif act == "leaky_relu":
        g = torch.where(xhat > 0, g, g * slope)
    elif act == "tanh":
        g = g * (1 - xhat.tanh().square())
    dx = rstd * (g - g.mean((2, 3), True) - xhat * (g * xhat).mean((2, 3), True))
    return _laid_out_like(x, dx)


def _fold(dy: Tensor, x: Tensor, padding: str, pad: int) -> Tensor:
    """The gradient of the padding: each pixel of x [N, C, H, W] sums its copies in dy."""
    if pad == 0 or x.numel() == 0:
        return dy[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]]
    if padding == "reflect":
        return torch.ops.aten.reflection_pad2d_backward(dy, x, [pad] * 4)
    if padding == "replicate":
        return torch.ops.aten.replication_pad2d_backward(dy, x, [pad] * 4)
    return dy[:, :, pad:-pad, pad:-pad]


def _setup_context(ctx, inputs, output):
    x, ctx.act, ctx.slope, ctx.padding, ctx.pad, _ = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    # Else each backward fills zeros for mean and rstd, two launches more.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, mean, rstd)


def _backward(ctx, dy, *_):
    dx = torch.ops.pix2pixhd_fast.norm_act_pad_backward(
        dy, *ctx.saved_tensors, ctx.act, ctx.slope, ctx.padding, ctx.pad
    )
    return dx, None, None, None, None, None


def _no_double_backward(ctx, *_):
    raise RuntimeError("norm_act_pad has no second derivative")


def _launches(
    x: Tensor,
    act: str,
    slope: float,
    padding: str,
    pad: int,
    eps: float,
    result: tuple[Tensor, Tensor, Tensor],
) -> list[Launch]:
    if x.numel() == 0:
        return []
    y, *statistics = result
    plan = Plan(x, pad)
    copies = copies_of([x], plan.layout)
    parts = _partial_bytes(plan, plan.pixels)
    scratch = parts + (copies[-1].scratch if copies else 0)
    both = bytes_of(*statistics)
    kernels = [
        ("statistics", bytes_of(x), parts),
        ("combine_statistics", parts, both),
        ("apply", bytes_of(x) + both, bytes_of(y)),
    ]
    return [*copies, *(Launch(f"norm_act_pad.{k}", r, w, 0, scratch) for k, r, w in kernels)]


def _backward_launches(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    act: str,
    slope: float,
    padding: str,
    pad: int,
    result: Tensor,
) -> list[Launch]:
    if x.numel() == 0:
        return []
    plan = Plan(x, pad)
    copies = copies_of([x, dy], plan.layout)
    parts = _partial_bytes(plan, plan.padded_pixels)
    both = bytes_of(mean, rstd)  # and as much for the two means of the gradient
    scratch = parts + both + (copies[-1].scratch if copies else 0)
    kernels = [
        ("reduce_backward", bytes_of(dy, x) + both, parts),
        ("combine_backward", parts, both),
        ("apply_backward", bytes_of(dy, x) + 2 * both, bytes_of(result)),
    ]
    return [
        *copies,
        *(Launch(f"norm_act_pad_backward.{k}", r, w, 0, scratch) for k, r, w in kernels),
    ]


def _partial_bytes(plan: Plan, pixels: int) -> int:
    return math.prod(plan.partial_shape(plan.splits(pixels)[0])) * torch.float32.itemsize


define(
    "norm_act_pad",
    "(Tensor x, str act, float slope, str padding, int pad, float eps)"
    " -> (Tensor y, Tensor mean, Tensor rstd)",
    norm_act_pad_ref,
)
define(
    "norm_act_pad_backward",
    "(Tensor dy, Tensor x, Tensor mean, Tensor rstd, str act, float slope, str padding, int pad)"
    " -> Tensor",
    norm_act_pad_backward_ref,
)
torch.library.register_autograd(
    "pix2pixhd_fast::norm_act_pad", _backward, setup_context=_setup_context
)
torch.library.register_autograd("pix2pixhd_fast::norm_act_pad_backward", _no_double_backward)
register_triton("norm_act_pad", "pix2pixhd_fast.kernels.norm_act_pad:forward")
register_triton("norm_act_pad_backward", "pix2pixhd_fast.kernels.norm_act_pad_backward:backward")
register_launches("norm_act_pad", _launches)
register_launches("norm_act_pad_backward", _backward_launches)
