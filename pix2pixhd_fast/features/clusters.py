"""Encoded instances of a data set, and K-means of those of each class."""

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.features.bank import FeatureBank
from pix2pixhd_fast.features.files import load_arrays, read_original, save_arrays

# Instances of less than a 64th of the picture are dropped, as in the original.
LEAST_AREA = 0.5


@dataclass(frozen=True)
class Encoded:
    """Instances: `labels` int64 [K], the class of each; `vectors` float32 [K, F]; `areas` [K].

    Areas are in 32nds of the picture, as in the original.
    """

    labels: np.ndarray
    vectors: np.ndarray
    areas: np.ndarray

    @classmethod
    def load(cls, path: str | PathLike) -> "Encoded":
        """Read `.npz` as `save` writes it, or the original's `.npy`; `InputError` otherwise."""
        path = Path(path)
        if path.suffix != ".npy":
            return cls(**load_arrays(path, ("labels", "vectors", "areas")))
        by_class = {label: rows for label, rows in read_original(path).items() if len(rows)}
        if not by_class:
            raise InputError(f"{path} holds no instance: it must hold the features of some")
        rows = np.concatenate([*by_class.values()])
        labels = np.repeat([*by_class], [len(rows) for rows in by_class.values()])
        return cls(labels.astype(np.int64), rows[:, :-1].astype(np.float32), rows[:, -1])

    def save(self, path: str | PathLike) -> None:
        """Write `.npz` with `labels`, `vectors`, `areas`."""
        save_arrays(Path(path), labels=self.labels, vectors=self.vectors, areas=self.areas)

    @classmethod
    def join(cls, parts: Iterable["Encoded"]) -> "Encoded":
        """The instances of all parts, one after another."""
        columns = zip(*((part.labels, part.vectors, part.areas) for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))


def cluster(encoded: Encoded, n_clusters: int = 10, seed: int = 0) -> FeatureBank:
    """K-means of the vectors of each class: `n_clusters`, or as many as there are instances.

    Instances of at most half of a 32nd of the picture are dropped; a class of which nothing is left
    has no clusters. The same seed gives the same clusters. Raises `InputError` where no instance of
    any class is left.
    """
    from sklearn.cluster import KMeans

    large = encoded.areas > LEAST_AREA
    centers = {}
    for label in np.unique(encoded.labels[large]):
        vectors = encoded.vectors[large & (encoded.labels == label)]
        different = len(np.unique(vectors, axis=0))
        means = KMeans(min(n_clusters, different), n_init=10, random_state=seed).fit(vectors)
        centers[label] = means.cluster_centers_
    if not centers:
        raise InputError(
            f"no instance covers a 64th of a picture: the largest of {len(encoded.areas)} covers "
            f"{encoded.areas.max(initial=0) / 32:.2g} of it, and smaller ones are dropped"
        )
    return FeatureBank(centers)
