"""What travels between the steps of a plan: a tensor, and what is still to be done to it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pix2pixhd_fast._backend import current_backend
from pix2pixhd_fast.ops.memory_format import to_channels_last, to_default_format
from pix2pixhd_fast.ops.norm_act_pad import DTYPES, Norm, normalise
from pix2pixhd_fast.ops.norm_act_pad_kernels import inner
from pix2pixhd_fast.semantic import SemanticMap


class Scene(NamedTuple):
    """A label map, averaged `level` times (3x3, stride 2), whose channels are not written.

    `map` has its labels and edges at full size, its dense channels at the size of the level.
    `dtype`: of the weights that will read it, and of the channels where they must be written.
    """

    map: SemanticMap
    level: int
    dtype: torch.dtype

    def to_dense(self) -> Tensor:
        """The channels [N, C, H', W'] at the size of the level."""
        x = self.map.with_dense(None).to_dense(self.dtype)
        for _ in range(self.level):
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return x if self.map.dense is None else torch.cat((x, self.map.dense), dim=1)


class Pending(NamedTuple):
    """act(norm(x)), not computed yet.

    x: the raw output of a convolution, [N, C, H, W], or an ordinary tensor of any shape with
    nothing left to do (norm.kind and act are "none"); or a `Scene`, which the input of a network
    may be. Where `border` is 1, x is ordinary, [N, C, H + 2, W + 2], and its outermost pixels are
    the `padding` ("reflect" or "replicate") of what is inside. `kept`: the op that made x needs it
    in its backward, so that nobody may change it in place.
    """

    x: Tensor | Scene
    norm: Norm = Norm()
    act: str = "none"
    slope: float = 0.0
    border: int = 0
    padding: str = "none"
    kept: bool = False

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.norm.kind == self.act == "none"


class Chained(nn.Module):
    """A module that can take what is pending and leave its own last work pending.

    Networks chain such modules by `run`, so that nothing is written between them that the next one
    need not read.
    """

    def run(self, input: Tensor | Scene | Pending, border: str = "none") -> Pending:
        """The module's result, its last norm and activation pending.

        `border` is the padding ("reflect", "replicate" or "none") that the reader would like to
        find written around a result that must be written anyway.
        """
        raise NotImplementedError

    def border(self) -> str:
        """The padding that `run` would like to find written around its input, by one pixel."""
        return "none"

    def replaced(self) -> bool:
        """Whether a subclass computes something else in its `forward`."""
        raise NotImplementedError


def as_pending(value: Tensor | Scene | Pending) -> Pending:
    """A tensor or a scene with nothing left to do; what is pending already, as it is."""
    return value if isinstance(value, Pending) else Pending(value)


def materialise(value: Tensor | Scene | Pending) -> Tensor:
    """act(norm(x)) as an ordinary tensor; x itself, without its border, where that is it."""
    p = as_pending(value)
    if isinstance(p.x, Scene):
        return p.x.to_dense()
    if p.done:
        return inner(p.x, p.border)
    return normalise(p.x, p.norm, None, p.act, p.slope)


def with_border(p: Pending, padding: str) -> Pending:
    """`p` as an ordinary tensor, with one pixel of `padding` around it where it is written now."""
    if p.border and p.padding == padding:
        return p
    pad = _writable(p.x, padding)
    if p.done or not pad:
        return Pending(materialise(p), kept=p.kept)
    x = normalise(p.x, p.norm, None, p.act, p.slope, padding, pad)
    return Pending(x, border=pad, padding=padding)


def add(p: Pending, other: Pending, border: str = "none") -> Pending:
    """p + other in one pass behind the materialising of `other`; `border` as in `Chained.run`.

    Where shapes, dtypes or devices differ: the ordinary sum of two tensors.
    """
    residual = materialise(other)
    pad = _writable(p.x, border)
    same = fits_ops(p.x) and p.x.shape == residual.shape and p.x.dtype == residual.dtype
    if p.border or not same or p.x.device != residual.device or (p.done and not pad):
        return Pending(materialise(p) + residual)
    if residual.stride(1) != 1:
        residual = channels_last(residual)
    raw = channels_last(p.x) if p.done else p.x
    x = normalise(raw, p.norm, residual, p.act, p.slope, border if pad else "none", pad)
    return Pending(x, border=pad, padding=border if pad else "none", kept=True)


class _ToChannelsLast(torch.autograd.Function):
    """The tensor in the channels_last format, its gradient in the default one."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return to_channels_last(x)

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return to_default_format(dy)


def channels_last(x: Tensor) -> Tensor:
    """x in the channels_last format; its gradient has the format that x has.

    That matters: on the CPU the gradient of PyTorch's instance norm of a single image is wrong
    where it is handed a gradient in the channels_last format (PyTorch 2.14.1). What lies outside
    of the fused steps must not meet one unless it asked for that format itself.
    """
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    return _ToChannelsLast.apply(x)


def scene_of(input: Tensor | SemanticMap, net: nn.Module) -> Tensor | Scene:
    """The input of `net` as its sequences take it: a label map stays one where they run fused.

    Its dense channels come in the dtype of the weights, as a cat of all channels would.
    """
    if not isinstance(input, SemanticMap):
        return input
    weight = next(net.parameters(), input.dense)
    dtype = torch.float32 if weight is None else weight.dtype
    if current_backend() == "eager":
        return input.to_dense(dtype)
    return Scene(input.to(dtype=dtype), 0, dtype)


def enter(input: Tensor | SemanticMap, net: nn.Module) -> Tensor | Scene:
    """`scene_of`; a tensor that several fused steps keep for its gradient is converted once.

    Without a gradient the steps keep x itself, which its owner may hold as well.
    """
    x = scene_of(input, net)
    if current_backend() == "eager" or not fits_ops(x) or not x.requires_grad:
        return x
    return channels_last(x)


def in_format_of(like: object, x: Tensor) -> Tensor:
    """x in the default memory format where `like` is a picture in that format, else as it is.

    A label map has no format: what is made of it stays channels_last.
    """
    return x.contiguous() if fits_ops(like) and like.is_contiguous() and fits_ops(x) else x


def fits_ops(x: object) -> bool:
    """Whether the ops know such a tensor: [N, C, H, W] floats, none of the sides 0."""
    if not isinstance(x, Tensor):  # a sequence may pass anything on
        return False
    return x.dim() == 4 and x.dtype in DTYPES and 0 not in x.shape and x.layout == torch.strided


def _writable(x: Tensor, padding: str) -> int:
    """1 where a border of `padding` can be written around x, else 0."""
    if padding == "none" or not fits_ops(x):
        return 0
    return 0 if padding == "reflect" and min(x.shape[2:]) < 2 else 1
