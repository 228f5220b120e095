"""A model and a data set that train in a second."""

from pathlib import Path

import numpy as np
from PIL import Image

SMALL_NETWORKS = dict(
    ngf=4,
    n_downsample_global=2,
    n_blocks_global=1,
    n_blocks_local=1,
    ndf=4,
    nef=4,
    n_downsample_E=2,
)
SMALL = dict(
    **SMALL_NETWORKS,
    label_nc=5,
    no_vgg_loss=True,
    nThreads=0,
    loadSize=32,
    fineSize=24,
    device="cpu",
)


def write_pictures(root: Path, count: int) -> None:
    """The folders of both phases: labels, instances and images of 32x24 pixels."""
    random = np.random.default_rng(0)
    for phase in ("train", "test"):
        for kind in ("label", "inst", "img"):
            (root / f"{phase}_{kind}").mkdir(parents=True)
        for i in range(count):
            label = random.integers(0, 5, (24, 32)).astype(np.uint8)
            image = random.integers(0, 255, (24, 32, 3)).astype(np.uint8)
            Image.fromarray(label).save(root / f"{phase}_label/{i}.png")
            Image.fromarray(label.astype(np.uint16) * 1000).save(root / f"{phase}_inst/{i}.png")
            Image.fromarray(image).save(root / f"{phase}_img/{i}.png")
