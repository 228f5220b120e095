"""Encoded instances, clusters, banks, files of the original, feature maps on disk, styles."""

import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pix2pixhd_fast import InputError, Options, Pix2PixHD
from pix2pixhd_fast.checkpoints import CheckpointFolder
from pix2pixhd_fast.cli.main import main
from pix2pixhd_fast.data import AlignedDataset
from pix2pixhd_fast.data.synthetic import write_dataset
from pix2pixhd_fast.features import Encoded, FeatureBank, cluster
from pix2pixhd_fast.features.encoding import FeatureEncoder, encode_maps, encoded_instances
from pix2pixhd_fast.inference.synthesizer import Synthesizer
from tests.helpers import assert_close_l2

SMALL = dict(ngf=4, nef=4, n_downsample_global=2, n_downsample_E=2, n_blocks_global=1)
FLAGS = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The options of a test on a drawn data set, with a checkpoint of random networks."""
    root = tmp_path_factory.mktemp("features")
    write_dataset(root / "data", 3, 2, 128, 64)
    options = Options(
        isTrain=False,
        instance_feat=True,
        dataroot=str(root / "data"),
        checkpoints_dir=str(root / "checkpoints"),
        results_dir=str(root / "results"),
        resize_or_crop="none",
        nThreads=0,
        device="cpu",
        **SMALL,
    )
    model = Pix2PixHD(options)
    CheckpointFolder(root / "checkpoints" / options.name).save("latest", model.networks())
    return options


def original_features(model, batch):
    """`encode_features` of the original: per class, rows of a vector and an area."""
    ids, feat = encode_maps(model, batch)
    inst, (h, w) = ids.numpy().astype(int), ids.shape[2:]
    feature = {}
    for i in np.unique(inst):
        label = i if i < 1000 else i // 1000
        idx = (ids == int(i)).nonzero()
        num = idx.size()[0]
        idx = idx[num // 2, :]
        row = [float(feat[idx[0], idx[1] + k, idx[2], idx[3]]) for k in range(feat.shape[1])]
        feature.setdefault(label, []).append([*row, float(num) / (h * w // 32)])
    return {label: np.array(rows) for label, rows in feature.items()}


def test_recorded_encoder_and_the_originals_rows(golden, backend_name):
    """On the recorded sample, whose instances have the ids of classes, and some of objects."""
    sample = golden("sample")
    inst = sample["inst"].clone()
    inst[..., 40:] = inst[..., 40:] * 1000 + 3
    model = Pix2PixHD(Options(isTrain=False, instance_feat=True, **SMALL), "cpu")
    batch = {"label": sample["label"], "inst": inst, "image": sample["image"]}
    encoded = encoded_instances(*encode_maps(model, batch))
    expected = original_features(model, batch)
    assert set(encoded.labels) == set(expected)
    for label, rows in expected.items():
        mine = encoded.labels == label
        np.testing.assert_allclose(encoded.vectors[mine], rows[:, :-1], rtol=1e-6)
        np.testing.assert_allclose(encoded.areas[mine], rows[:, -1])


def encoded_of(labels, values, areas):
    vectors = np.array(values, np.float32)[:, None].repeat(3, 1)
    return Encoded(np.array(labels), vectors, np.array(areas, float))


def test_clusters_of_each_class_without_small_instances():
    values = [0.0, 0.1, 5.0, 5.1, 9.0, 3.0, 7.0]
    encoded = encoded_of([26, 26, 26, 26, 26, 7, 8], values, [1, 1, 1, 1, 0.5, 2, 0.1])
    bank = cluster(encoded, 2)
    assert list(bank.centers) == [7, 26]
    assert bank.centers[7].tolist() == [[3, 3, 3]]
    assert sorted(bank.centers[26][:, 0].tolist()) == pytest.approx([0.05, 5.05])
    assert len(cluster(encoded, 10).centers[26]) == 4
    again = cluster(encoded, 2).centers[26]
    assert np.array_equal(again, bank.centers[26])
    with pytest.raises(InputError, match="no instance covers a 64th"):
        cluster(replace(encoded, areas=encoded.areas * 0))


def test_equal_vectors_make_one_cluster(recwarn):
    assert len(cluster(encoded_of([1] * 4, [2.0] * 4, [1] * 4)).centers[1]) == 1
    assert not recwarn


@pytest.fixture
def bank():
    rows = np.arange(30, dtype=np.float32).reshape(10, 3)
    return FeatureBank({26: rows, 7: rows[:1] + 50})


def test_sample_gives_every_instance_one_cluster(bank):
    ids = torch.tensor([7, 26001, 26002, 4, 26001, 26002]).view(2, 1, 1, 3)
    feat = bank.sample(ids, seed=1)
    assert feat.shape == (2, 3, 1, 3) and feat.dtype == torch.float32 and feat.is_contiguous()
    assert feat[0, :, 0, 0].tolist() == [50, 51, 52]
    assert feat[1, :, 0, 0].tolist() == [0, 0, 0]
    for column in (1, 2):
        assert torch.equal(feat[0, :, 0, column], feat[1, :, 0, column])
        assert feat[0, :, 0, column].tolist() in bank.centers[26].tolist()
    assert torch.equal(feat, bank.sample(ids.int(), seed=1))
    drawn = {bank.choose(26001, seed) for seed in range(60)}
    assert drawn == set(range(10))


def test_set_an_instance(bank):
    ids = torch.tensor([26001, 26002]).view(1, 1, 1, 2)
    for number in range(10):
        bank.set(26001, number)
        assert bank.sample(ids)[0, :, 0, 0].tolist() == bank.centers[26][number].tolist()
    bank.set(26001, None)
    assert torch.equal(bank.sample(ids), FeatureBank(bank.centers).sample(ids))
    for instance, number in ((26001, 10), (26001, -1), (4, 0)):
        with pytest.raises(InputError, match="cluster must be one of the"):
            bank.set(instance, number)


def test_refuses_bad_maps_and_centers(bank):
    with pytest.raises(InputError, match="inst must hold ids from 0 up, got -1"):
        bank.sample(torch.full((1, 1, 2, 2), -1))
    with pytest.raises(InputError, match=r"inst must hold integer ids \[N, 1, H, W\]"):
        bank.sample(torch.zeros(2, 2))
    for centers in ({}, {1: np.zeros((0, 3))}, {1: np.zeros((1, 3)), 2: np.zeros((1, 2))}):
        with pytest.raises(InputError, match="centers must be"):
            FeatureBank(centers)


def test_bank_and_encoded_through_files(bank, tmp_path):
    bank.save(tmp_path / "bank.npz")
    again = FeatureBank.load(tmp_path / "bank.npz")
    assert all(np.array_equal(again.centers[k], rows) for k, rows in bank.centers.items())
    encoded = encoded_of([1, 2], [0.5, 1.5], [1, 2])
    encoded.save(tmp_path / "encoded.npz")
    again = Encoded.load(tmp_path / "encoded.npz")
    assert np.array_equal(again.vectors, encoded.vectors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bank.npz", "encoded.npz"]
    with pytest.raises(InputError, match="must be an .npz file with labels, centers"):
        FeatureBank.load(tmp_path / "encoded.npz")
    (tmp_path / "bank.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="bank.npz cannot be read"):
        FeatureBank.load(tmp_path / "bank.npz")


@pytest.mark.parametrize("protocol", [2, 5])
def test_reads_files_of_the_original(protocol, tmp_path):
    """`np.save` of a dict; protocol 2 is what old versions of Python wrote."""
    rows = {7: np.array([[1.0, 2, 3, 0.7], [4, 5, 6, 0.1]]), 8: np.zeros((0, 4))}
    path = tmp_path / "features.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|O", "fortran_order": False, "shape": ()}
        )
        pickle.dump(np.array(rows, dtype=object), file, protocol)
    encoded = Encoded.load(path)
    assert encoded.labels.tolist() == [7, 7] and encoded.areas.tolist() == [0.7, 0.1]
    assert encoded.vectors.tolist() == [[1, 2, 3], [4, 5, 6]]
    clusters = {k: r[:, :-1] for k, r in rows.items() if len(r)}
    np.save(tmp_path / "clusters.npy", clusters)
    assert FeatureBank.load(tmp_path / "clusters.npy").centers[7].shape == (2, 3)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_runs_no_code_of_a_file(tmp_path):
    np.save(tmp_path / "bad.npy", {1: Harmful(tmp_path / "made")})
    with pytest.raises(InputError, match=r"posix.mkdir, which is no array"):
        FeatureBank.load(tmp_path / "bad.npy")
    assert not (tmp_path / "made").exists()
    np.save(tmp_path / "plain.npy", np.zeros((2, 2)))
    with pytest.raises(InputError, match="must be a .npy file of the original project"):
        FeatureBank.load(tmp_path / "plain.npy")


def test_encode_cluster_sample_synthesise(project, tmp_path, capsys):
    arguments = ["--dataroot", project.dataroot, "--checkpoints_dir", project.checkpoints_dir]
    arguments += ["--resize_or_crop", "none", "--nThreads", "0", "--instance_feat", *FLAGS]
    with pytest.raises(InputError, match="features_clustered_010.npz is missing, which pix2pix"):
        Synthesizer(project)
    assert main(["encode-features", *arguments]) == 0
    assert "clusters of" in capsys.readouterr().out
    with pytest.raises(InputError, match="feat_num must be that, got 2"):
        Synthesizer(replace(project, feat_num=2))
    results = ["--results_dir", str(tmp_path), "--styles", "2", "--style-seed", "5"]
    assert main(["test", *arguments, *results, "--how_many", "1"]) == 0
    images = tmp_path / project.name / "test_latest/images"
    assert len(list(images.glob("*_style_[12].jpg"))) == 2


def test_styles_differ_inside_instances_and_features_are_uniform(project):
    FeatureEncoder(project).encode()
    found = [
        next(Synthesizer(replace(project, style_seed=seed)).pictures())[1]["synthesized_image"]
        for seed in (0, 0, 3)
    ]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    synthesizer = Synthesizer(project)
    inst = AlignedDataset(project)[0]["inst"][None]
    maps = [synthesizer.bank.sample(inst, seed) for seed in (0, 3)]
    changed = 0
    for id in inst.unique():
        inside = (inst == id).squeeze()
        for feat in maps:
            assert (feat[0, :, inside] == feat[0, :, inside][:, :1]).all()
        changed += not torch.equal(*(feat[0, :, inside] for feat in maps))
    assert changed > 0


def test_precomputed_features_are_those_of_the_encoder(project):
    arguments = ["--dataroot", project.dataroot, "--checkpoints_dir", project.checkpoints_dir]
    arguments += ["--resize_or_crop", "none", "--nThreads", "0", "--instance_feat", *FLAGS]
    for dtype, tolerance in (("float16", 1e-3), ("float32", 0.0)):
        assert main(["precompute-features", *arguments, "--dtype", dtype]) == 0
        loaded = AlignedDataset(replace(project, load_features=True, phase="train"))[1]
        encoder = FeatureEncoder(replace(project, phase="train"))
        batch = {k: v[None] for k, v in encoder.dataset[1].items() if k != "path"}
        _, feat = encode_maps(encoder.model, batch)
        assert_close_l2(loaded["feat"], feat[0], tolerance, dtype)
    with pytest.raises(InputError, match="resize_or_crop must not crop"):
        FeatureEncoder(replace(project, resize_or_crop="crop")).precompute()


def test_label_feat_takes_classes_for_instances(project):
    options = replace(project, label_feat=True, instance_feat=False)
    encoded, bank = FeatureEncoder(options).encode()
    assert set(encoded.labels) <= set(range(35)) and len(bank.centers) > 0
    assert len(dict(Synthesizer(options).pictures())) == 2


def test_real_maps_end_to_end(cityscapes, tmp_path, project):
    """Encode, cluster, sample and synthesise at an eighth of their size."""
    options = replace(
        project,
        dataroot=str(cityscapes),
        resize_or_crop="scale_width",
        loadSize=256,
        phase="train",
        max_dataset_size=2,
    )
    encoded, bank = FeatureEncoder(options).encode()
    assert len(encoded.labels) > 20 and 7 in bank.centers
    synthesizer = Synthesizer(replace(options, phase="test", styles=2, ntest=1))
    (pictures,) = dict(synthesizer.pictures()).values()
    assert (pictures["style_1"] != pictures["style_2"]).any()


def test_eight_bit_features_are_still_read(project, tmp_path):
    """And one array in an .npz; two are refused."""
    from pix2pixhd_fast.data.images import read_picture

    Image.new("RGB", (4, 2), (0, 255, 51)).save(tmp_path / "f.png")
    assert read_picture(str(tmp_path / "f.png"), 3, "feat_num")[0, 0].tolist() == [0, 255, 51]
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2, 3)), b=np.zeros(1))
    with pytest.raises(InputError, match="two.npz is an archive"):
        read_picture(str(tmp_path / "two.npz"), 3, "feat_num")
