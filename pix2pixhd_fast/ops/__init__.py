"""One file per op: schema, reference, autograd and the public function, which is the contract."""

from pix2pixhd_fast.ops.instance_boundaries import instance_boundaries

__all__ = ["instance_boundaries"]
