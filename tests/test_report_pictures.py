"""Label colours, pictures as arrays, and pictures on disk."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.report import files
from pix2pixhd_fast.report.colors import image_to_rgb, instances_to_rgb, label_to_rgb
from pix2pixhd_fast.report.pictures import save_picture


def test_cityscapes_labels_have_the_colours_of_the_data_set():
    label = torch.tensor([[7, 11, 21, 24], [26, 33, 34, 0]], dtype=torch.uint8)
    expected = [
        [(128, 64, 128), (70, 70, 70), (107, 142, 35), (220, 20, 60)],
        [(0, 0, 142), (119, 11, 32), (0, 0, 142), (0, 0, 0)],
    ]
    assert label_to_rgb(label, 35).tolist() == np.array(expected).tolist()
    assert label_to_rgb(label[None].int(), 36).tolist() == np.array(expected).tolist()
    assert label_to_rgb(label, 34)[1, 2].tolist() == [0, 0, 0], "34 is out of range there"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_ignored_and_unknown_ids_are_black(dtype):
    ids = torch.tensor([[255, 36]], dtype=dtype)
    assert label_to_rgb(ids, 35).sum() == 0
    assert label_to_rgb(ids, 20).sum() == 0
    if dtype != torch.uint8:
        assert label_to_rgb(-ids, 300).sum() == 0


def test_other_label_counts_get_one_colour_per_class():
    count = 1000
    colours = label_to_rgb(torch.arange(count, dtype=torch.int32)[None], count)
    assert colours.dtype == np.uint8 and colours.shape == (1, count, 3)
    assert len(np.unique(colours[0], axis=0)) == count
    known = {1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 9: (192, 0, 0)}
    for label, colour in known.items():
        assert tuple(colours[0, label]) == colour


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 1, 4, 4), (4,)])
def test_maps_of_another_shape_are_refused(shape):
    for colour in (lambda ids: label_to_rgb(ids, 35), instances_to_rgb):
        with pytest.raises(InputError, match=r"must be ids \[height, width\]"):
            colour(torch.zeros(shape, dtype=torch.int32))


def test_colouring_needs_classes():
    with pytest.raises(InputError, match="label_nc must be at least 1"):
        label_to_rgb(torch.zeros(2, 2, dtype=torch.int32), 0)


def test_instances_have_colours_of_their_own():
    ids = torch.cat([torch.arange(40), torch.arange(26000, 27000), torch.tensor([33001, 70000])])
    colours = instances_to_rgb(ids[None].int())[0]
    assert len(np.unique(colours, axis=0)) == len(ids)
    assert colours[0].tolist() == [0, 0, 0]
    neighbours = np.abs(np.diff(colours[40:-2].astype(int), axis=0)).max(axis=1)
    assert np.median(neighbours) > 60
    assert (instances_to_rgb(ids[50:51][None])[0, 0] == colours[50]).all(), "the id alone decides"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_survive_the_way_through_floats(dtype):
    levels = torch.arange(256, dtype=torch.uint8)
    image = (levels.to(dtype) / 255 - 0.5) / 0.5
    rgb = image_to_rgb(image.expand(3, 2, 256))
    assert rgb.shape == (2, 256, 3) and rgb.dtype == np.uint8 and rgb.flags.c_contiguous
    assert (rgb == levels.numpy()[None, :, None]).all()


def test_values_out_of_range_are_clamped_and_nan_is_black():
    row = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.5, -1.5, 0.0])
    rgb = image_to_rgb(row.expand(3, 1, 6).requires_grad_())
    assert rgb[0, :, 0].tolist() == [0, 255, 0, 255, 0, 128]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_becomes_rgb(channels):
    image = torch.linspace(-1, 1, channels * 6, dtype=torch.bfloat16).reshape(channels, 2, 3)
    rgb = image_to_rgb(image)
    bytes_ = ((image.float() + 1) * 127.5).round().numpy().astype(np.uint8)
    expected = {1: [0, 0, 0], 2: [0, 1], 3: [0, 1, 2], 5: [0, 1, 2]}[channels]
    for place, channel in enumerate(expected):
        assert (rgb[..., place] == bytes_[channel]).all()
    if channels == 2:
        assert (rgb[..., 2] == 0).all()


def test_images_of_integers_or_without_channels_are_refused():
    for image in (torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(2, 2), torch.zeros(0, 2, 2)):
        with pytest.raises(InputError, match="image must be floats"):
            image_to_rgb(image)


def gradient(height=24, width=32):
    ramp = np.linspace(0, 255, height * width).reshape(height, width)
    return np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=-1).astype(np.uint8)


def test_png_is_exact_and_jpeg_is_close(tmp_path):
    array = gradient()
    save_picture(array, tmp_path / "a.png")
    save_picture(array, str(tmp_path / "a.JPG"), quality=95)
    save_picture(array[..., 0], tmp_path / "grey.png")
    assert (np.asarray(Image.open(tmp_path / "a.png")) == array).all()
    assert (np.asarray(Image.open(tmp_path / "grey.png")) == array[..., 0]).all()
    with Image.open(tmp_path / "a.JPG") as jpeg:
        assert jpeg.format == "JPEG"
        assert np.abs(np.asarray(jpeg).astype(int) - array).mean() < 3
    assert sorted(os.listdir(tmp_path)) == ["a.JPG", "a.png", "grey.png"]


def test_quality_makes_files_larger(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save_picture(noise, tmp_path / "low.jpg", quality=20)
    save_picture(noise, tmp_path / "high.jpg", quality=95)
    assert (tmp_path / "high.jpg").stat().st_size > 2 * (tmp_path / "low.jpg").stat().st_size


def test_pictures_are_widened_not_heightened(tmp_path):
    save_picture(gradient(24, 32), tmp_path / "wide.png", width_factor=1.5)
    assert Image.open(tmp_path / "wide.png").size == (48, 24)


def test_the_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_picture(gradient(), tmp_path / "a.png")
    finally:
        os.umask(before)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "a.bmp"}, "must end in .jpg, .jpeg, .png"),
        ({"array": np.zeros((2, 2, 3))}, "must be uint8"),
        ({"array": np.zeros((2, 2, 4), np.uint8)}, "must be uint8"),
        ({"array": np.zeros((0, 2, 3), np.uint8)}, "must be uint8"),
        ({"quality": 0}, "quality of .* between 1 and 100, got 0"),
        ({"width_factor": 0.0}, "width_factor of .* positive number"),
        ({"width_factor": float("nan")}, "width_factor of .* positive number"),
        ({"path": "missing/a.png"}, "cannot be written: No such file"),
    ],
)
def test_what_cannot_be_saved_is_said_with_the_path(tmp_path, change, message):
    arguments = {"array": gradient(), "path": "a.jpg"} | change
    path = tmp_path / arguments.pop("path")
    with pytest.raises(InputError, match=message) as caught:
        save_picture(path=path, **arguments)
    assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InputError, match="a.png cannot be written"):
        save_picture(gradient(), tmp_path / "a.png")
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_the_old_picture(tmp_path, monkeypatch, error):
    path = tmp_path / "a.png"
    save_picture(gradient(), path)
    old = path.read_bytes()

    def fail(picture, file, **options):
        file.write(b"half a picture")
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        save_picture(gradient()[::-1], path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.png"]


def test_file_names_fit_and_stay_apart():
    assert files.file_name("Köln 100% #1", ".jpg") == "Köln 100% #1.jpg"
    assert files.file_name("a/b\\c\nd\0", ".jpg") == "a_b_c_d_.jpg"
    long = [files.file_name("ü" * 200 + end, ".jpg") for end in "ab"]
    assert long[0] != long[1]
    for name in long:
        assert len(os.fsencode(name)) <= 255 and name.endswith(".jpg")


def test_a_picture_too_wide_for_a_jpeg_is_refused(tmp_path):
    with pytest.raises(InputError, match="wide.jpg would be 32000000000x24: a JPEG has at most"):
        save_picture(gradient(), tmp_path / "wide.jpg", width_factor=1e9)
    assert not list(tmp_path.iterdir())
