"""Scaled, cropped and mirrored samples of the original, recorded."""

from pathlib import Path

import numpy as np
import pytest

from pix2pixhd_fast.data.images import read_instances, read_labels, read_picture
from pix2pixhd_fast.data.transforms import View, normalised, scaled_size, view_map, view_picture
from pix2pixhd_fast.options import RESIZE_OR_CROP, Options

GOLDEN = Path(__file__).parent / "golden" / "data_pipeline"


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "expected.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("mode", RESIZE_OR_CROP)
def test_samples_are_those_of_the_original(mode, mirrored, expected):
    options = Options(resize_or_crop=mode, loadSize=192, fineSize=96)
    label = read_labels(str(GOLDEN / "label.png"), options)
    inst = read_instances(str(GOLDEN / "inst.png"))
    image = read_picture(str(GOLDEN / "image.png"), 3, "output_nc")
    wanted = {
        key: expected[f"{mode}.{'flip' if mirrored else 'noflip'}.{key}"]
        for key in ("label", "inst", "image")
    }
    height, width = scaled_size(*label.shape, options)
    rows, columns = wanted["label"].shape[1:]
    # The place of a recorded crop is not known: all that show the recorded instances are tried.
    matches = []
    for top in range(height - rows + 1):
        for left in range(width - columns + 1):
            view = View(height, width, top, left, rows, columns, mirrored)
            if np.array_equal(view_map(inst, view), wanted["inst"][0]):
                matches.append(view)
    errors = []
    for view in matches:
        assert np.array_equal(view_map(label, view), wanted["label"][0])
        errors.append(abs(normalised(view_picture(image, view)) - wanted["image"]).max())
    assert min(errors) <= 1e-6
