"""Real Cityscapes maps, where they are at hand."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pix2pixhd_fast.data import AlignedDataset, make_loader
from pix2pixhd_fast.data.folders import find_files
from pix2pixhd_fast.options import Options

ROOT = os.environ.get("PIX2PIXHD_FAST_CITYSCAPES") or str(
    Path(__file__).parents[2] / "shared" / "data" / "cityscapes"
)
pytestmark = pytest.mark.skipif(not os.path.isdir(ROOT), reason="no Cityscapes maps here")


def test_a_full_scene_is_exact():
    options = Options(dataroot=ROOT, resize_or_crop="none", no_flip=True)
    data = AlignedDataset(options)
    sample = data[0]
    files = dict.fromkeys(("label", "inst", "image"), sample["path"])
    files["inst"] = files["inst"].replace("label", "inst").replace("instIds", "instanceIds")
    files["image"] = files["image"].replace("label", "img").replace("gtFine_imgIds", "leftImg8bit")
    exact = {key: np.asarray(Image.open(path)) for key, path in files.items()}
    assert exact["inst"].max() > 2**15
    assert np.array_equal(sample["label"][0].numpy(), exact["label"])
    assert np.array_equal(sample["inst"][0].numpy(), exact["inst"])
    levels = (sample["image"].permute(1, 2, 0) + 1) * 127.5
    assert np.array_equal(levels.round().numpy(), exact["image"])


@pytest.mark.parametrize("training", [True, False])
def test_every_scene_pairs_by_its_name(training):
    files = find_files(Options(dataroot=ROOT, isTrain=training))
    for scene in zip(*files.values(), strict=True):
        assert len({"_".join(Path(path).name.split("_")[:3]) for path in scene}) == 1


def test_an_epoch_with_workers_is_the_epoch_without():
    flags = {"dataroot": ROOT, "resize_or_crop": "scale_width_and_crop", "fineSize": 256}
    options = [Options(**flags, batchSize=2, nThreads=workers) for workers in (0, 2)]
    plain, parallel = (list(make_loader(AlignedDataset(o), o, epoch=2, start=2)) for o in options)
    assert len(plain) == len(parallel) == 2
    for a, b in zip(plain, parallel, strict=True):
        assert a["path"] == b["path"]
        assert all(torch.equal(a[key], b[key]) for key in ("label", "inst", "image"))
