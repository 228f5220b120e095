"""One file per op: schema, reference, autograd and the public function, which is the contract."""

from pix2pixhd_fast.ops.channel_statistics import channel_statistics
from pix2pixhd_fast.ops.feature_matching_loss import Feature, feature_matching_loss
from pix2pixhd_fast.ops.instance_boundaries import instance_boundaries
from pix2pixhd_fast.ops.instance_mean_pool import InstanceMeans, instance_mean_pool
from pix2pixhd_fast.ops.label_conv2d import label_conv2d
from pix2pixhd_fast.ops.matched_norm_backward import (
    Matching,
    match_features,
    matched_norm_backward,
)
from pix2pixhd_fast.ops.multiscale_gan_loss import multiscale_gan_loss
from pix2pixhd_fast.ops.norm_act_conv import Conv, norm_act_conv
from pix2pixhd_fast.ops.norm_act_pad import Norm, norm_act_pad, normalise
from pix2pixhd_fast.ops.perceptual_l1 import perceptual_l1
from pix2pixhd_fast.ops.residual_block import Bordered, residual_block

__all__ = [
    "Bordered",
    "Conv",
    "Feature",
    "InstanceMeans",
    "Matching",
    "Norm",
    "channel_statistics",
    "feature_matching_loss",
    "instance_boundaries",
    "instance_mean_pool",
    "label_conv2d",
    "match_features",
    "matched_norm_backward",
    "multiscale_gan_loss",
    "norm_act_conv",
    "norm_act_pad",
    "normalise",
    "perceptual_l1",
    "residual_block",
]
