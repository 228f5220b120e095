"""Generators: residual block, G1 (global) and the enhancers G2, G3, ... (local)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.nn.pending import add, in_format_of, materialise, scene_of
from pix2pixhd_fast.nn.pyramid import downsampling, halved
from pix2pixhd_fast.nn.residual import ResidualBlock
from pix2pixhd_fast.nn.sequence import Sequence
from pix2pixhd_fast.semantic import SemanticMap

NormLayer = Callable[[int], nn.Module]

HEAD_LAYERS = 3
_PADDING = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}


class ResnetBlock(ResidualBlock):
    """x + norm(conv(pad(drop(act(norm(conv(pad(x)))))))), both convolutions 3x3, channels kept.

    `padding_type` is "reflect", "replicate" or "zero"; raises `InputError` for another.
    `use_dropout` adds dropout with probability 1/2 behind the activation. Input and output [N, dim,
    H, W].
    """

    def __init__(
        self,
        dim: int,
        padding_type: str,
        norm_layer: NormLayer,
        activation: nn.Module | None = None,
        use_dropout: bool = False,
    ):
        super().__init__()
        activation = nn.ReLU(True) if activation is None else activation
        self.conv_block = self.build_conv_block(
            dim, padding_type, norm_layer, activation, use_dropout
        )

    @staticmethod
    def build_conv_block(
        dim: int, padding_type: str, norm_layer: NormLayer, activation: nn.Module, use_dropout: bool
    ) -> Sequence:
        """Build the branch that is added to the input."""
        if padding_type not in (*_PADDING, "zero"):
            raise InputError(
                f"padding_type must be reflect, replicate or zero, got {padding_type!r}"
            )

        def conv() -> list[nn.Module]:
            pads = [_PADDING[padding_type](1)] if padding_type in _PADDING else []
            return [*pads, nn.Conv2d(dim, dim, 3, padding=0 if pads else 1), norm_layer(dim)]

        dropout = [nn.Dropout(0.5)] if use_dropout else []
        return Sequence(*conv(), activation, *dropout, *conv())


class GlobalGenerator(nn.Module):
    """G1 of pix2pixHD (paper, section 3.2; after Johnson et al. 2016).

    In order: 7x7 convolution to `ngf` channels, `n_downsampling` stride-2 convolutions that double
    the channels, `n_blocks` residual blocks, as many transposed convolutions back, 7x7 convolution
    to `output_nc`, tanh. Input [N, input_nc, H, W], or a `SemanticMap` that stands for it; output
    [N, output_nc, H, W] in [-1, 1] for H and W that are multiples of 2**n_downsampling (others are
    rounded up to the next).
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int = 64,
        n_downsampling: int = 3,
        n_blocks: int = 9,
        norm_layer: NormLayer = nn.BatchNorm2d,
        padding_type: str = "reflect",
    ):
        if n_blocks < 0:
            raise InputError(f"n_blocks must be at least 0, got {n_blocks}")
        super().__init__()
        act = nn.ReLU(True)
        layers = stem(input_nc, ngf, norm_layer, act)
        for level in range(n_downsampling):
            layers += down(ngf * 2**level, norm_layer, act)
        dim = ngf * 2**n_downsampling
        layers += [ResnetBlock(dim, padding_type, norm_layer, act) for _ in range(n_blocks)]
        for level in reversed(range(n_downsampling)):
            layers += up(ngf * 2 ** (level + 1), norm_layer, act)
        self.model = Sequence(*layers, *head(ngf, output_nc))

    def forward(self, input: Tensor | SemanticMap) -> Tensor:
        return in_format_of(input, materialise(self.model.run(scene_of(input, self))))

    def readers(self) -> list[Sequence]:
        """The sequences that read the input or a level of its pyramid."""
        return [self.model]


