"""L1 distance of features that may still wait for their norm and activation: all in one op."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pix2pixhd_fast._launches import Launch, bytes_of, copies_of, register_launches, scratch_of
from pix2pixhd_fast._library import define, kernel
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.ops.blocks import layout_of
from pix2pixhd_fast.ops.channel_statistics import wide
from pix2pixhd_fast.ops.norm_act_pad import ACTIVATIONS, NORMS, Norm, check_picture
from pix2pixhd_fast.ops.norm_act_pad_kernels import (
    activated,
    activated_backward,
    affine,
    laid_out_like,
    no_second_derivative,
    normalised,
    per_channel,
)


class Feature(NamedTuple):
    """act(norm(x)), not computed yet; an ordinary tensor is one with nothing left to do.

    x [N, C, H, W]; `norm` with its statistics; `act` and `slope` as in `norm_act_pad`.
    """

    x: Tensor
    norm: Norm = Norm()
    act: str = "none"
    slope: float = 0.0


def feature_matching_loss(
    fake: Sequence[Feature], real: Sequence[Feature], weights: Sequence[float]
) -> Tensor:
    """Compute the sum over i of weights[i] * mean |act(norm(fake[i])) - act(norm(real[i]))|.

    In this order, all in float32 (float64 for float64): the norm and the activation of each
    feature, from the statistics that it brings; the difference; the mean over all elements of a
    feature; the weighted sum. Nothing is written but the loss, and sums for each channel of a norm.

    A fake and its real one have the same shape, activation and slope, and all features together one
    dtype (float32, float16, bfloat16 or float64) and one device; memory formats are free, and
    kernels read in place what is contiguous in the format that its fake has. A feature without
    elements gives NaN, as the mean of nothing is that.

    Returns a scalar, float32 (float64 for float64). The gradient flows to x, gamma and beta of the
    fakes, through the statistics as `norm.kind` says, and is 0 where both are equal; it has the
    format rule and dtype of x. Saved are the arguments and the sums. Results do not depend on the
    number of threads and repeat exactly. There is no second derivative. Raises `InputError` for
    arguments that do not fit.

    Source: pix2pixHD, equation 4, and its perceptual loss.
    """
    check_features(fake, real, weights)
    features, terms = as_lists(fake, real, weights)
    norms = [f.norm.kind for f in fake]
    return torch.ops.pix2pixhd_fast.feature_matching_loss(*features, norms, *terms)[0]


def as_lists(
    fake: Sequence[Feature], real: Sequence[Feature], weights: Sequence[float]
) -> tuple[tuple[list[Tensor], ...], tuple[list, ...]]:
    """As the ops take them: both sides and their norms, where an empty tensor stands for None;

    activations, slopes and weights.
    """
    first = fake[0].x
    dtype = torch.promote_types(first.dtype, torch.float32)
    nothing = torch.empty(0, dtype=dtype, device=first.device)
    features = (
        [f.x for f in fake],
        [r.x.detach() for r in real],
        [nothing if t is None else t for f in fake for t in f.norm.tensors],
        [nothing if t is None else t.detach() for r in real for t in r.norm.tensors],
    )
    terms = [f.act for f in fake], [float(f.slope) for f in fake], [float(w) for w in weights]
    return features, terms


def check_features(
    fake: Sequence[Feature], real: Sequence[Feature], weights: Sequence[float]
) -> None:
    """Raise `InputError` for arguments of `feature_matching_loss` that do not fit."""
    if not len(fake) == len(real) == len(weights) > 0:
        raise InputError(
            "fake, real and weights must be equally many and at least one, got "
            f"{len(fake)}, {len(real)} and {len(weights)}"
        )
    first = fake[0].x
    for i, (f, r) in enumerate(zip(fake, real, strict=True)):
        check_picture(f.x)
        if r.x.shape != f.x.shape:
            raise InputError(
                f"real[{i}] must have the shape of fake[{i}], {list(f.x.shape)}, "
                f"got {list(r.x.shape)}"
            )
        for name, feature in (("fake", f), ("real", r)):
            found = feature.x.dtype, feature.x.device
            if found != (first.dtype, first.device):
                raise InputError(
                    f"{name}[{i}] must have dtype and device of fake[0], "
                    f"{first.dtype} on {first.device}, got {found[0]} on {found[1]}"
                )
            if feature.norm.kind not in NORMS:
                raise InputError(
                    f"norm of {name}[{i}] must be one of {', '.join(NORMS)}, "
                    f"got {feature.norm.kind!r}"
                )
        if f.act not in ACTIVATIONS:
            raise InputError(f"act must be one of {', '.join(ACTIVATIONS)}, got {f.act!r}")
        if (r.act, r.slope) != (f.act, f.slope):
            raise InputError(
                f"real[{i}] must have act and slope of fake[{i}], {f.act} {f.slope}, "
                f"got {r.act} {r.slope}"
            )


def norm_of(norms: list[Tensor], i: int) -> list[Tensor | None]:
    """mean, rstd, gamma and beta of feature i; in lists of tensors an empty one stands for None."""
    return [t if t.numel() > 0 else None for t in norms[4 * i : 4 * i + 4]]


def _terms(
    fake: list[Tensor],
    real: list[Tensor],
    fake_norms: list[Tensor],
    real_norms: list[Tensor],
    acts: list[str],
    slopes: list[float],
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each feature d = act(z) - act(z of real), the xhat of fake, and sign(d) * act'(z)."""
    for i, (f, r, act, slope) in enumerate(zip(fake, real, acts, slopes, strict=True)):
        mean, rstd, gamma, beta = norm_of(real_norms, i)
        target = activated(affine(normalised(r, None, mean, rstd), gamma, beta), act, slope)
        mean, rstd, gamma, beta = norm_of(fake_norms, i)
        xhat = normalised(f, None, mean, rstd)
        z = affine(xhat, gamma, beta)
        difference = activated(z, act, slope) - target
        yield difference, xhat, activated_backward(difference.sign(), z, act, slope)


