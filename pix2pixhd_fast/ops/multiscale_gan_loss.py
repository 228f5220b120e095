"""Mean distance of predictions from "real" or "fake", summed over the scales: all in one op."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pix2pixhd_fast._launches import Launch, bytes_of, copies_of, register_launches, scratch_of
from pix2pixhd_fast._library import define, kernel
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.ops.channel_statistics import wide
from pix2pixhd_fast.ops.norm_act_pad import DTYPES
from pix2pixhd_fast.ops.norm_act_pad_kernels import no_second_derivative

# As torch.nn.BCELoss: the least logarithm, and the least p * (1 - p) to divide by.
LEAST_LOG = -100.0
LEAST_VARIANCE = 1e-12


def multiscale_gan_loss(
    predictions: Sequence[Tensor], target: float, use_lsgan: bool = True
) -> Tensor:
    """Compute the sum over the predictions p of the mean distance of their elements from `target`.

    `use_lsgan`: (p - target)^2; else the cross-entropy of probabilities p as in `torch.nn.BCELoss`,
    -target * max(log p, -100) - (1 - target) * max(log(1 - p), -100), which is NaN where p lies
    outside [0, 1]; its gradient is (p - target) / max(p * (1 - p), 1e-12). All in float32 (float64
    for float64).

    `predictions`: one or more tensors of any shapes and strides, of one dtype (float32, float16,
    bfloat16 or float64) and one device. One without elements gives NaN, as the mean of nothing is
    that.

    Returns a scalar, float32 (float64 for float64). The gradient has shape and dtype of its
    prediction and is dense; the predictions are saved for it. Results do not depend on the number
    of threads and repeat exactly. There is no second derivative. Raises `InputError` for arguments
    that do not fit.
    """
    if not predictions:
        raise InputError("predictions must be at least one, got none")
    first = predictions[0]
    if first.dtype not in DTYPES:
        raise InputError(
            f"predictions must be float32, float16, bfloat16 or float64, got {first.dtype}"
        )
    for i, p in enumerate(predictions):
        if (p.dtype, p.device) != (first.dtype, first.device):
            raise InputError(
                f"predictions[{i}] must have dtype and device of predictions[0], "
                f"{first.dtype} on {first.device}, got {p.dtype} on {p.device}"
            )
    return _Loss.apply(float(target), use_lsgan, *predictions)


def multiscale_gan_loss_forward_ref(
    predictions: list[Tensor], target: float, lsgan: bool
) -> Tensor:
    loss = wide(predictions[0].new_zeros(()))
    for p in map(wide, predictions):
        if lsgan:
            distance = (p - target).square()
        else:
            yes, no = p.log().clamp(min=LEAST_LOG), (-p).log1p().clamp(min=LEAST_LOG)
            distance = (target - 1) * no - target * yes
        loss = loss + distance.mean()
    return loss


def multiscale_gan_loss_backward_ref(
    dloss: Tensor, predictions: list[Tensor], target: float, lsgan: bool
) -> list[Tensor]:
    """The gradient of each prediction, contiguous."""
    found = []
    for given in predictions:
        p = wide(given)
        slope = 2 * (p - target)
        if not lsgan:
            slope = (p - target) / (p * (1 - p)).clamp(min=LEAST_VARIANCE)
        dp = torch.empty_like(given, memory_format=torch.contiguous_format)
        found.append(dp.copy_(slope * (dloss / max(1, p.numel()))))
    return found


class _Loss(torch.autograd.Function):
    """Not an op with a registered gradient, whose calls cost several times the arithmetic here."""

    @staticmethod
    def forward(ctx, target: float, lsgan: bool, *predictions: Tensor) -> Tensor:
        ctx.save_for_backward(*predictions)
        ctx.options = target, lsgan
        return kernel("multiscale_gan_loss_forward", list(predictions), target, lsgan)

    @staticmethod
    def backward(ctx, dloss: Tensor) -> tuple[Tensor | None, ...]:
        given = (dloss, list(ctx.saved_tensors), *ctx.options)
        found = kernel("multiscale_gan_loss_backward", *given)
        needs = ctx.needs_input_grad[2:]
        return None, None, *(dp if need else None for dp, need in zip(found, needs, strict=True))


# csrc/multiscale_gan_loss.cuh: values of a block, predictions of a launch.
BLOCK_VALUES, MOST_PREDICTIONS = 2048, 64


def _forward_launches(predictions, target, lsgan, result) -> list[Launch] | None:
    if len(predictions) > MOST_PREDICTIONS:
        return None
    copies = copies_of(p for p in predictions if not p.is_contiguous())
    parts = 4 * sum(-(-p.numel() // BLOCK_VALUES) for p in predictions)
    scratch, read = scratch_of(copies) + parts, bytes_of(*predictions)
    measure = Launch("multiscale_gan_loss.measure_predictions", read, parts, scratch=scratch)
    combine = Launch(
        "multiscale_gan_loss.combine_predictions", parts, bytes_of(result), scratch=scratch
    )
    return [*copies, *([measure] if parts else []), combine]


def _backward_launches(dloss, predictions, target, lsgan, result) -> list[Launch] | None:
    if len(predictions) > MOST_PREDICTIONS:
        return None
    copies = copies_of(p for p in predictions if not p.is_contiguous())
    read, written = bytes_of(dloss, *predictions), bytes_of(*result)
    name = "multiscale_gan_loss.differentiate_predictions"
    launch = Launch(name, read, written, scratch=scratch_of(copies))
    return [*copies, *([launch] if written else [])]


define(
    "multiscale_gan_loss_forward",
    "(Tensor[] predictions, float target, bool lsgan) -> Tensor",
    multiscale_gan_loss_forward_ref,
)
define(
    "multiscale_gan_loss_backward",
    "(Tensor dloss, Tensor[] predictions, float target, bool lsgan) -> Tensor[]",
    multiscale_gan_loss_backward_ref,
)
torch.library.register_autograd(
    "pix2pixhd_fast::multiscale_gan_loss_backward", no_second_derivative("multiscale_gan_loss")
)
register_launches("multiscale_gan_loss_forward", _forward_launches)
register_launches("multiscale_gan_loss_backward", _backward_launches)
