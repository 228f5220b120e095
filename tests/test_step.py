"""The training step: the same gradients as by three forwards of D, with less work and memory."""

from dataclasses import replace

import pytest
import torch
from torch import amp
from torch.utils._python_dispatch import TorchDispatchMode

from pix2pixhd_fast import Options, Pix2PixHD, backend
from pix2pixhd_fast.profile import Subject, record
from pix2pixhd_fast.profile.summary import live_bytes
from pix2pixhd_fast.training import step
from tests.helpers import assert_close_l2, cancelled_bias

SMALL = dict(
    ngf=4, n_downsample_global=2, n_blocks_global=2, n_blocks_local=1, ndf=4, nef=4,
    n_downsample_E=2, label_nc=5, no_vgg_loss=True, netG="local",
)  # fmt: skip


def make_model(**changes):
    return Pix2PixHD(Options(**{**SMALL, **changes}), device="cpu")


def make_batch(n=2, size=(24, 32)):
    g = torch.Generator().manual_seed(0)
    return {
        "label": torch.randint(0, 5, (n, 1, *size), generator=g, dtype=torch.uint8),
        "inst": torch.randint(0, 9, (n, 1, *size), generator=g, dtype=torch.int32),
        "image": torch.rand((n, 3, *size), generator=g) * 2 - 1,
    }


def gradients(model):
    """Without those that are rounding noise, which a norm leaves of the bias in front of it."""
    named = model.named_parameters()
    return {
        name: p.grad.clone()
        for name, p in named
        if p.grad is not None and not cancelled_bias(model, name)
    }


def assert_same_gradients(actual, expected, tol):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close_l2(actual[name], gradient, tol, name)


CONFIGURATIONS = {
    "plain": {},
    "features": dict(instance_feat=True, num_D=3),
    "frozen, features": dict(instance_feat=True, niter_fix_global=1),
    "pool": dict(pool_size=2),
    "batch norm": dict(norm="batch"),
    "cross-entropy": dict(no_lsgan=True),
    "no feature matching": dict(no_ganFeat_loss=True),
    "vgg": dict(no_vgg_loss=False, vgg_weights="random"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_gradients_are_those_of_three_forwards(name):
    """In float64, in which nothing but a mistake makes two ways differ."""
    branches, whole = (make_model(**CONFIGURATIONS[name]).double() for _ in range(2))
    losses, fake = step.backward(branches, wide_inputs(branches))
    with backend("eager"):
        expected, picture = step.backward(whole, wide_inputs(whole))
    assert all(loss.dtype == torch.float64 for loss in (*losses.values(), *expected.values()))
    assert_close_l2(fake, picture, 1e-11, "picture")
    for loss, value in expected.items():
        assert_close_l2(losses[loss], value, 1e-11, loss)
    assert_same_gradients(gradients(branches), gradients(whole), 1e-9)
    for key, value in whole.netD.named_buffers():
        assert_close_l2(branches.netD.get_buffer(key), value, 1e-12, key)


def wide_inputs(model, batch=None):
    inputs = model.training_inputs(batch or make_batch())
    scene = inputs.scene
    scene = scene.double() if isinstance(scene, torch.Tensor) else scene
    return replace(inputs, scene=scene, image=inputs.image.double())


@pytest.mark.parametrize("kept", ["eager", "fused"])
def test_parts_of_a_batch_add_up(kept):
    whole, parts = make_model(), make_model()
    batch = make_batch(2)
    with backend(kept):
        step.backward(whole, whole.training_inputs(batch))
        for n in range(2):
            inputs = parts.training_inputs({k: v[n : n + 1] for k, v in batch.items()})
            step.backward(parts, inputs, share=0.5, accumulate=n > 0, last=n == 1)
    assert_same_gradients(gradients(parts), gradients(whole), 1e-4)


class ConvolutionGradients(TorchDispatchMode):
    """Notes of each convolution's backward whether it is for its input and for its weight.

    In front of a matched feature it is for the input.
    """

    def __init__(self):
        super().__init__()
        self.masks, self.labels = [], 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is torch.ops.pix2pixhd_fast.norm_act_conv_backward.default:
            self.masks.append(tuple(args[-3:-1]))
        if op is torch.ops.pix2pixhd_fast.matched_norm_backward.default:
            self.masks.append((True, False))
        if op is torch.ops.pix2pixhd_fast.label_conv2d_backward.default:
            self.labels += 1
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("at_once", [True, False])
def test_no_gradient_is_computed_for_nothing(at_once):
    model = make_model(num_D=2)
    batch = step._Batch(model, model.training_inputs(make_batch()), 1.0, last=True)
    image = batch.cut_off(torch.rand_like(batch.real))
    seeds = {letter: batch.seed(letter, image) for letter in "GD"}
    with ConvolutionGradients() as counted:
        (step._adversarial_at_once if at_once else step._adversarial_by_graph)(batch, image, seeds)
    layers = 2 * 5
    for_G = [(True, False)] * layers
    for_D = [(True, True)] * (layers - 2) + [(False, True)] * 2  # none for what D reads
    passes = 1 if at_once else 2
    assert sorted(counted.masks) == sorted(for_G + passes * for_D)
    assert counted.labels == passes * 2  # of each scale, for D alone
    assert all(p.grad is None for p in model.netG.parameters())


@pytest.mark.parametrize("features", [False, True])
def test_frozen_layers_keep_nothing(features):
    model = make_model(niter_fix_global=1, instance_feat=features)
    scene = torch.rand(1, model.options.netG_input_nc, 16, 16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t), lambda t: t):
        out = model.netG.model(scene)
    assert not saved and not out.requires_grad
    model.training_step(make_batch())
    frozen = {id(p) for p in model.optimizers.fixed}
    assert all((p.grad is None) == (id(p) in frozen) for p in model.netG.parameters())
    if features:
        assert all(p.grad.abs().sum() > 0 for p in model.netE.parameters() if p.dim() > 1)


def test_what_was_training_keeps_its_state_when_the_rest_is_released():
    model = make_model(niter_fix_global=1, instance_feat=True, niter=2, niter_decay=2, lr=0.01)
    adam = model.optimizers.G
    model.training_step(make_batch())
    trained = [model.netG.model1_1[1].weight, model.netE.model[1].weight]
    released = model.netG.model[1].weight
    before = [{k: v.clone() for k, v in adam.state[p].items()} for p in trained]
    model.optimizers.start_epoch(2)
    for p, state in zip(trained, before, strict=True):
        assert all(torch.equal(adam.state[p][k], v) for k, v in state.items())
    assert [group["lr"] for group in adam.param_groups] == [0.01]
    model.training_step(make_batch())
    assert [adam.state[p]["step"].item() for p in (*trained, released)] == [2, 2, 1]


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("mode", ["blocks", "all"])
def test_computed_again_is_the_same_to_the_bit(mode, norm):
    kept, again = make_model(norm=norm), make_model(norm=norm, checkpoint=mode)
    for model in (kept, again):
        model.training_step(make_batch())
    expected, actual = gradients(kept), gradients(again)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], g) for name, g in expected.items())
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in kept.state_dict().items())


