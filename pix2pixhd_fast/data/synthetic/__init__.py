"""Synthetic street scenes with Cityscapes labels: data for demos and tests, without a download."""

from pix2pixhd_fast.data.synthetic.dataset import write_dataset
from pix2pixhd_fast.data.synthetic.render import Scene, scene

__all__ = ["Scene", "scene", "write_dataset"]
