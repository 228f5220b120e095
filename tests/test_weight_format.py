"""Weights held channels_last, as on a GPU, here on the CPU: the same numbers, files and states."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from pix2pixhd_fast import Options, backend
from pix2pixhd_fast.checkpoints import CheckpointFolder
from pix2pixhd_fast.nn import weight_format
from pix2pixhd_fast.profile import Subject, record
from tests.helpers import assert_close_l2
from tests.test_step import SMALL, make_batch, make_model

FEATURES = dict(instance_feat=True, niter_fix_global=1)


def make_other_model(**changes):
    """As it would be on a GPU."""
    with mock.patch.object(weight_format, "stands_for_gpu", return_value=True):
        return make_model(**changes)


def in_float64(model):
    """In which nothing but a mistake makes two ways differ: Adam makes steps of roundings."""
    encode = model.double().encode_inputs

    def encode_wide(batch):
        inputs = encode(batch)
        return replace(inputs, image=inputs.image.double())

    model.encode_inputs = encode_wide
    return model


def weights_of(model):
    """Of the convolutions, where both formats can be told apart."""
    named = model.named_parameters()
    return {name: p for name, p in named if p.dim() == 4 and p.shape[1] > 1}


def is_channels_last(t):
    return t.is_contiguous(memory_format=torch.channels_last)


def train(model, steps=2, start=0):
    for epoch in range(start, start + steps):
        model.optimizers.start_epoch(epoch + 1)  # the second releases what is fixed in the first
        losses = model.training_step(make_batch())
    return losses


def test_only_what_reads_a_map_stays_in_the_default_format():
    model = make_other_model(**FEATURES)
    default = {name for name, p in weights_of(model).items() if p.is_contiguous()}
    first = {"netG.model.1.weight", "netG.model1_1.1.weight"}
    first |= {f"netD.scale{scale}_layer0.0.weight" for scale in range(2)}
    assert default == first
    others = {name: p for name, p in weights_of(model).items() if name not in first}
    assert len(others) > 20 and all(map(is_channels_last, others.values()))
    assert all(p.is_contiguous() for p in make_model(**FEATURES).parameters())
    with backend("eager"):
        assert all(p.is_contiguous() for p in make_other_model().parameters())


@pytest.mark.parametrize("changes", [{}, FEATURES, dict(norm="batch"), dict(amp="bf16")])
def test_the_same_training(changes):
    usual, other = make_model(**changes), make_other_model(**changes)
    if not changes.get("amp"):
        usual, other = in_float64(usual), in_float64(other)
    expected, found = train(usual), train(other)
    tol = 0.02 if changes.get("amp") else 1e-7
    for name, loss in expected.items():
        assert_close_l2(found[name], loss, tol, name)
    for name, p in usual.named_parameters():
        assert_close_l2(other.get_parameter(name), p, tol, name)
    for name, p in weights_of(other).items():
        assert p.grad.stride() == p.stride(), name


@pytest.mark.parametrize("make_next", [make_model, make_other_model])
def test_a_checkpoint_is_the_same_and_goes_on_to_the_bit(tmp_path, make_next):
    model, folder = in_float64(make_other_model(**FEATURES)), CheckpointFolder(tmp_path)
    train(model)
    folder.save("latest", model.networks(), {"optimizers": model.optimizers.state_dict()})
    for letter in model.networks():
        saved = torch.load(tmp_path / f"latest_net_{letter}.pth", weights_only=True)
        assert all(value.is_contiguous() for value in saved.values())
    again = in_float64(make_next(**FEATURES))
    state = folder.load("latest", again.networks(), with_state=True)["optimizers"]
    moments = [value["exp_avg"] for value in state["G"]["state"].values()]
    assert len(moments) > 20 and all(value.is_contiguous() for value in moments)
    again.optimizers.load_state_dict(state)
    for p, found in again.optimizers.G.state.items():
        assert found["exp_avg"].stride() == found["exp_avg_sq"].stride() == p.stride()
    train(model, 1, start=2)
    train(again, 1, start=2)
    for name, p in model.named_parameters():
        if make_next is make_other_model:
            assert torch.equal(again.get_parameter(name), p), name
        else:
            assert_close_l2(again.get_parameter(name), p, 1e-7, name)


def test_no_gradient_is_copied_on_its_way_in():
    o = Options(**SMALL)
    names = [x.op for x in record(Subject(o, (64, 64))).launches if x.phase == "backward"]
    assert "convolution_backward" in names and "copy_" not in names
