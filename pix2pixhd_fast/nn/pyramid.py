"""The image pyramid that networks read, of pictures and of label maps."""

from torch import Tensor, nn

from pix2pixhd_fast.nn.layers import hooked
from pix2pixhd_fast.nn.pending import Scene
from pix2pixhd_fast.ops.label_conv2d import LEVELS


def downsampling() -> nn.AvgPool2d:
    """The layer that halves: mean over 3x3 pixels with stride 2, pixels outside not counted."""
    return nn.AvgPool2d(3, stride=2, padding=[1, 1], count_include_pad=False)


def halved(input: Tensor | Scene, downsample: nn.Module) -> Tensor | Scene:
    """The next level of the pyramid, as `downsample` gives it.

    Of a label map only the dense channels are averaged now; the convolution that reads the level
    averages the rest. It becomes a tensor at levels that no convolution of label maps knows, and
    where `downsample` was replaced or has hooks.
    """
    if isinstance(input, Tensor):
        return downsample(input)
    if input.level + 1 not in LEVELS or not halves(downsample):
        return downsample(input.to_dense())
    dense = input.map.dense
    pooled = None if dense is None else downsample(dense)
    return Scene(input.map.with_dense(pooled), input.level + 1, input.dtype)


def halves(layer: nn.Module) -> bool:
    """Whether the layer computes what `downsampling()` does."""
    if type(layer) is not nn.AvgPool2d or hooked(layer):
        return False
    sides = [_pair(s) for s in (layer.kernel_size, layer.stride, layer.padding)]
    others = layer.ceil_mode or layer.count_include_pad or layer.divisor_override
    return sides == [(3, 3), (2, 2), (1, 1)] and not others


def _pair(side: int | tuple[int, ...] | list[int]) -> tuple[int, ...]:
    return (side, side) if isinstance(side, int) else tuple(side)
