"""Checkpoint folders: the original's format, what is refused, old files of PyTorch."""

import collections
import errno
import os
import pickle
import random
import resource
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pix2pixhd_fast.checkpoints import CheckpointFolder, transaction
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.networks import define_D, define_G


def small_networks(seed: int = 0) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    return {
        "G": define_G(4, 3, 4, "global", 1, 1),
        "D": define_D(7, 4, 1, num_D=2, getIntermFeat=True),
        "E": define_G(3, 3, 2, "encoder", 1),
    }


def same(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def one_sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text and len(text) < 400
    return text


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints" / "label2city")


def test_networks_and_state_come_back_as_they_were_saved(folder):
    networks = small_networks(1)
    optimizer = torch.optim.Adam(networks["G"].parameters(), lr=0.1, betas=(0.5, 0.999))
    networks["G"](torch.randn(1, 4, 16, 16)).mean().backward()
    optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "random": [torch.get_rng_state(), random.getstate()],
        "position": {"epoch": 3, "images": 100, "loss": 0.1, "name": "city", "none": None, 5: True},
    }
    folder.save(("latest", "10"), networks, state)
    found = small_networks(2)
    loaded = folder.load("10", found, with_state=True)
    for letter, network in networks.items():
        assert same(network.state_dict(), found[letter].state_dict())
    assert loaded["position"] == state["position"]
    assert loaded["random"][1] == random.getstate()
    assert torch.equal(loaded["random"][0], state["random"][0])
    again = torch.optim.Adam(found["G"].parameters())
    again.load_state_dict(loaded["optimizer"])
    assert again.param_groups[0]["betas"] == (0.5, 0.999)
    for mine, theirs in zip(again.state.values(), optimizer.state.values(), strict=True):
        assert torch.equal(mine["exp_avg_sq"], theirs["exp_avg_sq"])


def test_files_are_plain_state_dicts_under_the_names_of_the_original(folder):
    networks = small_networks()
    folder.save("latest", networks, {"epoch": 1})
    names = ["latest_net_D.pth", "latest_net_E.pth", "latest_net_G.pth", "latest_state.pth"]
    assert sorted(os.listdir(folder.folder)) == names
    content = torch.load(folder.folder / "latest_net_G.pth", weights_only=True)
    assert isinstance(content, collections.OrderedDict)
    assert content._metadata == networks["G"].state_dict()._metadata
    assert same(content, networks["G"].state_dict())


def test_a_save_without_encoder_or_state_deletes_those_of_the_label_only(folder):
    networks = small_networks()
    folder.save(("latest", "5"), networks, {"epoch": 1})
    (folder.folder / "latest_net_G.pth.bak").touch()
    del networks["E"]
    folder.save("latest", networks)
    left = ["5_net_D.pth", "5_net_E.pth", "5_net_G.pth", "5_state.pth"]
    left += ["latest_net_D.pth", "latest_net_G.pth", "latest_net_G.pth.bak"]
    assert sorted(os.listdir(folder.folder)) == left
    assert folder.load_state("latest") is None
    assert folder.load_state("5") == {"epoch": 1}
    assert folder.labels("E") == ["5"]


def test_views_are_saved_without_the_memory_around_them(folder):
    network = nn.Linear(2, 2, bias=False)
    network.weight = nn.Parameter(torch.zeros(1000, 1000)[:2, :2])
    folder.save("latest", {"G": network}, {"part": torch.zeros(10**6)[:3]})
    assert all(path.stat().st_size < 10_000 for path in folder.folder.iterdir())
    folder.load("latest", {"G": network})


def test_labels_are_in_the_order_of_epochs(folder):
    assert folder.labels() == []
    folder.save(("latest", "100", "20", "3"), {"G": nn.Linear(1, 1)}, {})
    assert folder.labels() == ["3", "20", "100", "latest"]
    assert folder.labels("D") == []


@pytest.mark.parametrize("label", ["", "../latest", ".hidden", "a/b", 5])
def test_labels_that_are_no_file_names_are_refused(folder, label):
    with pytest.raises(InputError, match="label of a checkpoint must be latest or an epoch"):
        folder.save((label,), small_networks())
    assert not folder.folder.exists()


@pytest.mark.parametrize("value", [np.float64(1), np.zeros(3), object(), {1, 2}, torch.float32])
def test_state_that_only_code_could_restore_is_refused(folder, value):
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\] must be a tensor or a plain value"):
        folder.save("latest", small_networks(), {"a": [0, value]})
    assert not folder.folder.exists()


