"""Adversarial, feature-matching and perceptual losses."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pix2pixhd_fast import ops
from pix2pixhd_fast._backend import current_backend
from pix2pixhd_fast.nn.pending import Pending, as_pending, fits_ops, materialise
from pix2pixhd_fast.nn.vgg import VGG_LEAST_SIDE, Vgg19
from pix2pixhd_fast.ops.channel_statistics import wide
from pix2pixhd_fast.ops.matched_norm_backward import Matching, match_features
from pix2pixhd_fast.ops.norm_act_pad import DTYPES
from pix2pixhd_fast.ops.norm_act_pad_kernels import inner

VGG_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


class GANLoss(nn.Module):
    """Mean distance of predictions from "real" or "fake", summed over the scales.

    `use_lsgan`: squared error (LSGAN), else binary cross-entropy of probabilities. `input` is what
    a discriminator returns: a list per scale of lists, or one list or tensor list; the last entry
    of a list is the prediction. Computed in float32 (float64 for float64). `tensor` is
    accepted as in the original, without effect.
    """

    def __init__(
        self,
        use_lsgan: bool = True,
        target_real_label: float = 1.0,
        target_fake_label: float = 0.0,
        tensor: object = None,
    ):
        super().__init__()
        self.real_label = target_real_label
        self.fake_label = target_fake_label
        self.loss = nn.MSELoss() if use_lsgan else nn.BCELoss()

    def forward(self, input: list, target_is_real: bool) -> Tensor:
        scales = input if isinstance(input[0], list) else [input]
        predictions = [materialise(scale[-1]) for scale in scales]
        target = self.real_label if target_is_real else self.fake_label
        if current_backend() == "fused" and _alike(predictions):
            return ops.multiscale_gan_loss(predictions, target, isinstance(self.loss, nn.MSELoss))
        return sum(self._one(prediction, target) for prediction in predictions)

    def _one(self, prediction: Tensor, target: float) -> Tensor:
        # autocast refuses binary cross-entropy of probabilities outright
        with torch.autocast(prediction.device.type, enabled=False):
            prediction = wide(prediction)
            return self.loss(prediction, torch.full_like(prediction, target))


class VGGLoss(nn.Module):
    """Perceptual loss: L1 distances of the five `Vgg19` features, weighted 1/32, 1/16, 1/8, 1/4, 1.

    `x` and `y` are pictures [N, 3, H, W] in [-1, 1], used as they are; the gradient flows to `x`.
    Under `backend("fused")` by `ops.perceptual_l1`, which keeps a few bits for the gradient and no
    feature, where VGG is as it was made and frozen; else by the features of `Vgg19`. Sums are
    float32 (float64 for float64). `weights` as in `Vgg19`, but here they must be there: without
    them the constructor raises `InputError`. A call multiplies the sum by `factor`. `gpu_ids`: as
    in the original, a list with a CUDA device moves VGG there.
    """

    def __init__(self, gpu_ids: list[int] | tuple[int, ...] = (), weights: str = ""):
        super().__init__()
        self.vgg = Vgg19(weights=weights)
        self.vgg.require_weights()
        if gpu_ids:
            self.vgg.to(f"cuda:{gpu_ids[0]}")
        self.weights = VGG_WEIGHTS

    def forward(self, x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
        weights = [factor * weight for weight in self.weights]
        chain = self.vgg.frozen_chain() if self._fits_op(x, y) else None
        if chain is not None:
            self.vgg.require_weights()
            return ops.perceptual_l1(x, y, *chain, weights)
        features = self.vgg(x)
        with torch.no_grad():
            others = self.vgg(y)
        pairs = zip(weights, features, others, strict=True)
        return sum(w * F.l1_loss(wide(fx), wide(fy)) for w, fx, fy in pairs)

    def _fits_op(self, x: object, y: object) -> bool:
        if current_backend() == "eager" or not (fits_ops(x) and fits_ops(y)):
            return False
        if x.shape != y.shape or x.device != y.device or x.shape[1] != 3:
            return False
        own = next(self.vgg.parameters())
        cast = torch.is_autocast_enabled(x.device.type)
        same = cast or x.dtype == y.dtype == own.dtype
        return same and own.device == x.device and min(x.shape[2:]) >= VGG_LEAST_SIDE


def feature_matching_loss(
    fake: list[list[Tensor | Pending]], real: list[list[Tensor | Pending]], factor: float = 1.0
) -> Tensor:
    """`factor` (the paper's lambda) times the L1 distance of discriminator features (eq. 4).

    `fake` and `real` are what `MultiscaleDiscriminator` with `getIntermFeat` returns, or its
    `features_raw`, whose norms and activations are then computed as the loss reads; predictions
    do not count. A feature weighs 4 / (its scale's number of layers - 1), a scale 1 / num_D, as in
    the original (4 / (n_layers_D + 1)). The gradient flows to `fake` only. Computed in
    float32 (float64 for float64).
    """
    fakes, reals, weights = _weighted(fake, real, factor)
    if current_backend() == "fused" and _comparable(fakes, reals):
        return ops.feature_matching_loss(*map(_features, (fakes, reals)), weights)
    total = wide(fakes[0].x.new_zeros(()))
    for f, r, weight in zip(fakes, reals, weights, strict=True):
        total = total + weight * F.l1_loss(wide(materialise(f)), wide(materialise(r).detach()))
    return total


def feature_matchings(
    fake: list[list[Pending]], real: list[list[Pending]], factor: float, dloss: Tensor
) -> tuple[Tensor, list[list[Matching]]]:
    """`feature_matching_loss` of raw features, without a graph.

    Beside it, per scale and feature, what the gradient takes (`ops.matched_norm_backward`) where
    the loss has the gradient `dloss`.
    """
    fakes, reals, weights = _weighted(fake, real, factor)
    loss, found = match_features(*map(_features, (fakes, reals)), weights, dloss)
    matchings = iter(found)
    return loss, [[next(matchings) for _ in scale[:-1]] for scale in fake]


def _weighted(
    fake: list[list[Tensor | Pending]], real: list[list[Tensor | Pending]], factor: float
) -> tuple[list[Pending], list[Pending], list[float]]:
    """The features of all scales, without the predictions, and what each weighs in the loss."""
    fakes, reals, weights = [], [], []
    for fake_scale, real_scale in zip(fake, real, strict=True):
        fakes += map(as_pending, fake_scale[:-1])
        reals += map(as_pending, real_scale[:-1])
        weights += [factor * 4.0 / (len(fake_scale) - 1) / len(fake)] * (len(fake_scale) - 1)
    return fakes, reals, weights


def _features(pending: list[Pending]) -> list[ops.Feature]:
    return [ops.Feature(inner(p.x, p.border), p.norm, p.act, p.slope) for p in pending]


def _comparable(fakes: list[Pending], reals: list[Pending]) -> bool:
    """Whether the op takes them: pictures of the same shapes, with the same activations."""
    pairs = zip(_features(fakes), _features(reals), strict=True)
    return (
        len(fakes) > 0
        and all(fits_ops(p.x) for p in fakes)
        and all(f.x.shape == r.x.shape and f[2:] == r[2:] for f, r in pairs)
        and _alike([p.x for p in (*fakes, *reals)])
    )


def _alike(tensors: Sequence[Tensor]) -> bool:
    """Whether all have one dtype, which the ops know, and one device."""
    kinds = {(t.dtype, t.device) for t in tensors}
    return len(kinds) == 1 and tensors[0].dtype in DTYPES
