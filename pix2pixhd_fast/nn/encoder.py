"""The feature encoder E and its instance-wise average pooling."""

from torch import Tensor, nn

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.nn.generators import NormLayer, down, head, stem, up
from pix2pixhd_fast.nn.sequence import Sequence
from pix2pixhd_fast.ops.instance_mean_pool import instance_mean_pool


class Encoder(nn.Module):
    """E of pix2pixHD (paper, section 3.4): picture -> features that are constant in every instance.

    In order: 7x7 convolution to `ngf` channels, `n_downsampling` stride-2 convolutions, as many
    transposed ones back, 7x7 convolution to `output_nc`, tanh, `instance_mean_pool`. `input` [N,
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
        return instance_mean_pool(self.model(input), inst)
