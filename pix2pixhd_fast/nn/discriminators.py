"""Patch discriminators, at one scale and at several."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from pix2pixhd_fast.nn.generators import NormLayer
from pix2pixhd_fast.nn.pending import (
    Pending,
    Scene,
    enter,
    in_format_of,
    materialise,
    scene_of,
)
from pix2pixhd_fast.nn.pyramid import downsampling, halved
from pix2pixhd_fast.nn.sequence import Sequence
from pix2pixhd_fast.semantic import SemanticMap

MAX_CHANNELS = 512
# Runs sequences one behind the other: the pending result of each, or of each layer of a chain of
# convolutions.
Chain = Callable[[list[Sequence], Tensor | Scene], list[Pending]]


class Probability(nn.Sigmoid):
    """A sigmoid in float32: 16 bits reach exactly 0 or 1, where cross-entropy has no gradient."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(torch.promote_types(input.dtype, torch.float32)))


class NLayerDiscriminator(nn.Module):
    """The patch discriminator of pix2pixHD: `n_layers` + 2 convolutions 4x4 with padding 2.

    The first `n_layers` have stride 2, all but the last have LeakyReLU(0.2), all but the first and
    the last a norm; channels start at `ndf`, double up to 512 and end at 1; `use_sigmoid` ends in a
    sigmoid. Input [N, input_nc, H, W], or a `SemanticMap` that stands for it. Returns the
    prediction map [N, 1, H', W'], or with `getIntermFeat` the list of the outputs of all layers,
    the prediction last (a sigmoid counts as a layer).
    """

    def __init__(
        self,
        input_nc: int,
        ndf: int = 64,
        n_layers: int = 3,
        norm_layer: NormLayer = nn.BatchNorm2d,
        use_sigmoid: bool = False,
        getIntermFeat: bool = False,
    ):
        super().__init__()
        self.getIntermFeat = getIntermFeat
        self.n_layers = n_layers
        groups = patch_layers(input_nc, ndf, n_layers, norm_layer)
        if use_sigmoid:
            groups.append([Probability()])
        if getIntermFeat:
            for n, group in enumerate(groups):
                setattr(self, f"model{n}", Sequence(*group))
        else:
            self.model = Sequence(*(layer for group in groups for layer in group))

    def forward(self, input: Tensor | SemanticMap) -> Tensor | list[Tensor]:
        scene = scene_of(input, self)
        if not self.getIntermFeat:
            return in_format_of(input, materialise(self.model.run(scene)))
        features = [scene]
        for sequence in self._sequences():
            features.append(materialise(sequence.run(features[-1])))
        return features[1:]

    def features_raw(self, input: Tensor | SemanticMap) -> list[Pending]:
        """The outputs of all sequences, their last norm and activation pending.

        With `getIntermFeat` one for each layer, else the prediction alone.
        """
        return chain(self._sequences(), scene_of(input, self))

    def readers(self) -> list[Sequence]:
        """The sequence that reads the input."""
        return self._sequences()[:1]

    def _sequences(self) -> list[Sequence]:
        if not self.getIntermFeat:
            return [self.model]
        count = self.n_layers + 2
        names = [f"model{n}" for n in range(count + 1)]
        return [getattr(self, name) for name in names if hasattr(self, name)]


class MultiscaleDiscriminator(nn.Module):
    """`num_D` patch discriminators of one architecture on an image pyramid (paper, section 3.2).

    The first result belongs to the full size, each next one to half of that (3x3 average, stride 2,
    border not counted). Scale k of the parameters (`scale<k>_layer<j>`, or `layer<k>` without
    `getIntermFeat`) belongs to the result num_D - 1 - k: scale 0 is the coarsest. Input [N,
    input_nc, H, W], or a `SemanticMap` that stands for it (its dense channels are the picture).
    Returns a list per scale of a list of tensors: the outputs of all layers with `getIntermFeat`,
    else only the prediction. With `use_sigmoid` the prediction is a probability in both cases.
    """

    def __init__(
        self,
        input_nc: int,
        ndf: int = 64,
        n_layers: int = 3,
        norm_layer: NormLayer = nn.BatchNorm2d,
        use_sigmoid: bool = False,
        num_D: int = 3,
        getIntermFeat: bool = False,
    ):
        super().__init__()
        self.num_D = num_D
        self.n_layers = n_layers
        self.getIntermFeat = getIntermFeat
        for scale in range(num_D):
            groups = patch_layers(input_nc, ndf, n_layers, norm_layer)
            if use_sigmoid:
                groups[-1].append(Probability())
            if getIntermFeat:
                for j, group in enumerate(groups):
                    setattr(self, f"scale{scale}_layer{j}", Sequence(*group))
            else:
                setattr(self, f"layer{scale}", Sequence(*(m for group in groups for m in group)))
        self.downsample = downsampling()

    def scale(self, k: int) -> list[Sequence]:
        """The sequences of scale k, in the order in which they run."""
        if not self.getIntermFeat:
            return [getattr(self, f"layer{k}")]
        return [getattr(self, f"scale{k}_layer{j}") for j in range(self.n_layers + 2)]

    def forward(
        self, input: Tensor | SemanticMap, raw: bool | Chain = False
    ) -> list[list[Tensor]] | list[list[Pending]]:
        """As the class says; `raw`: `features_raw`, as a call of the module.

        A function instead of True runs the sequences of each scale, in the place of `chain`.
        """
        if raw:
            return self.features_raw(input, None if raw is True else raw)
        results = []
        level = enter(input, self)
        for k in reversed(range(self.num_D)):
            features = [level]
            for sequence in self.scale(k):
                features.append(materialise(sequence.run(features[-1])))
            results.append(features[1:])
            if k:
                level = halved(level, self.downsample)
        return results

    def readers(self) -> list[Sequence]:
        """The sequences that read the input or a level of its pyramid."""
        return [self.scale(k)[0] for k in range(self.num_D)]

    def features_raw(
        self, input: Tensor | SemanticMap, run: Chain | None = None
    ) -> list[list[Pending]]:
        """`forward` with the last norm and activation of every result pending: nothing is written.

        A reader computes them as it reads (`nn.pending.materialise`: all at once). `run` as in
        `forward`.
        """
        run = run or chain
        results = []
        level = enter(input, self)
        for k in reversed(range(self.num_D)):
            results.append(run(self.scale(k), level))
            if k:
                level = halved(level, self.downsample)
        return results


def chain(sequences: list[Sequence], input: Tensor | Scene) -> list[Pending]:
    """The pending results of sequences that each run on that of the one before."""
    results: list[Pending] = []
    for sequence in sequences:
        results.append(sequence.run(results[-1] if results else input))
    return results


def patch_layers(
    input_nc: int, ndf: int, n_layers: int, norm_layer: NormLayer
) -> list[list[nn.Module]]:
    """The layers of one patch discriminator, in groups that each end where a feature is taken."""
    channels = [min(ndf * 2**n, MAX_CHANNELS) if n else ndf for n in range(n_layers + 1)]
    groups: list[list[nn.Module]] = [
        [nn.Conv2d(input_nc, ndf, 4, stride=2, padding=2), nn.LeakyReLU(0.2, True)]
    ]
    for n, (before, after) in enumerate(pairwise(channels), start=1):
        conv = nn.Conv2d(before, after, 4, stride=2 if n < n_layers else 1, padding=2)
        groups.append([conv, norm_layer(after), nn.LeakyReLU(0.2, True)])
    groups.append([nn.Conv2d(channels[-1], 1, 4, stride=1, padding=2)])
    return groups
