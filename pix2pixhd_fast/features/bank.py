"""The clusters of each class, and feature maps drawn from them."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pix2pixhd_fast.data.dataset import random_words
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.features.files import load_arrays, read_original, save_arrays
from pix2pixhd_fast.options import Options

ENCODE = "pix2pixhd-fast encode-features"
_STYLE = 3  # what is drawn, beside the order of an epoch and views


def class_of(ids: np.ndarray) -> np.ndarray:
    """The class of instance ids, as in Cityscapes: the id itself below 1000, else id // 1000."""
    return np.where(ids < 1000, ids, ids // 1000)


class FeatureBank:
    """`centers`: the clusters of each class, float32 [clusters, feat_num], by class.

    Raises `InputError` where a class has no cluster, or clusters are of different lengths.
    """

    def __init__(self, centers: Mapping[int, np.ndarray]):
        self.centers = {
            int(label): np.asarray(rows, np.float32) for label, rows in sorted(centers.items())
        }
        shapes = {rows.shape[1:] for rows in self.centers.values()}
        if len(shapes) != 1 or any(
            rows.ndim != 2 or not rows.size for rows in self.centers.values()
        ):
            found = {label: list(rows.shape) for label, rows in self.centers.items()}
            raise InputError(f"centers must be [clusters, feat_num] for each class, got {found}")
        self._chosen: dict[int, int] = {}

    @property
    def feat_num(self) -> int:
        """Channels of a feature."""
        return next(iter(self.centers.values())).shape[1]

    @classmethod
    def load(cls, path: str | PathLike) -> "FeatureBank":
        """Read clusters: `.npz` as `save` writes it, or the original's `.npy`.

        No code in a file is run. Raises `InputError` for a file that cannot be used.
        """
        path = Path(path)
        if path.suffix == ".npy":
            return cls(read_original(path))
        arrays = load_arrays(path, ("labels", "centers"))
        labels = arrays["labels"]
        return cls({label: arrays["centers"][labels == label] for label in np.unique(labels)})

    def save(self, path: str | PathLike) -> None:
        """Write `.npz`: labels int64 [K], the class of each cluster, centers float32 [K, F]."""
        labels = [np.full(len(rows), label) for label, rows in self.centers.items()]
        centers = np.concatenate([*self.centers.values()])
        save_arrays(Path(path), labels=np.concatenate(labels), centers=centers)

    def set(self, instance_id: int, cluster: int | None) -> None:
        """From now on the instance has this cluster of its class; None draws again.

        Raises `InputError` for a cluster that the class does not have.
        """
        if cluster is None:
            self._chosen.pop(instance_id, None)
            return
        label = int(class_of(np.asarray(instance_id)))
        count = len(self.centers.get(label, ()))
        if not 0 <= cluster < count:
            raise InputError(
                f"cluster must be one of the {count} of class {label} (from 0), got {cluster}"
            )
        self._chosen[instance_id] = cluster

    def choose(self, instance_id: int, seed: int = 0) -> int | None:
        """The cluster that `sample` takes for an instance; None where its class has none."""
        rows = self.centers.get(int(class_of(np.asarray(instance_id))))
        if rows is None:
            return None
        if instance_id in self._chosen:
            return self._chosen[instance_id]
        word = int(random_words(1, seed, instance_id, _STYLE)[0])
        return word * len(rows) >> 64

    def sample(self, inst: Tensor, seed: int = 0) -> Tensor:
        """Feature maps for instance maps (or, with `label_feat`, label maps).

        `inst`: integer ids from 0 up [N, 1, H, W]. Every instance gets one cluster of its class,
        unless `set` says which by a draw that depends on (`seed`, id) alone: an instance looks the
        same in every picture of a seed. Zero where the class has no cluster. Returns float32
        [N, feat_num, H, W] on the device of `inst`.
        """
        if inst.dim() != 4 or inst.shape[1] != 1 or inst.is_floating_point():
            raise InputError(
                f"inst must hold integer ids [N, 1, H, W], got {inst.dtype} {list(inst.shape)}"
            )
        if seed < 0:
            raise InputError(f"seed must be at least 0, got {seed}")
        found, index = inst.unique(return_inverse=True)
        if len(found) and found[0] < 0:
            raise InputError(f"inst must hold ids from 0 up, got {int(found[0])}")
        rows = torch.zeros(len(found), self.feat_num)
        for row, instance in zip(rows, found.tolist(), strict=True):
            number = self.choose(instance, seed)
            if number is not None:
                row.copy_(
                    torch.from_numpy(self.centers[int(class_of(np.asarray(instance)))][number])
                )
        return rows.to(inst.device)[index.squeeze(1)].permute(0, 3, 1, 2).contiguous()


def bank_of(options: Options) -> FeatureBank:
    """The clusters that `cluster_path` names beside the checkpoint, or the `.npz` of that name.

    Raises `InputError` where there are none, or where they have other than `feat_num` channels.
    """
    named = Path(options.checkpoints_dir) / options.name / options.cluster_path
    ours = named.with_suffix(".npz")
    path = named if named.is_file() else ours
    if not path.is_file():
        raise InputError(
            f"instance features need a source: {ours} is missing, which {ENCODE} writes; or add "
            "use_encoded_image (from the real pictures) or load_features"
        )
    bank = FeatureBank.load(path)
    if bank.feat_num != options.feat_num:
        raise InputError(
            f"{path} has features of {bank.feat_num} channels: feat_num must be that, "
            f"got {options.feat_num}"
        )
    return bank
