"""The layers that variants of the memory passes are made of: tensors without memory."""

from typing import NamedTuple

import torch
from torch import Tensor

from pix2pixhd_fast.ops.norm_act_pad_kernels import inner


class Layer(NamedTuple):
    """What stands between two convolutions, for one image [C, H, W].

    `last`: channels_last; `norm` is "none", "instance", or "affine" with gamma and beta; `added`: a
    residual in the forward, `minus` in the backward, which lie inside a border.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype
    act: str
    padding: str = "none"
    pad: int = 0
    norm: str = "instance"
    added: bool = False
    last: bool = True

    @property
    def options(self) -> tuple[str, float, str, int]:
        """act, slope, padding, pad"""
        return self.act, 0.2, self.padding, self.pad

    def picture(self, border: int = 0) -> Tensor:
        c, h, w = self.shape
        layout = torch.channels_last if self.last else torch.contiguous_format
        shape = (1, c, h + 2 * border, w + 2 * border)
        return torch.empty(shape, dtype=self.dtype, device="meta", memory_format=layout)

    def inner_picture(self) -> Tensor:
        """A view of one inside a border of one pixel."""
        return inner(self.picture(1), 1)

    def per_channel(self) -> Tensor:
        return torch.empty(1, self.shape[0], device="meta")

    def prologue(self, minus: bool = False) -> tuple[Tensor | None, ...]:
        """mean, rstd, gamma, beta; no mean where `minus` stands for it."""
        if self.norm == "none":
            return (None,) * 4
        statistics = self.per_channel()
        parameter = statistics[0] if self.norm == "affine" else None
        return None if minus else statistics, statistics, parameter, parameter


# Of G at 2048x1024 (local, ngf 32): the head, stride 2 and transposed, the residual blocks of both
# networks, in the middle and at the end; of D the first layer and another one; batch norm; then
# three channels, sides that are odd, and the default memory format.
BF16, HALF, SINGLE = torch.bfloat16, torch.float16, torch.float32
LAYERS = (
    Layer((32, 1024, 2048), BF16, "relu", "reflect", 3),
    Layer((64, 512, 1024), SINGLE, "relu"),
    Layer((64, 512, 1024), BF16, "relu", "reflect", 1),
    Layer((64, 512, 1024), BF16, "none", "reflect", 1, added=True),
    Layer((1024, 32, 64), SINGLE, "relu", "reflect", 1),
    Layer((1024, 32, 64), BF16, "none", "reflect", 1, added=True),
    Layer((1024, 32, 64), BF16, "none", added=True),
    Layer((64, 513, 1025), BF16, "leaky_relu", norm="none"),
    Layer((128, 257, 513), HALF, "leaky_relu"),
    Layer((64, 512, 1024), SINGLE, "relu", "reflect", 1, norm="affine"),
    Layer((64, 65, 129), SINGLE, "tanh", "zero", 1),
    Layer((3, 65, 129), SINGLE, "tanh", "replicate", 1),
    Layer((32, 512, 1024), SINGLE, "relu", "reflect", 3, last=False),
    Layer((32, 512, 1024), BF16, "leaky_relu", "replicate", 1, "affine", True, last=False),
)
