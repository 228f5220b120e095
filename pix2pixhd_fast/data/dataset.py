"""The data set: scene i of an epoch as a dict of tensors."""

import numpy as np
import torch
from torch.utils.data import Dataset

from pix2pixhd_fast.data.folders import find_files
from pix2pixhd_fast.data.images import (
    instance_type,
    label_type,
    read_instances,
    read_labels,
    read_picture,
)
from pix2pixhd_fast.data.transforms import View, draw_view, normalised, view_map, view_picture
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import Options

Sample = dict[str, torch.Tensor | str]
_ORDER, _VIEW = 1, 2


class AlignedDataset(Dataset[Sample]):
    """Scenes: label map (or input picture), instance map, real picture, features of one size.

    `dataset[i]` and `dataset[epoch, i]` give a dict; `dataset[i]` is epoch 1. In this order: files
    are decoded and checked, scaled by `resize_or_crop`, cropped, mirrored; crop and mirroring
    depend on (seed, epoch, i) alone and are the same for all tensors of the sample.

    - `label`: ids uint8 (int32 if `label_nc` > 256 or `ignore_label` > 255) [1, H, W]; pixels of
      `ignore_label` keep that id. With `label_nc` 0: float32 [-1, 1] [input_nc, H, W].
    - `inst`: int32 (int64 where an id needs it) [1, H, W]; absent with `no_instance`.
    - `image`: float32 [-1, 1] [output_nc, H, W]; only if `options.needs_image`.
    - `feat`: float32 [feat_num, H, W]; only with `load_features`.
    - `path`: str, the label file; `paths` lists them all, in order.

    `max_dataset_size`, and `ntest` when not training, limit the number of scenes. Raises
    `InputError` for missing folders or partners on construction, and for files that cannot be used
    when they are read.
    """

    def __init__(self, options: Options):
        self.options = options
        most = options.max_dataset_size
        if not options.isTrain:
            most = min(most, options.ntest)
        self._files = {key: paths[:most] for key, paths in find_files(options).items()}
        self.paths = self._files["label"]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, which: int | tuple[int, int]) -> Sample:
        epoch, index = which if isinstance(which, tuple) else (1, which)
        index = range(len(self))[index]
        paths = {key: files[index] for key, files in self._files.items()}
        arrays = {key: self._read(key, path) for key, path in paths.items()}
        _check_sizes(arrays, paths)
        words = random_words(3, self.options.seed, epoch, _VIEW, index)
        view = draw_view(self.options, *arrays["label"].shape[:2], tuple(words.tolist()))
        sample = {key: self._tensor(key, array, view) for key, array in arrays.items()}
        sample["path"] = self.paths[index]
        return sample

    def _read(self, key: str, path: str) -> np.ndarray:
        o = self.options
        if key == "inst":
            return read_instances(path)
        if key == "image":
            return read_picture(path, o.output_nc, "output_nc")
        if key == "feat":
            return read_picture(path, o.feat_num, "feat_num")
        return read_labels(path, o) if o.label_nc else read_picture(path, o.input_nc, "input_nc")

    def _tensor(self, key: str, array: np.ndarray, view: View) -> torch.Tensor:
        if array.ndim == 2:
            kind = label_type(self.options) if key == "label" else instance_type(array)
            return torch.from_numpy(view_map(array, view).astype(kind, order="C"))[None]
        seen = view_map(array, view) if key == "feat" else view_picture(array, view)
        return torch.from_numpy(normalised(seen))


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The permutation of `count` scenes that (seed, epoch) stands for."""
    return random_words(count, seed, epoch, _ORDER).argsort(kind="stable").tolist()


def random_words(count: int, *key: int) -> np.ndarray:
    """`count` random words of 64 bits that depend on `key` alone.

    NumPy guarantees this stream across its versions, which it does not for the draws of a
    Generator.
    """
    return np.random.SeedSequence(key).generate_state(count, np.uint64)


def _check_sizes(arrays: dict[str, np.ndarray], paths: dict[str, str]) -> None:
    height, width = arrays["label"].shape[:2]
    for key, array in arrays.items():
        if array.shape[:2] != (height, width):
            raise InputError(
                f"{paths[key]} is {array.shape[1]}x{array.shape[0]} and {paths['label']} is "
                f"{width}x{height}: all files of a scene must be of the same size"
            )