def has_sums(fake_norms: list[Tensor], i: int) -> bool:
    """Whether the gradient of feature i needs sums: it has a norm, or gamma or beta."""
    return any(t is not None for t in norm_of(fake_norms, i))


def sums_of(sums: Tensor, fake: list[Tensor], fake_norms: list[Tensor]) -> list[Tensor | None]:
    """The sums of each feature, [2, N, C]: a view into all of them, or None where it has none."""
    found: list[Tensor | None] = []
    start = 0
    for i, f in enumerate(fake):
        size = 2 * f.shape[0] * f.shape[1] if has_sums(fake_norms, i) else 0
        part = sums[start : start + size].view(2, *f.shape[:2]) if size else None
        found.append(part)
        start += size
    return found


def feature_matching_loss_forward_ref(
    fake: list[Tensor],
    real: list[Tensor],
    fake_norms: list[Tensor],
    real_norms: list[Tensor],
    acts: list[str],
    slopes: list[float],
    weights: list[float],
) -> tuple[Tensor, Tensor]:
    """The loss; for each feature with a norm the means of g and g * xhat over the pixels, [2, N, C]

    of all of them one behind the other, where g = sign(difference) * act'(z).
    """
    loss = wide(fake[0].new_zeros(()))
    sums = [loss.new_empty(0)]
    terms = _terms(fake, real, fake_norms, real_norms, acts, slopes)
    for i, (difference, xhat, g) in enumerate(terms):
        loss = loss + weights[i] * difference.abs().mean()
        if has_sums(fake_norms, i):
            sums += [g.mean((2, 3)).flatten(), (g * xhat).mean((2, 3)).flatten()]
    return loss, torch.cat(sums)


