"""What travels between the steps of a plan: a tensor, and what is still to be done to it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pix2pixhd_fast._backend import current_backend
from pix2pixhd_fast.ops.memory_format import to_channels_last, to_default_format
from pix2pixhd_fast.ops.norm_act_pad import DTYPES, Norm, normalise
from pix2pixhd_fast.ops.norm_act_pad_kernels import inner


class Pending(NamedTuple):
    """act(norm(x)), not computed yet.

    x: the raw output of a convolution, [N, C, H, W], or an ordinary tensor of any shape with
    nothing left to do (norm.kind and act are "none"). Where `border` is 1, x is ordinary,
    [N, C, H + 2, W + 2], and its outermost pixels are the `padding` ("reflect" or "replicate") of
    what is inside. `kept`: the op that made x needs it in its backward, so that nobody may change
    it in place.
    """

    x: Tensor
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

    def run(self, input: Tensor | Pending, border: str = "none") -> Pending:
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


def as_pending(value: Tensor | Pending) -> Pending:
    """A tensor with nothing left to do; what is pending already, as it is."""
    return value if isinstance(value, Pending) else Pending(value)


def materialise(value: Tensor | Pending) -> Tensor:
    """act(norm(x)) as an ordinary tensor; x itself, without its border, where that is it."""
    p = as_pending(value)
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
    same = all(getattr(p.x, name) == getattr(residual, name) for name in ("shape", "dtype"))
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


def enter(x: Tensor) -> Tensor:
    """What several fused steps read, converted once where they keep it for x's gradient.

    Without a gradient the steps keep x itself, which its owner may hold as well.
    """
    if current_backend() == "eager" or not fits_ops(x) or not x.requires_grad:
        return x
    return channels_last(x)


def in_format_of(like: object, x: Tensor) -> Tensor:
    """x in the default memory format where `like` is a picture in that format, else as it is."""
    plain = fits_ops(like) and fits_ops(x) and like.is_contiguous()
    return x.contiguous() if plain else x


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
