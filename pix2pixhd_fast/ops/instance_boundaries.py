"""Where instances touch: the boundary map of an instance map."""

import torch
from torch import Tensor

from pix2pixhd_fast._backend import current_backend
from pix2pixhd_fast._launches import (
    Launch,
    bytes_of,
    copies_of,
    register_launches,
    scratch_of,
)
from pix2pixhd_fast._library import define
from pix2pixhd_fast.errors import InputError


def instance_boundaries(ids: Tensor) -> Tensor:
    """Mark the pixels with a neighbour of another instance.

    A pixel is 1 where the pixel above, below, left or right of it holds another id, and 0
    elsewhere: both sides of an edge are marked, the border of the picture is not.

    `ids`: [N, 1, H, W], any integer dtype, any strides. Returns uint8 [N, 1, H, W], contiguous, on
    the device of `ids`; no gradient. Raises `InputError` for another shape or dtype.
    """
    if ids.dim() != 4 or ids.shape[1] != 1:
        raise InputError(f"ids must be [N, 1, H, W], got {list(ids.shape)}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"ids must hold integers, got {ids.dtype}")
    # Which ids differ survives the conversion of unsigned ones.
    ids = ids.to(torch.int64 if ids.dtype.itemsize == 8 else torch.int32)
    if current_backend() == "eager":
        return instance_boundaries_ref(ids)
    return torch.ops.pix2pixhd_fast.instance_boundaries(ids)


def instance_boundaries_ref(ids: Tensor) -> Tensor:
    edges = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
    vertical = ids[:, :, 1:] != ids[:, :, :-1]
    horizontal = ids[..., 1:] != ids[..., :-1]
    edges[:, :, 1:] |= vertical
    edges[:, :, :-1] |= vertical
    edges[..., 1:] |= horizontal
    edges[..., :-1] |= horizontal
    return edges.to(torch.uint8)


def _launches(ids: Tensor, result: Tensor) -> list[Launch]:
    if ids.numel() == 0:
        return []
    copies = copies_of([] if ids.is_contiguous() else [ids])
    mark = "instance_boundaries.mark_boundaries"
    return [*copies, Launch(mark, bytes_of(ids), bytes_of(result), scratch=scratch_of(copies))]


define("instance_boundaries", "(Tensor ids) -> Tensor", instance_boundaries_ref)
register_launches("instance_boundaries", _launches)