def feature_matching_loss_backward_ref(
    dloss: Tensor,
    fake: list[Tensor],
    real: list[Tensor],
    fake_norms: list[Tensor],
    real_norms: list[Tensor],
    sums: Tensor,
    acts: list[str],
    slopes: list[float],
    weights: list[float],
) -> list[Tensor]:
    """dx = dloss * weight / elements * gamma * rstd * (g - mean_g - xhat * mean_dot) of each fake.

    By the format rule of x. `sums` holds the means, as the forward returns them.
    """
    found = []
    means = sums_of(sums, fake, fake_norms)
    terms = _terms(fake, real, fake_norms, real_norms, acts, slopes)
    for i, (_, xhat, g) in enumerate(terms):
        if means[i] is not None:
            mean_g, mean_dot = means[i]
            g = g - per_channel(mean_g) - xhat * per_channel(mean_dot)
        _, rstd, gamma, _ = norm_of(fake_norms, i)
        g = g if rstd is None else g * per_channel(rstd)
        g = g if gamma is None else g * per_channel(gamma.to(g.dtype))
        scale = dloss * (weights[i] / max(1, fake[i].numel()))
        found.append(laid_out_like(fake[i], g * scale))
    return found


def _forward(fake, real, fake_norms, real_norms, norms, acts, slopes, weights):
    return kernel(
        "feature_matching_loss_forward",
        *(fake, real, fake_norms, real_norms, acts, slopes, weights),
    )


def _centring(
    sums: Tensor, fake: list[Tensor], fake_norms: list[Tensor], norms: list[str]
) -> Tensor:
    """What the gradient subtracts: the means of each image, of the batch, or nothing."""
    found = sums_of(sums, fake, fake_norms)
    if all(part is None or kind == "instance" for part, kind in zip(found, norms, strict=True)):
        return sums
    parts = [(part, kind) for part, kind in zip(found, norms, strict=True) if part is not None]
    for i, (part, kind) in enumerate(parts):
        if kind == "batch":
            parts[i] = part.mean(1, keepdim=True).expand_as(part), kind
        elif kind != "instance":
            parts[i] = torch.zeros_like(part), kind
    return torch.cat([part.flatten() for part, _ in parts])


def _affine_gradients(
    dloss: Tensor,
    sums: Tensor,
    fake: list[Tensor],
    fake_norms: list[Tensor],
    needs: list[bool],
    weights: list[float],
) -> list[Tensor | None]:
    """Of gamma and beta, for each feature behind mean and rstd, which have none."""
    found: list[Tensor | None] = []
    for i, part in enumerate(sums_of(sums, fake, fake_norms)):
        gradients = [None] * 4
        for k, at in ((2, 1), (3, 0)):
            if needs[4 * i + k] and part is not None:
                share = dloss * (weights[i] / (fake[i].shape[0] * fake[i].shape[1]))
                gradients[k] = (part[at].sum(0) * share).to(fake_norms[4 * i + k].dtype)
        found += gradients
    return found


def _setup_context(ctx, inputs, output):
    fake, real, fake_norms, real_norms, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*fake, *real, *fake_norms, *real_norms, output[1])


def _backward(ctx, dloss, _):
    norms, acts, slopes, weights = ctx.options
    *saved, sums = ctx.saved_tensors
    n = len(norms)
    fake, real, norm_tensors = saved[:n], saved[n : 2 * n], saved[2 * n :]
    fake_norms, real_norms = norm_tensors[: 4 * n], norm_tensors[4 * n :]
    dfake, dnorms = [None] * n, [None] * (4 * n)
    needs, _, needs_norm, *_ = ctx.needs_input_grad
    if dloss is not None and any(needs):
        centred = _centring(sums, fake, fake_norms, norms)
        given = (dloss, fake, real, fake_norms, real_norms, centred, acts, slopes, weights)
        dfake = kernel("feature_matching_loss_backward", *given)
        dfake = [dx if needed else None for dx, needed in zip(dfake, needs, strict=True)]
    if dloss is not None and any(needs_norm):
        dnorms = _affine_gradients(dloss, sums, fake, fake_norms, needs_norm, weights)
    return dfake, [None] * n, dnorms, [None] * (4 * n), None, None, None, None


# csrc/feature_matching_loss.cuh: threads of a block, vectors that each reads, features of a launch.
THREADS, ITEMS, MOST_FEATURES = 128, 16, 20


