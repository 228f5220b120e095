"""Batches: order, resumption, workers, and what they say about bad input."""

import contextlib
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from pix2pixhd_fast.data import AlignedDataset, make_loader
from pix2pixhd_fast.data.dataset import epoch_order
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import Options

COUNT = 7


@pytest.fixture
def root(tmp_path):
    random = np.random.default_rng(0)
    for phase in ("train", "test"):
        for folder in ("label", "inst", "img"):
            (tmp_path / f"{phase}_{folder}").mkdir()
        for i in range(COUNT):
            ids = random.integers(0, 35, (12, 14), np.uint8)
            for folder in ("label", "inst", "img"):
                Image.fromarray(ids).save(tmp_path / f"{phase}_{folder}" / f"{i}.png")
    return tmp_path


def options_for(root, **flags):
    flags = {"resize_or_crop": "crop", "fineSize": 8, "nThreads": 0} | flags
    return Options(dataroot=str(root), **flags)


def batches(root, epoch=1, start=0, **flags):
    options = options_for(root, **flags)
    return list(make_loader(AlignedDataset(options), options, epoch, start))


def paths(found):
    return [path for batch in found for path in batch["path"]]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a["path"] == b["path"]
        for key in ("label", "inst", "image"):
            assert torch.equal(a[key], b[key])


def test_a_batch(root):
    batch = batches(root, batchSize=3)[0]
    assert set(batch) == {"label", "inst", "image", "path"}
    assert batch["label"].shape == (3, 1, 8, 8)
    assert batch["image"].shape == (3, 3, 8, 8)
    assert len(batch["path"]) == 3


@pytest.mark.parametrize(
    "flags, expected",
    [({}, torch.uint8), (dict(label_nc=300), torch.int32), (dict(ignore_label=256), torch.int32)],
)
def test_ids_stay_integers(root, flags, expected):
    batch = batches(root, batchSize=2, **flags)[0]
    assert batch["label"].dtype == expected and batch["inst"].dtype == torch.int32


def test_training_drops_the_last_batch_and_testing_keeps_it(root):
    options = options_for(root, batchSize=3)
    loader = make_loader(AlignedDataset(options), options)
    assert len(loader) == len(list(loader)) == 2
    found = batches(root, batchSize=3, isTrain=False)
    assert [len(batch["path"]) for batch in found] == [3, 3, 1]


def test_order_changes_with_epoch_and_seed_and_not_otherwise(root):
    orders = [paths(batches(root, epoch)) for epoch in range(1, 6)]
    assert all(len(set(order)) == COUNT for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    assert paths(batches(root, 3)) == orders[2]
    assert paths(batches(root, 3, seed=1)) != orders[2]
    for flags in ({"serial_batches": True}, {"isTrain": False}):
        assert paths(batches(root, 2, **flags)) == sorted(paths(batches(root, 2, **flags)))


def test_every_first_scene_is_drawn_equally_often(root):
    firsts = np.bincount([epoch_order(5, 0, epoch)[0] for epoch in range(2000)])
    assert abs(firsts - 400).max() < 80


def test_batches_do_not_depend_on_the_number_of_workers(root):
    expected = batches(root, 2, batchSize=2)
    for workers in (1, 2):
        assert_same(batches(root, 2, batchSize=2, nThreads=workers), expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [2, 4, 6, COUNT, 50])
def test_a_resumed_epoch_is_the_tail_of_the_whole_one(root, start, workers):
    whole = batches(root, 4, batchSize=2)
    assert_same(batches(root, 4, start, batchSize=2, nThreads=workers), whole[start // 2 :])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_state_is_neither_used_nor_changed(root, workers):
    torch.manual_seed(1)
    expected = batches(root, nThreads=workers)
    torch.manual_seed(2)
    np.random.seed(2)
    before = torch.get_rng_state(), np.random.get_state()[1]
    assert_same(batches(root, nThreads=workers), expected)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_instances_of_both_types_share_a_batch_in_any_order(root, workers):
    flags = {"batchSize": COUNT, "nThreads": workers}
    assert batches(root, **flags)[0]["inst"].dtype == torch.int32
    for wide in (0, COUNT - 1):
        path = root / "train_inst" / f"{wide}.png"
        ids = np.asarray(Image.open(path)).astype(np.int64)
        path.unlink()
        np.save(path.with_suffix(".npy"), ids + 2**31)
        inst = batches(root, serial_batches=True, **flags)[0]["inst"]
        assert inst.dtype == torch.int64
        assert inst.min() >= 0
        assert (inst[wide] >= 2**31).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_arrive_as_one_sentence_in_the_place_of_their_batch(root, workers):
    (root / "train_img" / "4.png").write_bytes(b"x")
    options = options_for(root, batchSize=2, serial_batches=True, nThreads=workers)
    loader = iter(make_loader(AlignedDataset(options), options))
    assert [next(loader)["path"][0][-5:] for _ in range(2)] == ["0.png", "2.png"]
    with pytest.raises(InputError) as caught:
        next(loader)
    assert str(caught.value).startswith(str(root / "train_img" / "4.png") + " cannot be read")
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_of_different_sizes_in_a_batch_are_named(root, workers):
    for folder in ("label", "inst", "img"):
        Image.new("L", (9, 6)).save(root / f"train_{folder}" / "1.png")
    flags = {"batchSize": 2, "serial_batches": True, "nThreads": workers}
    with pytest.raises(InputError, match=r"0\.png is 8x8 and \S+1\.png is 8x6 .*--batchSize 1 or"):
        batches(root, **flags)
    assert len(batches(root, **(flags | {"batchSize": 1}))) == COUNT
    found = batches(root, **flags, resize_or_crop="resize_and_crop", loadSize=10)
    assert len(found) == 3


def test_bad_arguments_are_named(root):
    options = options_for(root, batchSize=COUNT + 1)
    with pytest.raises(InputError, match="batchSize must be at most .* got 8 for 7 samples"):
        make_loader(AlignedDataset(options), options)
    with pytest.raises(InputError, match="start must be the number of samples to skip, got -1"):
        batches(root, start=-1)
    assert len(batches(root, batchSize=COUNT + 1, isTrain=False)) == 1


@pytest.mark.parametrize(
    ("flags", "cuda", "pinned"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"gpu_ids": "-1"}, True, False),
        ({"device": "cpu"}, True, False),
        ({"device": "cuda:0", "gpu_ids": "-1"}, True, True),
    ],
)
def test_batches_are_pinned_only_for_a_cuda_device(root, monkeypatch, flags, cuda, pinned):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    options = options_for(root, **flags)
    assert make_loader(AlignedDataset(options), options).pin_memory is pinned


def test_signals_to_all_processes_do_not_end_the_workers(root):
    options = options_for(root, nThreads=2)
    loader = iter(make_loader(AlignedDataset(options), options))
    found = [next(loader), next(loader)]  # one from each worker: both have started
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    assert len([*found, *loader]) == COUNT


def test_a_second_sigterm_ends_a_worker(root):
    options = options_for(root, nThreads=1)
    loader = iter(make_loader(AlignedDataset(options), options))
    next(loader)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(0.5)
    assert worker.is_alive()
    with contextlib.suppress(RuntimeError):  # PyTorch may notice first
        worker.terminate()
        worker.join(10)
    worker.join(10)
    assert worker.exitcode == -signal.SIGTERM
