"""Checkpoint folders of the original's format: written all or nothing, read strictly, explained."""

from pix2pixhd_fast.checkpoints.folder import CheckpointFolder
from pix2pixhd_fast.checkpoints.pretrain import PretrainReport, load_pretrained

__all__ = ["CheckpointFolder", "PretrainReport", "load_pretrained"]
