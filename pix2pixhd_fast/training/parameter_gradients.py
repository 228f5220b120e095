"""Gradients of parameters that no graph adds up: one list op for all instead of one op for each."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ALIGNMENT = 128  # bytes: what vector loads of any width and the caches of GPUs want


def alike(tensors: Sequence[Tensor], dtype: torch.dtype, zero: bool = False) -> list[Tensor]:
    """A tensor of the shape and strides of each, which are dense; all in one piece of memory."""
    if not tensors:
        return []
    step = ALIGNMENT // dtype.itemsize
    starts = [0]
    for t in tensors:
        starts.append(starts[-1] + -(-t.numel() // step) * step)
    make = torch.zeros if zero else torch.empty
    flat = make(starts.pop(), dtype=dtype, device=tensors[0].device)
    return [
        flat.as_strided(t.shape, t.stride(), start)
        for t, start in zip(tensors, starts, strict=True)
    ]


def converted(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The tensors in another dtype, in their formats."""
    found = alike(tensors, dtype)
    if found:
        torch._foreach_copy_(found, list(tensors))
    return found


def give_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Add each gradient to that of its parameter, in the dtype and the format of the parameter.

    As autograd does; a parameter without a gradient takes the tensor itself where that fits.
    """
    found = list(gradients)
    odd = [i for i, (p, g) in enumerate(zip(parameters, found, strict=True)) if not _fits(p, g)]
    if odd:
        new = alike([parameters[i] for i in odd], parameters[odd[0]].dtype)
        torch._foreach_copy_(new, [found[i] for i in odd])
        for i, g in zip(odd, new, strict=True):
            found[i] = g
    into = [(p.grad, g) for p, g in zip(parameters, found, strict=True) if p.grad is not None]
    if into:
        torch._foreach_add_(*map(list, zip(*into, strict=True)))
    for p, g in zip(parameters, found, strict=True):
        if p.grad is None:
            p.grad = g


def give_zeros(parameters: Sequence[nn.Parameter]) -> None:
    """A gradient of zero to the parameters that have none, which have one dtype."""
    without = [p for p in parameters if p.grad is None]
    if without:
        for p, zeros in zip(without, alike(without, without[0].dtype, zero=True), strict=True):
            p.grad = zeros


def _fits(p: nn.Parameter, gradient: Tensor) -> bool:
    return gradient.dtype == p.dtype and gradient.stride() == p.stride()
