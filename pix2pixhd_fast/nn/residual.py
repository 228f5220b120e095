"""Residual blocks: x + conv_block(x)."""

import torch
from torch import Tensor

from pix2pixhd_fast._backend import current_backend
from pix2pixhd_fast.nn.layers import hooked
from pix2pixhd_fast.nn.pending import (
    Chained,
    Pending,
    add,
    as_pending,
    channels_last,
    fits_ops,
    in_format_of,
    materialise,
    with_border,
)
from pix2pixhd_fast.nn.plan import Pair
from pix2pixhd_fast.nn.sequence import Sequence
from pix2pixhd_fast.nn.steps import activation
from pix2pixhd_fast.ops.residual_block import Bordered, residual_block


class ResidualBlock(Chained):
    """x + self.conv_block(x), where `conv_block` is a `Sequence` and all that the block has."""

    conv_block: Sequence

    def forward(self, x: Tensor) -> Tensor:
        if current_backend() == "eager":
            return x + self.conv_block(x)
        return in_format_of(x, materialise(self._run(as_pending(x), "none")))

    def run(self, input: Tensor | Pending, border: str = "none") -> Pending:
        """As in `Chained`; under "eager", or where it has hooks, an ordinary call."""
        if current_backend() == "eager" or hooked(self) or self.replaced():
            return Pending(self(materialise(input)))
        return self._run(as_pending(input), border)

    def border(self) -> str:
        pair = None if current_backend() == "eager" or hooked(self) else self.pair()
        return "none" if pair is None else _edge(pair)

    def replaced(self) -> bool:
        return type(self).forward is not ResidualBlock.forward

    def pair(self) -> Pair | None:
        """What `ops.residual_block` computes of the block as it is now; None where it cannot."""
        branch = self.conv_block
        if type(branch) is not Sequence or hooked(branch):
            return None
        pair = branch.plan().pair
        return pair if pair is not None and all(step.idle for step in pair.skips) else None

    def _run(self, p: Pending, border: str) -> Pending:
        pair = self.pair()
        if p.done and not p.border and fits_ops(p.x):
            p = p._replace(x=channels_last(p.x))
        if pair is None or not _suits(p.x):
            h = materialise(p)
            kept = Pending(h, kept=p.kept)
            return add(_branch(self.conv_block, kept), kept, border)
        first, second, _ = pair
        h = with_border(p, _edge(pair))
        out = residual_block(
            Bordered(h.x, h.border),
            (first.conv.weight, second.conv.weight),
            (first.conv.bias, second.conv.bias),
            *activation(first.act),
            first.padding,
            (first.norm.eps, second.norm.eps),
            int(border == first.padding),
        )
        return Pending(
            out.padded, border=out.border, padding=border if out.border else "none", kept=True
        )


def _branch(branch: torch.nn.Module, p: Pending) -> Pending:
    """The branch on p: chained, or called where it is none of ours."""
    return branch.run(p) if isinstance(branch, Chained) else Pending(branch(materialise(p)))


def _edge(pair: Pair) -> str:
    """The padding that the block would like to find written: zeros are the convolution's own."""
    return pair.first.padding if pair.first.padding != "zero" else "none"


def _suits(x: Tensor) -> bool:
    """Whether `ops.residual_block` gives what the sum of the two would.

    Under autocast a sum with a wider x is as wide as x; a single pixel has no instance norm.
    """
    if not fits_ops(x) or x.shape[2] * x.shape[3] == 1:
        return False
    cast = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    return not cast or torch.get_autocast_dtype(x.device.type) == x.dtype
