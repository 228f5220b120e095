"""VGG19: where weights come from, what it computes, and the loss on it."""

import pytest
import torch
import torch.nn.functional as F

import pix2pixhd_fast.networks as networks
from pix2pixhd_fast import InputError
from pix2pixhd_fast.nn.vgg import CACHE_NAME
from tests.helpers import assert_close_l2

PLAN = [64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512]
FEATURES = (1, 3, 5, 9, 13)  # convolutions behind whose ReLU a feature is taken


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub/checkpoints"


@pytest.fixture
def full_file(tmp_path):
    """A state_dict as torchvision's classifier has it, random weights; its file and tensors."""
    state, channels, index = {}, 3, 0
    for width in PLAN:
        if width:
            scale = (2 / (9 * channels)) ** 0.5
            state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3) * scale
            state[f"features.{index}.bias"] = torch.randn(width) * 0.1
            channels, index = width, index + 1
        index += 1
    state["features.30.weight"] = torch.randn(512, 512, 3, 3)
    state["classifier.0.weight"] = torch.randn(7, 7)
    torch.save(state, tmp_path / "vgg19.pth")
    return tmp_path / "vgg19.pth", state


def plain_features(state, x):
    features, index, count = [], 0, 0
    for width in PLAN:
        if width:
            name = f"features.{index}"
            x = F.relu(F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1))
            count, index = count + 1, index + 2
            if count in FEATURES:
                features.append(x)
        else:
            x, index = F.max_pool2d(x, 2), index + 1
    return features


def test_features_and_loss_are_the_definition(full_file):
    path, state = full_file
    x, y = torch.randn(2, 1, 3, 32, 48)
    expected = plain_features(state, x)
    found = networks.Vgg19(weights=str(path))(x)
    for n, (f, e) in enumerate(zip(found, expected, strict=True), start=1):
        assert_close_l2(f, e, 1e-5, f"relu{n}_1")
    weights = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)
    parts = zip(weights, expected, plain_features(state, y), strict=True)
    loss = sum(w * (a - b).abs().mean() for w, a, b in parts)
    x.requires_grad_()
    ours = networks.VGGLoss(weights=str(path))(x, y)
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    ours.backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("form", ["classifier", "features", "own"])
def test_forms_of_files(full_file, tmp_path, form):
    path, state = full_file
    if form == "features":
        state = {k.removeprefix("features."): v for k, v in state.items()}
    if form == "own":
        state = networks.Vgg19(weights=str(path)).state_dict()
    torch.save(state, tmp_path / "other.pth")
    x = torch.randn(1, 3, 16, 16)
    first, second = (networks.Vgg19(weights=str(p))(x) for p in (path, tmp_path / "other.pth"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_cache_is_used(full_file, empty_cache):
    empty_cache.mkdir(parents=True)
    full_file[0].rename(empty_cache / CACHE_NAME)
    networks.VGGLoss()(torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16))


def test_never_random_in_silence():
    net = networks.Vgg19()
    with pytest.raises(
        InputError, match="--vgg_weights FILE, or fill torchvision's.*--no_vgg_loss"
    ):
        net(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="no weights"):
        networks.VGGLoss()
    net.load_state_dict({}, strict=False)
    assert not net.has_weights
    net.load_state_dict(networks.Vgg19(weights="random").state_dict())
    assert len(net(torch.zeros(1, 3, 16, 16))) == 5


def test_random_is_repeatable_and_alive():
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    first, second = (networks.Vgg19(weights="random")(x) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(0.05 < f.std() < 20 for f in first)
    assert not any(p.requires_grad for p in networks.Vgg19(weights="random").parameters())


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x05.", None])
def test_refuses_other_files(tmp_path, content):
    path = tmp_path / "bad.pth"
    if content is None:
        torch.save({"features.0.weight": torch.zeros(3, 3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match="bad.pth"):
        networks.Vgg19(weights=str(path))
