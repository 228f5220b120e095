"""Label maps: checks, one-hot channels, padding."""

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from pix2pixhd_fast.errors import InputError


def check_labels(label: Tensor, label_nc: int, ignore_label: int) -> None:
    """Raise `InputError`, which names the worst id, unless all are in [0, label_nc) or ignored.

    `label`: integer ids of any shape. Tensors without values (tracing) pass.
    """
    if isinstance(label, FakeTensor) or label.is_meta or label.numel() == 0:
        return
    wrong = (label < 0) | (label >= label_nc)
    if ignore_label >= 0:
        wrong &= label != ignore_label
    if wrong.any():
        worst = label[wrong].max().item()
        raise InputError(
            f"label has {int(wrong.sum())} pixels with ids outside [0, {label_nc}), the largest "
            f"{worst}: label_nc must be larger than every id, or ignore_label must name it"
        )


def one_hot(label: Tensor, label_nc: int, ignore_label: int) -> Tensor:
    """Integer ids [N, 1, H, W] -> float32 [N, label_nc, H, W]; `ignore_label` is zero in all."""
    n, _, h, w = label.shape
    channels = torch.zeros((n, label_nc, h, w), device=label.device)
    index = label.long()
    if ignore_label < 0:
        return channels.scatter_(1, index, 1.0)
    known = (index != ignore_label).float()
    return channels.scatter_(1, index.masked_fill(index == ignore_label, 0), known)


def pad_by_edge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Extend [N, C, H, W] of any dtype to `size` on the right and at the bottom by its edge."""
    for dim, after in zip((2, 3), size, strict=True):
        before = x.shape[dim]
        if after > before:
            index = torch.arange(after, device=x.device).clamp_(max=before - 1)
            x = x.index_select(dim, index)
    return x
