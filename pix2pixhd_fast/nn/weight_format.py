"""In which memory format the networks hold their weights."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pix2pixhd_fast.ops.memory_format import stands_for_gpu


def hold_as_read(nets: Iterable[nn.Module], of_labels: Iterable[int] = ()) -> None:
    """On a GPU: hold the weights of convolutions channels_last, in place.

    The kernels read them so, and the library makes their gradients so, which become `grad` as they
    are then: otherwise each is copied, and on its way in again. Weights [K, C, kh, kw] stay in the
    default format where C is in `of_labels`: `label_conv2d` makes their gradients in that.

    Not on the CPU, where a layer of PyTorch that meets what comes of such weights is wrong
    (`nn/pending.py`, `channels_last`).
    """
    of_labels = set(of_labels)
    for net in nets:
        for p in net.parameters():
            if p.dim() == 4 and stands_for_gpu(p) and p.shape[1] not in of_labels:
                p.data = p.data.contiguous(memory_format=torch.channels_last)


def laid_out_like(p: Tensor, state: Mapping[str, object]) -> dict[str, object]:
    """The state of an optimiser for p, its tensors of the shape of p with the strides of p.

    A fused update walks through all of them as one; a checkpoint holds them contiguous.
    """

    def laid_out(value: object) -> object:
        if not isinstance(value, Tensor) or value.shape != p.shape or value.stride() == p.stride():
            return value
        return torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)

    return {name: laid_out(value) for name, value in state.items()}
