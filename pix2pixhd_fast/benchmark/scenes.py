"""Inputs: seeded blocks of labels and instances, as uniform as real scenes are; a real scene."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pix2pixhd_fast.data.images import instance_type, read_instances

# Of a Cityscapes map 90 % of the pixels have a 7x7 neighbourhood without an edge; of squares of
# this side (122 / 128)^2 = 91 %. Small pictures have smaller ones: where all is of one label, norms
# blow rounding errors up.
BLOCK = 128


def instance_ids(size: tuple[int, int], batch: int, dtype: torch.dtype) -> Tensor:
    """[N, 1, H, W], one id per block."""
    width, height = size
    block = min(BLOCK, max(height // 4, 1))
    rows, columns = torch.arange(height) // block, torch.arange(width) // block
    ids = rows[:, None] * (width // block + 1) + columns
    return ids.to(dtype).expand(batch, 1, height, width).contiguous()


def real_instance_maps() -> list[Path]:
    """The instance maps below PIX2PIXHD_FAST_CITYSCAPES, by name; none where it is unset."""
    folder = os.getenv("PIX2PIXHD_FAST_CITYSCAPES")
    return sorted(Path(folder, "train_inst").glob("*.png")) if folder else []


def real_ids(path: Path, size: tuple[int, int], batch: int) -> Tensor:
    """The instance map of a file, nearest neighbour, as [N, 1, H, W]."""
    ids = read_instances(str(path))
    rows, columns = (np.arange(n) * old // n for n, old in zip(size[::-1], ids.shape, strict=True))
    seen = torch.from_numpy(ids[rows[:, None], columns].astype(instance_type(ids)))
    return seen.expand(batch, 1, *seen.shape).contiguous()


def labels(size: tuple[int, int], batch: int, label_nc: int) -> Tensor:
    """uint8 (int32 where an id needs it) [N, 1, H, W], one random id per block."""
    ids = instance_ids(size, batch, torch.int64)
    drawn = torch.randint(0, label_nc, (int(ids.max()) + 1,), generator=seeded())
    return drawn[ids].to(torch.uint8 if label_nc <= 256 else torch.int32)


def real_scene(size: tuple[int, int], batch: int) -> tuple[Tensor, Tensor] | None:
    """Labels, uint8, and instance ids, int32, [N, 1, H, W] each, of the first scenes of Cityscapes.

    They are scaled to `size`. None where PIX2PIXHD_FAST_CITYSCAPES names no folder with them.
    """
    folder = Path(os.getenv("PIX2PIXHD_FAST_CITYSCAPES", "nowhere"))
    maps = []
    for name, dtype in (("train_label", np.uint8), ("train_inst", np.int32)):
        paths = sorted((folder / name).glob("*.png"))[:batch]
        if len(paths) < batch:
            return None
        pictures = [Image.open(path).resize(size, Image.Resampling.NEAREST) for path in paths]
        maps.append(torch.from_numpy(np.stack([np.asarray(p, dtype) for p in pictures])[:, None]))
    return maps[0], maps[1]


def noise_labels(size: tuple[int, int], batch: int, label_nc: int) -> Tensor:
    """As `labels`, but each pixel drawn by itself: no two neighbours belong together."""
    shape = (batch, 1, size[1], size[0])
    drawn = torch.randint(0, label_nc, shape, generator=seeded())
    return drawn.to(torch.uint8 if label_nc <= 256 else torch.int32)


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """float32, mean 0, deviation 1."""
    return torch.randn(shape, generator=seeded(seed))


def picture(size: tuple[int, int], batch: int, channels: int) -> Tensor:
    """float32 [N, C, H, W], even in [-1, 1]."""
    return torch.rand((batch, channels, size[1], size[0]), generator=seeded()) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own for everything that is drawn."""
    return torch.Generator().manual_seed(seed)
