"""From tensors to RGB arrays for people to look at."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pix2pixhd_fast.errors import InputError

# The colours of the Cityscapes label ids 0..33, and of the licence plate (-1 there) as 34.
CITYSCAPES = (
    *((0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (111, 74, 0), (81, 0, 81)),
    *((128, 64, 128), (244, 35, 232), (250, 170, 160), (230, 150, 140), (70, 70, 70)),
    *((102, 102, 156), (190, 153, 153), (180, 165, 180), (150, 100, 100), (150, 120, 90)),
    *((153, 153, 153), (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35)),
    *((152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70)),
    *((0, 60, 100), (0, 0, 90), (0, 0, 110), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
    (0, 0, 142),
)


def label_to_rgb(label: Tensor, label_nc: int) -> np.ndarray:
    """Colour a map of class ids: [1, H, W] or [H, W] -> uint8 [H, W, 3].

    The colours are those of Cityscapes when `label_nc` is 34, 35 or 36, otherwise a pattern of the
    bits of the id, distinct for all ids below 2^21 (0 is black). Ids that are not in [0, label_nc),
    such as an ignored 255, are black. Raises `InputError` for another shape or a `label_nc` below
    1.
    """
    if label_nc < 1:
        raise InputError(f"label_nc must be at least 1 to colour labels, got {label_nc}")
    ids = _plane(label, "label")
    palette = _palette(label_nc)
    return palette[np.where((ids >= 0) & (ids < label_nc), ids, label_nc)]


def instances_to_rgb(inst: Tensor) -> np.ndarray:
    """Colour a map of instance ids: [1, H, W] or [H, W] -> uint8 [H, W, 3].

    The colour depends on the id alone, so an instance keeps it from picture to picture; ids that
    differ in their lowest 24 bits have different colours, and neighbouring ids unlike ones. 0 is
    black. Raises `InputError` for another shape.
    """
    mixed = _plane(inst, "inst") & 0xFFFFFF
    for factor in (0x9E3779, 0x85EBCB):  # odd: each step is one to one on 24 bits
        mixed = (mixed * factor) & 0xFFFFFF
        mixed ^= mixed >> 12
    return np.stack([mixed & 255, (mixed >> 8) & 255, mixed >> 16], axis=-1).astype(np.uint8)


def image_to_rgb(image: Tensor) -> np.ndarray:
    """Turn a picture of floats in [-1, 1], [C, H, W], into bytes: uint8 [H, W, 3].

    Values are clamped and rounded to the nearest byte, so that a picture read from bytes comes back
    exactly; NaN becomes 0. One channel is grey, two lack blue, of more than three the first three
    are shown. Raises `InputError` for another shape or integers.
    """
    if image.ndim != 3 or image.shape[0] == 0 or not image.is_floating_point():
        raise InputError(
            f"image must be floats [channels, height, width], got {image.dtype} {list(image.shape)}"
        )
    image = image.detach()[:3].float()
    pixels = torch.nan_to_num((image + 1) * 127.5, nan=0.0).clamp(0, 255).round().to(torch.uint8)
    channels, height, width = pixels.shape
    if channels == 1:
        pixels = pixels.expand(3, height, width)
    elif channels == 2:
        pixels = torch.cat([pixels, pixels.new_zeros(1, height, width)])
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


@lru_cache(maxsize=4)
def _palette(label_nc: int) -> np.ndarray:
    """uint8 [label_nc + 1, 3]: one colour per class, and black for everything else."""
    palette = np.zeros((label_nc + 1, 3), dtype=np.uint8)
    if 34 <= label_nc <= 36:
        known = min(label_nc, len(CITYSCAPES))
        palette[:known] = CITYSCAPES[:known]
        return palette
    ids = np.arange(label_nc)
    for place in range(7):
        for channel in range(3):
            bit = (ids >> (3 * place + channel)) & 1
            palette[:label_nc, channel] |= (bit << (7 - place)).astype(np.uint8)
    return palette


def _plane(ids: Tensor, argument: str) -> np.ndarray:
    """int64 [H, W] of a map of ids [1, H, W] or [H, W]."""
    if ids.ndim == 3 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 2:
        raise InputError(
            f"{argument} must be ids [height, width] or [1, height, width], got {list(ids.shape)}"
        )
    return ids.detach().cpu().to(torch.int64).numpy()