def partial_sums(f: Tensor, summed: bool, plain: bool) -> tuple[int, int]:
    """The blocks that work on feature f, and the sums that they leave, besides one distance each.

    As `plan` in csrc/feature_matching_loss.cuh counts them for tensors that begin on 16 bytes.
    """
    last = layout_of(f) == torch.channels_last
    images, channels = (f.shape[0], f.shape[1]) if last else (f.shape[0] * f.shape[1], 1)
    pixels = f.shape[2] * f.shape[3]
    if plain:
        images, channels, pixels = int(f.numel() > 0), 1, f.numel()
    vector = 16 // f.element_size()
    vector = vector if (pixels if channels == 1 else channels) % vector == 0 else 1
    columns = 1 if channels == 1 else channels // vector
    items = pixels // vector if channels == 1 else pixels
    width = max(1, min(columns, THREADS))
    chunks = images * -(-items // (THREADS // width * ITEMS))
    return chunks * -(-columns // width), chunks * 2 * channels if summed else 0


def _prepared(fake, real, fake_norms, real_norms) -> tuple[list[Launch], int]:
    """The copies that the launcher makes, and the bytes of its partial sums."""
    copied, parts = [], 0
    for i, (f, r) in enumerate(zip(fake, real, strict=True)):
        layout = layout_of(f)
        copied += [t for t in (f, r) if not t.is_contiguous(memory_format=layout)]
        plain = not (has_sums(fake_norms, i) or has_sums(real_norms, i))
        parts += 4 * sum(partial_sums(f, has_sums(fake_norms, i), plain))
    return copies_of(copied), parts


def _forward_launches(
    fake, real, fake_norms, real_norms, acts, slopes, weights, result
) -> list[Launch] | None:
    if len(fake) > MOST_FEATURES:
        return None
    copies, parts = _prepared(fake, real, fake_norms, real_norms)
    scratch, read = scratch_of(copies) + parts, bytes_of(*fake, *real, *fake_norms, *real_norms)
    measure = Launch("feature_matching_loss.measure_features", read, parts, scratch=scratch)
    combine = Launch(
        "feature_matching_loss.combine_features", parts, bytes_of(*result), scratch=scratch
    )
    return [*copies, *([measure] if parts else []), combine]


def _backward_launches(
    dloss, fake, real, fake_norms, real_norms, sums, acts, slopes, weights, result
) -> list[Launch] | None:
    if len(fake) > MOST_FEATURES:
        return None
    copies, parts = _prepared(fake, real, fake_norms, real_norms)
    read = bytes_of(dloss, *fake, *real, *fake_norms, *real_norms, sums)
    name = "feature_matching_loss.differentiate_features"
    launch = Launch(name, read, bytes_of(*result), scratch=scratch_of(copies))
    return [*copies, *([launch] if parts else [])]


FEATURES = "Tensor[] fake, Tensor[] real, Tensor[] fake_norms, Tensor[] real_norms"
TERMS = "str[] acts, float[] slopes, float[] weights"
define(
    "feature_matching_loss",
    f"({FEATURES}, str[] norms, {TERMS}) -> (Tensor loss, Tensor sums)",
    _forward,
)
torch.library.register_autograd(
    "pix2pixhd_fast::feature_matching_loss", _backward, setup_context=_setup_context
)
define(
    "feature_matching_loss_forward",
    f"({FEATURES}, {TERMS}) -> (Tensor loss, Tensor sums)",
    feature_matching_loss_forward_ref,
)
define(
    "feature_matching_loss_backward",
    f"(Tensor dloss, {FEATURES}, Tensor sums, {TERMS}) -> Tensor[]",
    feature_matching_loss_backward_ref,
)
torch.library.register_autograd(
    "pix2pixhd_fast::feature_matching_loss_backward",
    no_second_derivative("feature_matching_loss"),
)
register_launches("feature_matching_loss_forward", _forward_launches)
register_launches("feature_matching_loss_backward", _backward_launches)
