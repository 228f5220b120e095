"""Choice of normalisation, and the initial weights of the original."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from pix2pixhd_fast.errors import InputError


def get_norm_layer(norm_type: str = "instance") -> Callable[[int], nn.Module]:
    """Return a constructor channels -> module.

    "instance": without affine parameters and running statistics. "batch": with both. Raises
    `InputError` for another name.
    """
    if norm_type == "batch":
        return functools.partial(nn.BatchNorm2d, affine=True)
    if norm_type == "instance":
        return functools.partial(nn.InstanceNorm2d, affine=False)
    raise InputError(f"norm_type must be instance or batch, got {norm_type!r}")


def weights_init(m: nn.Module) -> None:
    """Initialise one module in place, for `net.apply(weights_init)`.

    Weights of convolutions, transposed ones included: N(0, 0.02). Batch norm: scale N(1, 0.02),
    shift 0. Biases of convolutions keep PyTorch's own initial values.
    """
    if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
        m.weight.data.normal_(0.0, 0.02)
    elif isinstance(m, nn.BatchNorm2d) and m.affine:
        m.weight.data.normal_(1.0, 0.02)
        m.bias.data.fill_(0)


@contextmanager
def keep_running_statistics(net: nn.Module) -> Iterator[None]:
    """Inside the block, batch norms in training mode normalise by the batch and update nothing."""
    norms = [
        m
        for m in net.modules()
        if isinstance(m, nn.BatchNorm2d) and m.training and m.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