class LocalEnhancer(nn.Module):
    """G1 with `n_local_enhancers` enhancers around it: G = {G1, G2, ...} (paper, section 3.2).

    The input is averaged down (3x3, stride 2) once per enhancer. G1 without its output head
    (`model`, `ngf * 2**n_local_enhancers` channels) runs on the smallest; enhancer n adds G's
    features so far to its own stride-2 features (`model<n>_1`), then residual blocks and a
    transposed convolution (`model<n>_2`); the last ends in the output head. Shapes as in
    `GlobalGenerator`, for multiples of 2**(n_downsample_global + n_local_enhancers).
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int = 32,
        n_downsample_global: int = 3,
        n_blocks_global: int = 9,
        n_local_enhancers: int = 1,
        n_blocks_local: int = 3,
        norm_layer: NormLayer = nn.BatchNorm2d,
        padding_type: str = "reflect",
    ):
        super().__init__()
        self.n_local_enhancers = n_local_enhancers
        inner = GlobalGenerator(
            input_nc,
            output_nc,
            ngf * 2**n_local_enhancers,
            n_downsample_global,
            n_blocks_global,
            norm_layer,
        ).model
        self.model = inner[:-HEAD_LAYERS]
        act = nn.ReLU(True)
        for n in range(1, n_local_enhancers + 1):
            dim = ngf * 2 ** (n_local_enhancers - n)
            first = stem(input_nc, dim, norm_layer, act) + down(dim, norm_layer, act)
            blocks = [ResnetBlock(dim * 2, padding_type, norm_layer) for _ in range(n_blocks_local)]
            second = blocks + up(dim * 2, norm_layer, act)
            if n == n_local_enhancers:
                second += head(ngf, output_nc)
            setattr(self, f"model{n}_1", Sequence(*first))
            setattr(self, f"model{n}_2", Sequence(*second))
        self.downsample = downsampling()

    def forward(self, input: Tensor | SemanticMap) -> Tensor:
        pyramid = [scene_of(input, self)]
        for _ in range(self.n_local_enhancers):
            pyramid.append(halved(pyramid[-1], self.downsample))
        out = self.model.run(pyramid.pop())
        for n in range(1, self.n_local_enhancers + 1):
            first, second = getattr(self, f"model{n}_1"), getattr(self, f"model{n}_2")
            out = [add(first.run(pyramid.pop()), out, second.border())]
            out = second.run(out.pop())  # none of the summands is held while it runs
        return in_format_of(input, materialise(out))

    def readers(self) -> list[Sequence]:
        """The sequences that read the input or a level of its pyramid."""
        enhancers = range(1, self.n_local_enhancers + 1)
        return [self.model, *(getattr(self, f"model{n}_1") for n in enhancers)]


def stem(input_nc: int, dim: int, norm_layer: NormLayer, act: nn.Module) -> list[nn.Module]:
    """7x7 convolution with reflected border: input_nc -> dim channels, size kept."""
    return [nn.ReflectionPad2d(3), nn.Conv2d(input_nc, dim, 7), norm_layer(dim), act]


def down(dim: int, norm_layer: NormLayer, act: nn.Module) -> list[nn.Module]:
    """3x3 convolution with stride 2: dim -> 2 dim channels, half the size (rounded up)."""
    return [nn.Conv2d(dim, dim * 2, 3, stride=2, padding=1), norm_layer(dim * 2), act]


def up(dim: int, norm_layer: NormLayer, act: nn.Module) -> list[nn.Module]:
    """3x3 transposed convolution with stride 2: dim -> dim / 2 channels, twice the size."""
    conv = nn.ConvTranspose2d(dim, dim // 2, 3, stride=2, padding=1, output_padding=1)
    return [conv, norm_layer(dim // 2), act]


def head(dim: int, output_nc: int) -> list[nn.Module]:
    """7x7 convolution with reflected border to the picture in [-1, 1], size kept."""
    return [nn.ReflectionPad2d(3), nn.Conv2d(dim, output_nc, 7), nn.Tanh()]


def enhancer_parameters(net: LocalEnhancer) -> list[torch.nn.Parameter]:
    """The parameters of the outermost enhancer, in the order of `net.parameters()`."""
    prefix = f"model{net.n_local_enhancers}_"
    return [p for name, p in net.named_parameters() if name.startswith(prefix)]