def test_computed_again_takes_less():
    peaks = []
    for mode in ("none", "blocks", "all"):
        # little else: D is small, the picture large
        o = Options(**{**SMALL, "ngf": 16, "ndf": 2, "num_D": 1, "checkpoint": mode})
        recording = record(Subject(o, (512, 256)), warm_up=False)
        peaks.append(live_bytes(recording).max())
    assert peaks[0] > 1.05 * peaks[1] > 1.05 * 1.05 * peaks[2]


def test_a_scale_multiplies_all_gradients():
    plain, scaled = make_model(), make_model()
    for letter, scale in (("G", 1024.0), ("D", 64.0)):
        scaled.optimizers.scalers[letter] = amp.GradScaler("cpu", init_scale=scale)
    for model in (plain, scaled):
        step.backward(model, model.training_inputs(make_batch()))
    expected = {
        name: g * (64 if name.startswith("netD") else 1024) for name, g in gradients(plain).items()
    }
    assert_same_gradients(gradients(scaled), expected, 1e-6)
    scaled.optimizers.step()
    plain.optimizers.step()
    for name, value in plain.named_parameters():
        assert_close_l2(scaled.get_parameter(name), value, 1e-5, name)


def test_fused_adam_is_adam_and_its_state_is_anybodys():
    fused = make_model()
    with backend("eager"):
        plain = make_model()
    assert fused.optimizers.G.param_groups[0]["fused"]
    assert not plain.optimizers.G.param_groups[0]["fused"]
    for model in (fused, plain):
        model.training_step(make_batch())
    for name, value in plain.named_parameters():
        assert_close_l2(fused.get_parameter(name), value, 1e-5, name)
    states = [model.optimizers.state_dict() for model in (fused, plain)]
    assert states[0]["G"]["param_groups"] == states[1]["G"]["param_groups"]
    for model, state in zip((plain, fused), states, strict=True):
        flag = model.optimizers.G.param_groups[0]["fused"]
        model.optimizers.load_state_dict(state)
        assert model.optimizers.G.param_groups[0]["fused"] == flag
        model.training_step(make_batch())


def test_pictures_of_the_two_backends_agree():
    model = make_model()
    inputs = model.training_inputs(make_batch())
    losses, fake = step.backward(model, inputs)
    found = gradients(model)
    with backend("eager"):
        expected, picture = step.backward(model, replace(inputs))
    assert_close_l2(fake, picture, 1e-4, "picture")
    for name, loss in expected.items():
        assert losses[name].item() == pytest.approx(loss.item(), rel=1e-4), name
    assert_same_gradients(found, gradients(model), 1e-2)
