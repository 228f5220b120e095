"""One file per op: schema, reference, autograd and the public function, which is the contract."""

from pix2pixhd_fast.ops.instance_boundaries import instance_boundaries
from pix2pixhd_fast.ops.norm_act_pad import norm_act_pad

__all__ = ["instance_boundaries", "norm_act_pad"]
