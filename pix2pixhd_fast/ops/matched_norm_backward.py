"""The gradient of a feature that is matched with another one, through its activation and norm."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pix2pixhd_fast._launches import Launch, bytes_of, register_launches, scratch_of
from pix2pixhd_fast._library import define, kernel, register_triton
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.ops.blocks import Plan
from pix2pixhd_fast.ops.channel_statistics import wide
from pix2pixhd_fast.ops.feature_matching_loss import (
    Feature,
    as_lists,
    check_features,
    sums_of,
)
from pix2pixhd_fast.ops.norm_act_pad_kernels import (
    activated,
    activated_backward,
    laid_out_like,
    no_second_derivative,
    normalised,
    per_channel,
)


class Matching(NamedTuple):
    """What the gradient of `feature_matching_loss` for one feature takes.

    real: what the feature is compared with. sums [2, N, C]: the means over the pixels of
    s = sign(act(z) - act(z of real)) * act'(z) and of s * xhat; None without a norm. dloss: the
    gradient of the loss, 0-d. weight: of one element of the feature in the loss.
    """

    real: Feature
    sums: Tensor | None
    dloss: Tensor
    weight: float


def match_features(
    fake: Sequence[Feature], real: Sequence[Feature], weights: Sequence[float], dloss: Tensor
) -> tuple[Tensor, list[Matching]]:
    """Compute `feature_matching_loss`, and of each feature what `matched_norm_backward` takes.

    Arguments, loss and errors as there; `dloss` is the gradient that the loss will get, a 0-d
    float32 tensor (float64 for float64) on the device of the features. Each norm is "instance"
    without gamma and beta, or "none". Nothing is differentiable: no graph is made.
    """
    check_features(fake, real, weights)
    for f, r in zip(fake, real, strict=True):
        _check_norms(f, r)
    if dloss.dim() > 0 or dloss.device != fake[0].x.device:
        raise InputError(
            f"dloss must be a number on {fake[0].x.device}, "
            f"got {list(dloss.shape)} on {dloss.device}"
        )
    features, terms = as_lists(fake, real, weights)
    loss, sums = kernel("feature_matching_loss_forward", *features, *terms)
    fakes, _, fake_norms, _ = features
    parts = sums_of(sums, fakes, fake_norms)
    matchings = [
        Matching(r, part, dloss, weight / max(1, r.x.numel()))
        for r, part, weight in zip(real, parts, weights, strict=True)
    ]
    return loss, matchings


def matched_norm_backward(dp: Tensor, fake: Feature, matching: Matching) -> Tensor:
    """Compute the gradient of fake.x: of what reads the feature, and of the loss it is matched in.

    dp [N, C, H, W], dtype of x, is the gradient of act(norm(x)) of what reads it. In this order, in
    float32 (float64 for float64), with z = xhat = norm(x) and c = dloss * weight of `matching`:

    1. the means over the pixels of dp * act'(z) and of that times xhat, where there is a norm
    2. g = act'(z) * (dp + c * sign(act(z) - act(z of real)))
    3. dx = rstd * (g - mean_g - xhat * mean_dot), where the means are those of 1 plus c times
       `matching.sums`: of g and of g * xhat, as all of this is linear

    and rounded once. The norms are "instance" without gamma and beta, or "none". dx has dtype of x
    and its format, by the rule of `norm_act_pad`. Results do not depend on the number of threads
    and repeat exactly. Not differentiable. Raises `InputError` for arguments that do not fit.
    """
    check_features([fake], [matching.real], [matching.weight])
    _check_norms(fake, matching.real)
    if (dp.shape, dp.dtype, dp.device) != (fake.x.shape, fake.x.dtype, fake.x.device):
        raise InputError(
            f"dp must be as x, {list(fake.x.shape)} {fake.x.dtype} on {fake.x.device}, "
            f"got {list(dp.shape)} {dp.dtype} on {dp.device}"
        )
    means = of_match = (None, None)
    if fake.norm.kind != "none" and dp.numel() > 0:
        sums = matching.sums
        if sums is None or sums.shape != (2, *dp.shape[:2]):
            found = None if sums is None else list(sums.shape)
            raise InputError(f"sums must be [2, N, C] of a feature with a norm, got {found}")
        rest = (*fake.norm.tensors, fake.act, fake.slope, "none", 0)
        means = kernel("norm_act_pad_reduce", dp, fake.x, None, *rest)
        of_match = sums[0], sums[1]
    mean, rstd, *_ = fake.norm.tensors
    real_mean, real_rstd, *_ = matching.real.norm.tensors
    return kernel(
        "matched_norm_backward", dp, fake.x, mean, rstd, *means, matching.real.x, real_mean,
        real_rstd, *of_match, matching.dloss, matching.weight, fake.act, fake.slope,
    )  # fmt: skip


def _check_norms(fake: Feature, real: Feature) -> None:
    for name, norm in (("fake", fake.norm), ("real", real.norm)):
        affine = norm.gamma is not None or norm.beta is not None
        if norm.kind not in ("none", "instance") or affine:
            raise InputError(
                f"norm of {name} must be none or instance, without gamma and beta, "
                f"got {norm.kind} {'with' if affine else 'without'} them"
            )


def matched_norm_backward_ref(
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
    """The second pass of `matched_norm_backward`, by the means [N, C] that it subtracts.

    mean_g and mean_dot are those of dp alone, match_g and match_dot those of the loss without its
    factor; None are all four or none.
    """
    xhat = normalised(x, None, mean, rstd)
    target = activated(normalised(real, None, real_mean, real_rstd), act, slope)
    scale = wide(dloss) * weight
    sign = (activated(xhat, act, slope) - target).sign()
    g = activated_backward(wide(dp) + scale * sign, xhat, act, slope)
    if mean_g is not None:
        g = g - per_channel(mean_g + scale * match_g)
        g = g - xhat * per_channel(mean_dot + scale * match_dot)
    return laid_out_like(x, g if rstd is None else g * per_channel(rstd))


def _launches(
    dp, x, mean, rstd, mean_g, mean_dot, real, real_mean, real_rstd, match_g, match_dot, dloss,
    weight, act, slope, result,
) -> list[Launch]:  # fmt: skip
    if x.numel() == 0:
        return []
    pictures = (dp, x, real)
    parameters = (mean, rstd, mean_g, mean_dot, real_mean, real_rstd, match_g, match_dot)
    copies = Plan(x, *x.shape[2:]).copies(pictures, (), parameters)
    read = bytes_of(*pictures, *parameters, dloss)
    name = "matched_norm_backward.backward"
    return [*copies, Launch(name, read, bytes_of(result), scratch=scratch_of(copies))]


define(
    "matched_norm_backward",
    "(Tensor dp, Tensor x, Tensor? mean, Tensor? rstd, Tensor? mean_g, Tensor? mean_dot,"
    " Tensor real, Tensor? real_mean, Tensor? real_rstd, Tensor? match_g, Tensor? match_dot,"
    " Tensor dloss, float weight, str act, float slope) -> Tensor",
    matched_norm_backward_ref,
)
torch.library.register_autograd(
    "pix2pixhd_fast::matched_norm_backward", no_second_derivative("feature_matching_loss")
)
register_launches("matched_norm_backward", _launches)
register_triton("matched_norm_backward", "pix2pixhd_fast.kernels.matched_norm_backward:backward")
