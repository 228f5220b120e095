"""The ops, by name: the files that are imported here have the cases of each."""

from pix2pixhd_fast.benchmark import layer_ops, loss_ops, scene_ops  # noqa: F401
from pix2pixhd_fast.benchmark.op_case import OPS

__all__ = ["OPS"]
