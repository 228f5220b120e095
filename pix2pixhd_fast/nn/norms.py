"""Choice of normalisation, and the initial weights of the original."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.ops.norm_act_pad import Norm

# A batch norm needs variances, which come back from 1 / sqrt(variance + eps): this eps vanishes
# against every variance that is not 0 and has a reciprocal in float32.
VANISHING_EPS = 1e-30


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


def statistics_eps(norm: nn.Module | None) -> float | None:
    """The eps with which to take the statistics of what `norm` normalises; None for none.

    `norm` is an `nn.InstanceNorm2d` without running statistics, an `nn.BatchNorm2d` or None.
    """
    if isinstance(norm, nn.InstanceNorm2d):
        return norm.eps
    return VANISHING_EPS if norm is not None and by_batch(norm) else None


def by_batch(norm: nn.BatchNorm2d) -> bool:
    """Whether a batch norm normalises by the batch, as PyTorch decides it."""
    return norm.training or (norm.running_mean is None and norm.running_var is None)


def norm_of(norm: nn.Module | None, y: Tensor, mean: Tensor, rstd: Tensor) -> Norm:
    """What `norm` (as in `statistics_eps`) still has to do to y, [N, C, H, W].

    mean and rstd are the statistics of y by `statistics_eps`. A batch norm that keeps running
    statistics updates them. Raises PyTorch's own error where there is too little to normalise by.
    """
    if norm is None:
        return Norm()
    if isinstance(norm, nn.InstanceNorm2d):
        if y.shape[2] * y.shape[3] == 1:
            norm(y)  # raises
        return Norm("instance", mean, rstd, norm.weight, norm.bias)
    if not by_batch(norm):
        return _fixed(norm, y)
    if y.numel() == y.shape[1]:
        norm(y)  # raises where it normalises by a single value
    with torch.no_grad():
        mean, variance = _batch_moments(mean, rstd)
        if norm.training and norm.track_running_stats:
            _update(norm, mean, variance, y.numel() // y.shape[1])
        rstd = (variance + norm.eps).rsqrt()
    mean, rstd = (t.repeat(y.shape[0], 1) for t in (mean, rstd))
    return Norm("batch", mean, rstd, norm.weight, norm.bias)


def _fixed(norm: nn.BatchNorm2d, y: Tensor) -> Norm:
    """The norm by running statistics; copies, which a later update leaves alone."""
    wide = torch.promote_types(y.dtype, torch.float32)
    mean = norm.running_mean.to(wide).repeat(y.shape[0], 1)
    rstd = (norm.running_var.to(wide) + norm.eps).rsqrt().repeat(y.shape[0], 1)
    return Norm("fixed", mean, rstd, norm.weight, norm.bias)


def _batch_moments(mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of a batch from the statistics [N, C] of its images."""
    whole = mean.mean(0)
    variance = rstd.reciprocal().square() + (mean - whole).square()
    return whole, variance.mean(0)


def _update(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move the running statistics: by `momentum`, or, where that is None, to the mean so far."""
    share: float | Tensor = 0.0 if norm.momentum is None else norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            share = norm.num_batches_tracked.to(mean.dtype).reciprocal()
    unbiased = variance * (count / (count - 1))
    for running, new in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        if running is not None:
            running.copy_(running.to(new.dtype) * (1 - share) + new * share)
