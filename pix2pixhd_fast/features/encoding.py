"""E over a data set: the features of every instance, or whole feature maps on disk."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pix2pixhd_fast.checkpoints import CheckpointFolder
from pix2pixhd_fast.data import AlignedDataset, make_loader
from pix2pixhd_fast.data.images import read_size
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.features.bank import FeatureBank, class_of
from pix2pixhd_fast.features.clusters import Encoded, cluster
from pix2pixhd_fast.features.files import save_arrays
from pix2pixhd_fast.model import Batch, Pix2PixHD
from pix2pixhd_fast.nn.norms import keep_running_statistics
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.report.files import make_folder
from pix2pixhd_fast.semantic import pad_by_edge
from pix2pixhd_fast.training.progress import progress_bar

DTYPES = {"float16": np.float16, "float32": np.float32}
_OF_A_PICTURE = 32  # areas are counted in such parts


class FeatureEncoder:
    """E of the checkpoint `which_epoch`, over the pictures of `<phase>_label`, one at a time.

    The options are those of `test`; instances are of the instance maps, with `label_feat` of the
    label maps. The constructor finds data and checkpoint. Raises `InputError` for bad input.
    """

    def __init__(self, options: Options):
        if options.load_features:
            raise InputError("load_features must be left out: the features are computed here")
        self.options = o = replace(
            options,
            isTrain=False,
            batchSize=1,
            instance_feat=options.instance_feat or not options.label_feat,
            use_encoded_image=True,
        )
        self.dataset = AlignedDataset(o)
        self.model = Pix2PixHD(o)
        self.folder = Path(o.checkpoints_dir) / o.name
        CheckpointFolder(self.folder).load(o.which_epoch, {"E": self.model.netE}, o)

    def encode(self) -> tuple[Encoded, FeatureBank]:
        """Encode every instance and cluster them; write both beside the checkpoint.

        `features.npz` (`Encoded`) and `features_clustered_<n_clusters>.npz` (`FeatureBank`), the
        names of the original with another ending.
        """
        o = self.options
        encoded = Encoded.join(encoded_instances(ids, feat) for _, ids, feat in self._maps())
        bank = cluster(encoded, o.n_clusters, o.seed)
        encoded.save(self.folder / "features.npz")
        bank.save(self.folder / f"features_clustered_{o.n_clusters:03d}.npz")
        return encoded, bank

    def precompute(self, dtype: str = "float16") -> Path:
        """Write the feature map of every picture for `load_features`; return the folder.

        `<dataroot>/<phase>_feat/<name of the label file>.npz`, one array [H, W, feat_num] of
        "float16" or "float32" of the size of the label file, whatever the pictures were scaled to.
        """
        o = self.options
        if dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if o.resize_or_crop.endswith("crop"):
            raise InputError(
                f"resize_or_crop must not crop: features are of whole pictures, "
                f"got {o.resize_or_crop}"
            )
        root = Path(o.dataroot)
        labels = root / f"{o.phase}_{'label' if o.label_nc else 'A'}"
        target = root / f"{o.phase}_feat"
        for path, _, feat in self._maps():
            height, width = read_size(str(path))
            full = torch.nn.functional.interpolate(feat, (height, width), mode="nearest-exact")
            file = (target / path.relative_to(labels)).with_suffix(".npz")
            make_folder(file.parent)
            save_arrays(file, feat=full[0].permute(1, 2, 0).numpy().astype(DTYPES[dtype]))
        return target

    def _maps(self) -> Iterator[tuple[Path, Tensor, Tensor]]:
        """Label file, ids [1, 1, H, W] and features [1, F, H, W] of each picture, on the CPU."""
        with progress_bar(len(self.dataset), description="encode") as bar:
            for batch in make_loader(self.dataset, self.options):
                path = Path(batch.pop("path")[0])
                yield path, *encode_maps(self.model, batch)
                bar.update()


@torch.no_grad()
def encode_maps(model: Pix2PixHD, batch: Batch) -> tuple[Tensor, Tensor]:
    """What E makes of pictures: ids [N, 1, H, W], and float32 features [N, F, H, W], on the CPU."""
    with keep_running_statistics(model), model.autocast():
        inputs = model.encode_inputs(batch)
        feat = model.netE(pad_by_edge(inputs.image, inputs.padded), inputs.ids)
    return inputs.crop(inputs.ids).cpu(), inputs.crop(feat).float().cpu()


def encoded_instances(ids: Tensor, feat: Tensor) -> Encoded:
    """The vector at the middle pixel of each instance of one picture, by id.

    `ids` [1, 1, H, W], `feat` [1, F, H, W]. The middle is that of the pixels in their order.
    """
    flat = ids.flatten().numpy()
    order = np.argsort(flat, kind="stable")
    found, first, counts = np.unique(flat[order], return_index=True, return_counts=True)
    middle = order[first + counts // 2]
    vectors = feat[0].flatten(1)[:, torch.from_numpy(middle)].T.contiguous().numpy()
    part = max(len(flat) // _OF_A_PICTURE, 1)
    return Encoded(class_of(found.astype(np.int64)), vectors, counts / part)