def test_a_missing_file_is_named_with_the_labels_there_are(folder):
    path = folder.folder / "latest_net_G.pth"
    with pytest.raises(InputError) as error:
        folder.load_network("latest", "G", nn.Linear(1, 1))
    assert f"{path} does not exist: there is no folder" in one_sentence(error)
    networks = small_networks()
    folder.save(("20", "9"), {"G": networks["G"]})
    with pytest.raises(InputError) as error:
        folder.load_network("latest", "G", networks["G"])
    assert str(path) in one_sentence(error) and "folder: 9, 20" in one_sentence(error)
    with pytest.raises(InputError) as error:
        folder.load("9", networks)
    assert "9_net_D.pth does not exist" in one_sentence(error)
    assert "folder: none" in one_sentence(error)
    assert folder.load_state("9") is None


class Code:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _cut(path: Path, part: float) -> None:
    os.truncate(path, int(path.stat().st_size * part))


@pytest.mark.parametrize("kind", ["cut", "half", "old cut", "text", "empty", "noise", "numpy"])
def test_damaged_and_foreign_files_are_named(folder, kind):
    network = small_networks()["G"]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folder.save("latest", {"G": network})
    path = folder.folder / "latest_net_G.pth"
    if kind == "old cut":
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    if "cut" in kind or kind == "half":
        _cut(path, 0.5 if kind == "half" else 0.99)
    elif kind == "numpy":
        np.savez(path.open("wb"), a=np.zeros(3))
    else:
        noise = random.Random(0).randbytes(5000)
        path.write_bytes({"text": b"<html>not found</html>", "empty": b"", "noise": noise}[kind])
    with pytest.raises(InputError) as error:
        folder.load_network("latest", "G", network)
    assert f"cannot read {path}: it must be a state_dict" in one_sentence(error)
    assert same(before, network.state_dict())


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ["latest_net_G.pth", "latest_state.pth"])
def test_code_in_a_file_is_never_run(folder, tmp_path, name, old):
    network = nn.Linear(1, 1)
    folder.save("latest", {"G": network}, {"epoch": 1})
    made = tmp_path / "made by the pickle"
    content = {"weight": Code(made)}
    torch.save(content, folder.folder / name, _use_new_zipfile_serialization=not old)
    with pytest.raises(InputError) as error:
        folder.load("latest", {"G": network}, with_state=True)
    assert f"cannot read {folder.folder / name}" in one_sentence(error) and not made.exists()
    (folder.folder / name).write_bytes(pickle.dumps(content))
    with pytest.raises(InputError):
        folder.load("latest", {"G": network}, with_state=True)
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1, 2], "must hold a state_dict, it holds a list"),
        ({"epoch": 3, "a": torch.zeros(1)}, "its entry 'epoch' is a int"),
        ({"state_dict": {"a": torch.zeros(1)}}, "its entry 'state_dict' is a dict"),
    ],
)
def test_other_contents_than_a_state_dict_are_named(folder, content, text):
    folder.folder.mkdir(parents=True)
    torch.save(content, folder.folder / "latest_net_G.pth")
    with pytest.raises(InputError) as error:
        folder.load_network("latest", "G", nn.Linear(1, 1))
    assert text in one_sentence(error)


