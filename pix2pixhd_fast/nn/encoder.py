"""The feature encoder E and its instance-wise average pooling."""

import torch
from torch import Tensor, nn

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.nn.generators import NormLayer, down, head, stem, up
from pix2pixhd_fast.nn.sequence import Sequence

SUM_BLOCK = 65536


class Encoder(nn.Module):
    """E of pix2pixHD (paper, section 3.4): picture -> features that are constant in every instance.

    In order: 7x7 convolution to `ngf` channels, `n_downsampling` stride-2 convolutions, as many
    transposed ones back, 7x7 convolution to `output_nc`, tanh, mean over each instance. `input` [N,
    input_nc, H, W], `inst` integer ids [N, 1, H, W]; returns [N, output_nc, H, W]. H and W must be
    multiples of 2**n_downsampling.
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int = 32,
        n_downsampling: int = 4,
        norm_layer: NormLayer = nn.BatchNorm2d,
    ):
        super().__init__()
        self.output_nc = output_nc
        act = nn.ReLU(True)
        layers = stem(input_nc, ngf, norm_layer, act)
        for level in range(n_downsampling):
            layers += down(ngf * 2**level, norm_layer, act)
        for level in reversed(range(n_downsampling)):
            layers += up(ngf * 2 ** (level + 1), norm_layer, act)
        self.model = Sequence(*layers, *head(ngf, output_nc))

    def forward(self, input: Tensor, inst: Tensor) -> Tensor:
        if inst.shape != (input.shape[0], 1, *input.shape[2:]):
            raise InputError(
                f"inst must be [N, 1, H, W] with N, H, W of input {tuple(input.shape)}, "
                f"got {tuple(inst.shape)}"
            )
        return instance_mean(self.model(input), inst)


def instance_mean(features: Tensor, ids: Tensor) -> Tensor:
    """Replace each value by the mean over its instance, per image and channel.

    `features` [N, C, H, W] floating, `ids` [N, 1, H, W] any integers; returns the shape and dtype
    of `features`. Sums are taken in float32 over blocks of 65,536 pixels, then over blocks, so that
    an instance of two million pixels keeps six digits. Differentiable once in `features`.
    """
    if features.shape[2:] != ids.shape[2:]:
        raise InputError(
            f"ids must have the height and width of features {tuple(features.shape[2:])}, "
            f"got {tuple(ids.shape[2:])}"
        )
    means = [
        _mean_by_id(image.flatten(1), i.flatten()) for image, i in zip(features, ids, strict=True)
    ]
    return torch.stack(means).view_as(features)


def _mean_by_id(values: Tensor, ids: Tensor) -> Tensor:
    """values [C, P], ids [P] -> [C, P]."""
    _, index, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    pixels, instances = len(index), len(counts)
    blocks = -(-pixels // SUM_BLOCK)
    block = torch.arange(pixels, device=ids.device) // SUM_BLOCK
    wide = torch.promote_types(values.dtype, torch.float32)
    sums = values.new_zeros((values.shape[0], blocks * instances), dtype=wide)
    sums = sums.index_add(1, block * instances + index, values.to(wide))
    means = sums.view(-1, blocks, instances).sum(1) / counts
    # gathered before it is rounded: the sum over an instance in backward needs float32 too
    return means[:, index].to(values.dtype)
