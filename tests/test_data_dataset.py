"""Samples: their keys, types and sizes, and how they depend on epoch and index."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from pix2pixhd_fast.data import AlignedDataset
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import Options


def write_scenes(root, count=4, size=(20, 30), phase="train"):
    """Scenes whose instance map, features and green channel follow from the label map."""
    random = np.random.default_rng(0)
    for folder in ("label", "inst", "img", "feat"):
        (root / f"{phase}_{folder}").mkdir(exist_ok=True)
    for i in range(count):
        label = random.integers(0, 35, size, np.uint8)
        inst = label * np.uint16(1000)
        image = np.stack([label * 7, 255 - label, random.integers(0, 255, size)], 2)
        Image.fromarray(label).save(root / f"{phase}_label" / f"s{i}_gtFine_labelIds.png")
        Image.fromarray(inst).save(root / f"{phase}_inst" / f"s{i}_gtFine_instanceIds.png")
        picture = Image.fromarray(image.astype(np.uint8))
        picture.save(root / f"{phase}_img" / f"s{i}_leftImg8bit.png")
        np.save(root / f"{phase}_feat" / f"s{i}.npy", np.stack([label, inst / 8], 2).astype("f4"))
    return root


@pytest.fixture
def scenes(tmp_path):
    return write_scenes(tmp_path)


def dataset(root, **flags):
    flags = {"resize_or_crop": "crop", "fineSize": 16} | flags
    return AlignedDataset(Options(dataroot=str(root), **flags))


def test_keys_types_and_sizes_of_a_training_sample(scenes):
    sample = dataset(scenes)[1]
    assert set(sample) == {"label", "inst", "image", "path"}
    found = {key: (v.dtype, tuple(v.shape)) for key, v in sample.items() if key != "path"}
    assert found == {
        "label": (torch.uint8, (1, 16, 16)),
        "inst": (torch.int32, (1, 16, 16)),
        "image": (torch.float32, (3, 16, 16)),
    }
    assert sample["path"] == str(scenes / "train_label" / "s1_gtFine_labelIds.png")
    assert all(v.is_contiguous() for key, v in sample.items() if key != "path")


def test_keys_that_are_not_in_use_are_absent(scenes):
    write_scenes(scenes, phase="test")
    assert set(dataset(scenes, no_instance=True)[0]) == {"label", "image", "path"}
    assert set(dataset(scenes, isTrain=False)[0]) == {"label", "inst", "path"}
    flags = {"isTrain": False, "use_encoded_image": True, "instance_feat": True}
    assert set(dataset(scenes, **flags)[0]) == {"label", "inst", "image", "path"}
    flags = {"isTrain": False, "load_features": True, "instance_feat": True, "feat_num": 2}
    assert set(dataset(scenes, **flags)[0]) == {"label", "inst", "feat", "path"}


# 48 / 30 has no centre between two pixels, where 16-bit maps are rounded differently.
@pytest.mark.parametrize(
    "flags", [{}, {"resize_or_crop": "scale_width_and_crop", "loadSize": 48, "fineSize": 24}]
)
def test_everything_in_a_sample_shows_the_same_pixels(scenes, flags):
    data = dataset(scenes, instance_feat=True, load_features=True, feat_num=2, **flags)
    views = set()
    for epoch in range(1, 9):
        for i in range(len(data)):
            sample = data[epoch, i]
            label = sample["label"].float()
            assert torch.equal(sample["feat"][:1], label)
            assert torch.equal(sample["feat"][1:], sample["inst"] / 8)
            assert torch.equal(sample["inst"], sample["label"].int() * 1000)
            if not flags:
                green = 255 - (sample["image"][1:2] + 1) * 127.5
                torch.testing.assert_close(green, label, atol=1e-3, rtol=0)
            if i == 0:
                views.add(label.numpy().tobytes())
    assert len(views) == 8


def test_a_sample_depends_on_seed_epoch_and_index_alone(scenes):
    data = dataset(scenes)
    first = data[3, 2]
    assert torch.equal(data[1]["image"], data[1, 1]["image"])
    again = pickle.loads(pickle.dumps(dataset(scenes, max_dataset_size=3)))
    torch.manual_seed(5)
    assert all(torch.equal(again[3, 2][key], first[key]) for key in ("label", "inst", "image"))
    assert not torch.equal(data[4, 2]["image"], first["image"])
    assert not torch.equal(dataset(scenes, seed=1)[3, 2]["image"], first["image"])


def test_half_of_the_samples_are_mirrored_and_none_with_no_flip(scenes):
    plain = dataset(scenes, resize_or_crop="none", n_downsample_global=1, no_flip=True)
    mirrored = dataset(scenes, resize_or_crop="none", n_downsample_global=1)
    states = [
        (torch.equal(a, b), torch.equal(a, b.flip(2)))
        for epoch in range(30)
        for a, b in [(mirrored[epoch, 0]["image"], plain[epoch, 0]["image"])]
    ]
    assert all(same != flipped for same, flipped in states)
    assert 5 < sum(flipped for _, flipped in states) < 25


def test_limits_on_the_number_of_samples(scenes):
    write_scenes(scenes, phase="test")
    assert len(dataset(scenes, max_dataset_size=3, batchSize=2, ntest=1)) == 3
    assert len(dataset(scenes, isTrain=False, ntest=2)) == 2
    assert len(dataset(scenes, isTrain=False, ntest=3, max_dataset_size=1)) == 1
    data = dataset(scenes)
    assert len(data) == len(data.paths) == 4
    assert data[-1]["path"] == data.paths[3]
    assert len(list(data)) == 4
    with pytest.raises(IndexError):
        data[4]


def test_pictures_as_input(tmp_path):
    random = np.random.default_rng(0)
    flags = {"label_nc": 0, "no_instance": True, "resize_or_crop": "none", "n_downsample_global": 1}
    for folder in ("train_A", "train_B"):
        (tmp_path / folder).mkdir()
    picture = random.integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "train_B" / "x.png")
    Image.fromarray(picture).save(tmp_path / "train_A" / "x.png")
    sample = dataset(tmp_path, **flags)[0]
    assert set(sample) == {"label", "image", "path"}
    assert sample["label"].dtype == torch.float32
    assert torch.equal(sample["label"], sample["image"])
    assert sample["path"] == str(tmp_path / "train_A" / "x.png")
    (tmp_path / "train_A" / "x.png").unlink()
    np.save(tmp_path / "train_A" / "x.npy", picture[:, :, [0, 1, 2, 0, 1, 2]])
    sample = dataset(tmp_path, input_nc=6, **flags)[0]
    assert torch.equal(sample["label"], sample["image"].repeat(2, 1, 1))
    with pytest.raises(InputError, match=r"x\.npy has 6 channels.*input_nc is 3"):
        dataset(tmp_path, **flags)[0]


def test_eight_bit_features_are_normalised_and_scaled_like_labels(scenes):
    for i in range(4):
        (scenes / "train_feat" / f"s{i}.npy").unlink()
        label = Image.open(scenes / "train_label" / f"s{i}_gtFine_labelIds.png")
        label.convert("RGB").save(scenes / "train_feat" / f"s{i}.png")
    flags = {"resize_or_crop": "scale_width", "loadSize": 47}
    sample = dataset(scenes, label_feat=True, load_features=True, **flags)[0]
    expected = (sample["label"] / 255 * 2 - 1).expand(3, -1, -1)
    torch.testing.assert_close(sample["feat"], expected, atol=1e-6, rtol=0)


def test_large_ids_make_int64_instances_and_large_label_nc_int32_labels(scenes):
    (scenes / "train_inst" / "s0_gtFine_instanceIds.png").unlink()
    np.save(scenes / "train_inst" / "s0.npy", np.full((20, 30), 2**31))
    data = dataset(scenes, label_nc=300)
    assert (data[0]["inst"] == 2**31).all()
    assert (data[0]["inst"].dtype, data[1]["inst"].dtype) == (torch.int64, torch.int32)
    assert data[0]["label"].dtype == torch.int32


def test_files_of_one_scene_that_differ_in_size_are_named(scenes):
    Image.new("L", (31, 20)).save(scenes / "train_inst" / "s2_gtFine_instanceIds.png")
    with pytest.raises(
        InputError, match=r"s2_gtFine_ins\S+ is 31x20 and \S+/s2_gtFine_l\S+ is 30x20"
    ):
        dataset(scenes)[2]


def test_a_broken_file_is_named_when_it_is_read(scenes):
    (scenes / "train_img" / "s1_leftImg8bit.png").write_bytes(b"")
    data = dataset(scenes)
    data[0]
    with pytest.raises(InputError, match=r"s1_leftImg8bit\.png cannot be read \(the file is empty"):
        data[1]