class OldTensor:
    """Pickled as PyTorch before 0.4 pickled a tensor."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor = tensor

    def __reduce__(self):
        t = self._tensor
        arguments = (t._typed_storage(), t.storage_offset(), tuple(t.shape), t.stride())
        return torch._utils._rebuild_tensor, arguments


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("before_0_4", [False, True])
def test_files_of_old_versions_load(folder, prefix, before_0_4):
    saved, found = small_networks(1)["G"], small_networks(2)["G"]
    wrap = OldTensor if before_0_4 else torch.clone
    content = collections.OrderedDict(
        (prefix + name, wrap(value)) for name, value in saved.state_dict().items()
    )
    folder.folder.mkdir(parents=True)
    path = folder.folder / "latest_net_G.pth"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with warnings.catch_warnings(action="error"):
        folder.load_network("latest", "G", found)
    assert same(saved.state_dict(), found.state_dict())


@pytest.mark.parametrize("metadata", [False, True])
def test_batch_norms_without_their_counter_load(folder, metadata):
    saved = define_G(4, 3, 4, "global", 1, 1, norm="batch")
    found = define_G(4, 3, 4, "global", 1, 1, norm="batch")
    content = saved.state_dict()
    for name in [name for name in content if name.endswith("num_batches_tracked")]:
        content[name].fill_(7)
        del content[name]
    if not metadata:
        del content._metadata
    folder.folder.mkdir(parents=True)
    torch.save(content, folder.folder / "latest_net_G.pth")
    folder.load_network("latest", "G", found)
    left = found.state_dict()
    assert all(torch.equal(content[name], left[name]) for name in content)
    assert {int(v) for name, v in left.items() if name not in content} == {0}


def test_running_statistics_of_old_instance_norms_are_dropped_and_nothing_else(folder):
    saved, found = small_networks(1)["G"], small_networks(2)["G"]
    content = saved.state_dict()
    norms = [name for name, layer in saved.named_modules() if isinstance(layer, nn.InstanceNorm2d)]
    for name in norms:
        content[f"{name}.running_mean"] = content[f"{name}.running_var"] = torch.ones(8)
    folder.folder.mkdir(parents=True)
    path = folder.folder / "latest_net_G.pth"
    torch.save(content, path)
    with pytest.warns(UserWarning, match=f"{2 * len(norms)} running statistics of instance norms"):
        folder.load_network("latest", "G", found)
    assert same(saved.state_dict(), found.state_dict())
    content["model.1.running_mean"] = torch.ones(8)  # a convolution has none
    content["model.99.running_var"] = torch.ones(8)
    torch.save(content, path)
    with pytest.warns(UserWarning), pytest.raises(InputError) as error:
        folder.load_network("latest", "G", found)
    assert "not expected: model.1.running_mean, model.99.running_var" in str(error.value)


def test_nothing_changes_unless_every_network_fits(folder):
    networks = small_networks(1)
    folder.save("latest", networks)
    found = small_networks(2) | {"E": define_G(3, 4, 2, "encoder", 1)}
    before = small_networks(2)
    with pytest.raises(InputError, match="does not fit this encoder"):
        folder.load("latest", found)
    assert all(same(before[k].state_dict(), found[k].state_dict()) for k in "GD")


def test_a_full_disk_is_named_and_the_old_checkpoint_stays(folder):
    folder.save("latest", small_networks(1), {"epoch": 1})
    large = {"G": nn.Linear(500, 500)}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))
    try:
        with pytest.raises(InputError) as error:
            folder.save(("latest", "2"), large, {"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    path = folder.folder / "latest_net_G.pth"
    assert f"cannot write {path}: {os.strerror(errno.EFBIG)}" in one_sentence(error)
    assert len(os.listdir(folder.folder)) == 4
    folder.load("latest", small_networks(2))
    assert folder.load_state("latest") == {"epoch": 1}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot make the folder .*file/city: Not a directory"):
        CheckpointFolder(tmp_path / "file" / "city").save("latest", {})


def test_a_read_only_folder_is_read_through_the_journal(folder, monkeypatch):
    folder.save("latest", small_networks(1), {"epoch": 1})

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(transaction, "_roll_forward", refuse)
        with pytest.raises(OSError, match="Read-only"):
            folder.save(("latest", "2"), small_networks(2) | {"E": nn.Linear(1, 1)}, {"epoch": 2})
    files = sorted(os.listdir(folder.folder))
    for name in ("replace", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    found = small_networks(3) | {"E": nn.Linear(1, 1)}
    assert folder.load("latest", found, with_state=True) == {"epoch": 2}
    assert same(found["G"].state_dict(), small_networks(2)["G"].state_dict())
    assert folder.labels() == ["2", "latest"]
    assert sorted(os.listdir(folder.folder)) == files


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"replace": {}}', '{"replace": {"a.pth": "../b"}, "remove": []}']
    + ['{"replace": {}, "remove": ["/etc/passwd"]}', '{"replace": {}, "remove": [1]}'],
)
def test_a_journal_that_no_save_wrote_is_refused(folder, text):
    folder.save("latest", small_networks())
    path = folder.folder / ".1-99999999.commit.json"
    path.write_text(text)
    for use in (folder.load_state, lambda label: folder.save(label, {})):
        with pytest.raises(InputError) as error:
            use("latest")
        assert f"{path} must be the journal" in one_sentence(error)


def test_temporary_files_of_a_live_process_are_left_alone(folder):
    folder.save("latest", small_networks())
    alive = folder.folder / f".latest_net_G.pth.1-{os.getppid()}.tmp"
    dead = folder.folder / ".latest_net_G.pth.1-99999999.tmp"
    alive.touch()
    dead.touch()
    folder.load("latest", small_networks())
    assert dead.exists()
    folder.save("latest", small_networks())
    assert alive.exists() and not dead.exists()


def test_a_folder_whose_name_is_too_long_is_named(tmp_path):
    folder = CheckpointFolder(tmp_path / ("n" * 300))
    with pytest.raises(InputError, match="cannot open .*nnn: File name too long"):
        folder.load("latest", {})
