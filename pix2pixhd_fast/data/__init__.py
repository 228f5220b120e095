"""Pictures, label maps and instance maps from folders, as batches."""

from pix2pixhd_fast.data.dataset import AlignedDataset
from pix2pixhd_fast.data.loader import make_loader

__all__ = ["AlignedDataset", "make_loader"]
