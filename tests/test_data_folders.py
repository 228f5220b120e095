"""Listing of data folders and pairing of files by name."""

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pix2pixhd_fast.data.folders import find_files, pair_files
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import Options


def touch(root, folder, *names):
    for name in names:
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names_of(files, key, root):
    return [os.path.relpath(path, root) for path in files[key]]


def test_natural_order_recursive_any_case_without_hidden_files(tmp_path):
    touch(tmp_path, "train_label", "f10.png", "f2.PNG", "b/f1.tif", ".f3.png", ".cache/f4.png")
    touch(tmp_path, "train_label", "notes.txt", "f3.npy", "Thumbs.db")
    touch(tmp_path, "train_img", "f10.jpg", "f2.jpeg", "b/f1.webp", "f3.bmp")
    files = find_files(Options(dataroot=str(tmp_path), no_instance=True))
    assert names_of(files, "label", tmp_path / "train_label") == [
        "b/f1.tif", "f2.PNG", "f3.npy", "f10.png",
    ]  # fmt: skip
    assert names_of(files, "image", tmp_path / "train_img") == [
        "b/f1.webp", "f2.jpeg", "f3.bmp", "f10.jpg",
    ]  # fmt: skip


def test_only_folders_that_the_options_ask_for(tmp_path):
    touch(tmp_path, "test_label", "a.png")
    options = {"dataroot": str(tmp_path), "isTrain": False}
    assert set(find_files(Options(**options, no_instance=True))) == {"label"}
    with pytest.raises(InputError, match="test_inst is missing: it must hold the instance maps"):
        find_files(Options(**options))
    touch(tmp_path, "test_inst", "a.png")
    assert set(find_files(Options(**options))) == {"label", "inst"}
    with pytest.raises(InputError, match="test_img is missing"):
        find_files(Options(**options, use_encoded_image=True))
    with pytest.raises(InputError, match="test_feat is missing"):
        find_files(Options(**options, instance_feat=True, load_features=True))


def test_pictures_as_input_use_folders_a_and_b(tmp_path):
    for folder in ("train_A", "train_B", "train_inst"):
        touch(tmp_path, folder, "x.png")
    files = find_files(Options(dataroot=str(tmp_path), label_nc=0))
    assert {key: os.path.basename(os.path.dirname(paths[0])) for key, paths in files.items()} == {
        "label": "train_A",
        "inst": "train_inst",
        "image": "train_B",
    }


def test_linked_folders_are_followed_once(tmp_path):
    touch(tmp_path, "elsewhere", "a.png")
    (tmp_path / "test_label").mkdir()
    (tmp_path / "test_label" / "city").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "test_label")
    files = find_files(Options(dataroot=str(tmp_path), isTrain=False, no_instance=True))
    assert names_of(files, "label", tmp_path / "test_label") == ["city/a.png"]


def test_missing_and_empty_folders_are_named(tmp_path):
    options = Options(dataroot=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere is not a folder.*train_label, train_inst, tra"):
        find_files(options)
    options = Options(dataroot=str(tmp_path), no_instance=True)
    touch(tmp_path, "train_A", "a.png")
    with pytest.raises(InputError, match="train_label is missing.*label maps.*holds train_A"):
        find_files(options)
    touch(tmp_path, "train_label", "readme.txt")
    with pytest.raises(InputError, match="train_label is empty.*label maps.*png"):
        find_files(options)


@pytest.mark.parametrize(
    ("anchor", "partner"),
    [
        ("{}", "{}"),
        ("{}_gtFine_labelIds", "{}_leftImg8bit"),
        ("{}_gtFine_labelIds", "{}_gtFine_instanceIds"),
        ("{}", "{}_leftImg8bit"),
        ("{}_label", "{}_inst"),
        ("{}label", "{}"),
        ("label_{}", "img_{}"),
        ("a-{}.mask", "b-{}"),
        ("city/{}_label", "city/{}_photo"),
        ("{}_label", "flat/{}"),
    ],
)
def test_names_pair_whatever_all_files_of_a_folder_share(anchor, partner):
    ids = [f"scene_{i:04}_x{i * 7}" for i in (1, 11, 21, 3)]
    anchors = [anchor.format(one) + ".png" for one in ids]
    partners = [partner.format(one) + ".jpg" for one in ids]
    assert pair_files(anchors, partners[::-1], "A", "B") == partners


def test_same_stem_in_several_folders_pairs_by_folder():
    anchors, partners = ["a/1.png", "b/1.png"], ["b/1.jpg", "a/1.jpg"]
    assert pair_files(anchors, partners, "A", "B") == ["a/1.jpg", "b/1.jpg"]


def test_one_file_each_pairs_whatever_its_name():
    assert pair_files(["label.png"], ["image.png"], "A", "B") == ["image.png"]


def test_unrelated_names_pair_in_order_with_a_warning_only_if_equally_many():
    anchors, partners = ["cat.png", "dog.png"], ["red.png", "sun.png"]
    with pytest.warns(UserWarning, match="nothing in common"):
        assert pair_files(anchors, partners, "A", "B") == partners
    with pytest.raises(InputError, match="A holds 2 files and B holds 3"):
        pair_files(anchors, [*partners, "tea.png"], "A", "B")


stems = st.lists(st.from_regex(r"[a-z]{1,3}_[0-9]{3,4}", fullmatch=True), min_size=3, unique=True)


@given(stems, st.randoms(), st.sampled_from(["", "_label", "_gtFine_labelIds"]))
def test_any_order_of_partners_pairs_by_name(names, random, suffix):
    shuffled = random.sample(names, len(names))
    anchors = [f"{name}{suffix}.png" for name in names]
    found = pair_files(anchors, [f"{name}_leftImg8bit.png" for name in shuffled], "A", "B")
    assert found == [f"{name}_leftImg8bit.png" for name in names]


@given(stems, st.data())
def test_first_file_without_partner_is_named_with_the_folder_that_lacks_it(names, data):
    gone = data.draw(st.integers(0, len(names) - 1))
    anchors = [f"{name}_label.png" for name in names]
    partners = [f"{name}.jpg" for i, name in enumerate(names) if i != gone]
    with pytest.raises(InputError, match=f"A/{names[gone]}_label.png has no partner: B must"):
        pair_files(anchors, partners, "A", "B")
    with pytest.raises(InputError, match=f"A/{names[gone]}_label.png has no partner: B must"):
        pair_files(anchors, [*partners, "other_77777.jpg"], "A", "B")
    with pytest.raises(InputError, match=f"B/{names[gone]}_label.png has no partner: A must"):
        pair_files(partners, anchors, "A", "B")


def test_two_files_for_one_scene_are_named():
    with pytest.raises(InputError, match=r"A/1.jpg and A/1.png are both named '1'"):
        pair_files(["1.jpg", "1.png", "2.png"], ["1.png", "2.png"], "A", "B")


def test_a_folder_that_cannot_be_read_is_not_called_empty(tmp_path, monkeypatch):
    touch(tmp_path, "train_label", "0.png")

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="train_label cannot be read: Permission denied"):
        find_files(Options(dataroot=str(tmp_path), no_instance=True))
