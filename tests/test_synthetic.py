"""Synthetic scenes: the maps agree, seeds and sizes behave, data sets survive interruptions."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pix2pixhd_fast.data.synthetic import Scene, dataset, scene, write_dataset
from pix2pixhd_fast.errors import InputError

ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, CAR = 7, 8, 11, 21, 23, 26
KNOWN = {1, 3, 4, 7, 8, 11, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 33}
FOLDERS = [f"{split}_{kind}" for split in ("train", "test") for kind in ("label", "inst", "img")]


@pytest.fixture(scope="module")
def twenty() -> list[Scene]:
    return [scene(256, 128, seed) for seed in range(20)]


def _same(first: Scene, second: Scene) -> bool:
    pairs = ((first.label, second.label), (first.inst, second.inst), (first.image, second.image))
    return all(np.array_equal(a, b) for a, b in pairs)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def test_maps_have_the_documented_shapes_and_types():
    drawn = scene(96, 64, 5)
    assert drawn.label.shape == drawn.inst.shape == (64, 96)
    assert drawn.image.shape == (64, 96, 3)
    assert (drawn.label.dtype, drawn.inst.dtype, drawn.image.dtype) == (
        np.uint8,
        np.int32,
        np.uint8,
    )


def test_same_seed_gives_the_same_bits(twenty):
    assert _same(twenty[3], scene(256, 128, 3))


def test_the_global_generator_is_neither_used_nor_changed():
    np.random.seed(1)
    first = scene(64, 32, 2)
    np.random.seed(2)
    state = np.random.get_state()[1].copy()
    assert _same(first, scene(64, 32, 2))
    assert np.array_equal(state, np.random.get_state()[1])


def test_seeds_differ(twenty):
    for first, second in zip(twenty[:-1], twenty[1:], strict=True):
        assert (first.label != second.label).mean() > 0.05
        assert (first.image != second.image).mean() > 0.5


def test_instance_ids_agree_with_labels(twenty):
    for drawn in twenty:
        things = drawn.inst >= 1000
        assert np.array_equal(drawn.inst[things] // 1000, drawn.label[things])
        assert np.array_equal(drawn.inst[~things], drawn.label[~things])
        assert np.array_equal(things, drawn.label >= 24)
        assert drawn.inst.max() < 2**16
        assert set(np.unique(drawn.label).tolist()) <= KNOWN


def test_most_scenes_hold_what_a_street_holds(twenty):
    for label in (ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, CAR):
        present = sum((drawn.label == label).sum() >= 20 for drawn in twenty)
        assert present >= 16, f"label {label} is in {present} of 20 scenes"
    seen = set(np.concatenate([np.unique(drawn.label) for drawn in twenty]).tolist())
    assert seen == KNOWN


def test_objects_are_told_apart(twenty):
    cars = [len(np.unique(drawn.inst[drawn.label == CAR])) for drawn in twenty]
    assert np.median(cars) >= 3


def test_classes_have_looks_of_their_own(twenty):
    def mean(label: int) -> np.ndarray:
        pixels = [drawn.image[drawn.label == label] for drawn in twenty]
        return np.concatenate(pixels).mean(0)

    red, green, blue = mean(VEGETATION)
    assert green > red and green > blue
    red, green, blue = mean(SKY)
    assert blue > red and mean(SKY).mean() > mean(ROAD).mean() + 40
    assert mean(SIDEWALK).mean() > mean(ROAD).mean() + 15


@pytest.mark.parametrize("seed", [0, 4, 9])
def test_another_size_shows_the_same_scene(seed):
    small, large = scene(256, 128, seed), scene(1024, 512, seed)
    assert (large.label[2::4, 2::4] == small.label).mean() >= 0.9
    difference = large.image.reshape(128, 4, 256, 4, 3).mean((1, 3)) - small.image
    assert np.abs(difference).mean() < 12


def test_another_ratio_shows_the_same_scene():
    wide, square = scene(256, 128, 1), scene(128, 128, 1)
    assert (wide.label[:, 1::2] == square.label).mean() >= 0.9


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (257, 33), (32, 301), (641, 479)])
def test_odd_and_tiny_sizes(size):
    width, height = size
    for seed in range(3):
        drawn = scene(width, height, seed)
        assert drawn.image.shape == (height, width, 3)
        assert ROAD in drawn.label and SKY in drawn.label


@pytest.mark.parametrize(
    "arguments, name",
    [
        ((31, 64, 0), "width"),
        ((64, 0, 0), "height"),
        ((64, 64, -1), "seed"),
        ((64.0, 64, 0), "width"),
    ],
)
def test_bad_sizes_and_seeds_are_named(arguments, name):
    with pytest.raises(InputError, match=name):
        scene(*arguments)


def test_data_set_layout(tmp_path):
    counts = []
    write_dataset(tmp_path, 2, 1, 64, 32, seed=7, progress=counts.append)
    assert counts == [1, 2, 3]
    names = sorted(path.name for path in (tmp_path / "train_label").iterdir())
    assert names == [f"scene_000000_00000{k}_gtFine_labelIds.png" for k in (1, 2)]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted(FOLDERS)
    images = []
    for split, name in (
        ("train", "000000_000001"),
        ("train", "000000_000002"),
        ("test", "000001_000001"),
    ):
        start = f"scene_{name}"
        label = Image.open(tmp_path / f"{split}_label" / f"{start}_gtFine_labelIds.png")
        inst = Image.open(tmp_path / f"{split}_inst" / f"{start}_gtFine_instanceIds.png")
        image = Image.open(tmp_path / f"{split}_img" / f"{start}_leftImg8bit.png")
        assert (label.mode, inst.mode, image.mode) == ("L", "I;16", "RGB")
        assert label.size == inst.size == image.size == (64, 32)
        ids = np.asarray(inst).astype(int)
        assert np.array_equal(np.where(ids >= 1000, ids // 1000, ids), np.asarray(label))
        images.append(np.asarray(image))
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_finished_scenes_are_not_drawn_again(tmp_path, monkeypatch):
    write_dataset(tmp_path, 2, 1, 64, 32)
    before = _files(tmp_path)
    (tmp_path / "train_inst" / "scene_000000_000002_gtFine_instanceIds.png").unlink()
    drawn = []
    monkeypatch.setattr(dataset, "scene", lambda *a: drawn.append(a) or scene(*a))
    write_dataset(tmp_path, 2, 1, 64, 32)
    assert len(drawn) == 1
    assert _files(tmp_path) == before


def test_growing_keeps_and_shrinking_removes(tmp_path, monkeypatch):
    write_dataset(tmp_path, 1, 1, 64, 32)
    before = _files(tmp_path)
    drawn = []
    monkeypatch.setattr(dataset, "scene", lambda *a: drawn.append(a) or scene(*a))
    write_dataset(tmp_path, 3, 1, 64, 32)
    assert len(drawn) == 2
    write_dataset(tmp_path, 1, 1, 64, 32)
    assert len(drawn) == 2
    assert _files(tmp_path) == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"width": 96}, {"height": 48}])
def test_another_manifest_draws_everything_anew(tmp_path, change):
    old, new = tmp_path / "old", tmp_path / "new"
    write_dataset(old, 2, 1, **{"width": 64, "height": 32, "seed": 0})
    wanted = {"width": 64, "height": 32, "seed": 0} | change
    write_dataset(old, 1, 1, **wanted)
    write_dataset(new, 1, 1, **wanted)
    assert _files(old) == _files(new)


def test_a_damaged_manifest_draws_everything_anew(tmp_path):
    write_dataset(tmp_path, 1, 0, 64, 32)
    before = _files(tmp_path)
    (tmp_path / "synthetic.json").write_text("{")
    (tmp_path / "train_img" / "scene_000000_000001_leftImg8bit.png").write_bytes(b"stale")
    write_dataset(tmp_path, 1, 0, 64, 32)
    assert _files(tmp_path) == before
    assert json.loads((tmp_path / "synthetic.json").read_text())["width"] == 64


@pytest.mark.parametrize("stop_at", range(1, 7))
def test_an_interrupted_call_leaves_no_half_file_and_is_finished_by_the_next(
    tmp_path, monkeypatch, stop_at
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_dataset(whole, 1, 1, 64, 32)
    calls = []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(dataset.os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(broken, 1, 1, 64, 32)
    finished = _files(whole)
    left = _files(broken)
    assert len(left) == stop_at - 1
    assert all(finished[name] == content for name, content in left.items())
    write_dataset(broken, 1, 1, 64, 32)
    assert _files(broken) == finished


def test_what_a_killed_process_left_is_removed(tmp_path):
    write_dataset(tmp_path, 1, 0, 64, 32)
    before = _files(tmp_path)
    (tmp_path / "train_img" / ".scene_000000_000001_leftImg8bit.png.123.tmp").write_bytes(b"half")
    (tmp_path / ".synthetic.json.123.tmp").write_bytes(b"half")
    write_dataset(tmp_path, 1, 0, 64, 32)
    assert _files(tmp_path) == before


def test_other_peoples_files_are_refused_and_kept(tmp_path):
    mine = tmp_path / "train_label" / "aachen_000000_000019_gtFine_labelIds.png"
    mine.parent.mkdir()
    mine.write_bytes(b"precious")
    with pytest.raises(InputError, match="aachen_000000_000019"):
        write_dataset(tmp_path, 1, 1, 64, 32)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert mine.read_bytes() == b"precious"


def test_a_file_in_the_way_and_bad_counts_are_named(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(InputError, match="taken must be a folder"):
        write_dataset(tmp_path / "taken", 1, 1, 64, 32)
    with pytest.raises(InputError, match="train must be"):
        write_dataset(tmp_path / "new", -1, 1, 64, 32)
    with pytest.raises(InputError, match="test must be"):
        write_dataset(tmp_path / "new", 1, 1.5, 64, 32)
    with pytest.raises(InputError, match="width must be"):
        write_dataset(tmp_path / "new", 1, 1, 16, 32)
    assert not (tmp_path / "new").exists()
