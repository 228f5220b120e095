"""Features of instances: encoded, clustered by class, sampled."""

from pix2pixhd_fast.features.bank import FeatureBank
from pix2pixhd_fast.features.clusters import Encoded, cluster

__all__ = ["Encoded", "FeatureBank", "cluster"]
