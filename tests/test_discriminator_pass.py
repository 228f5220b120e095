"""D on both pictures at once, without a graph: the gradients of autograd, and who may take part."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from pix2pixhd_fast import Options, backend
from pix2pixhd_fast.nn.sequence import dead_biases
from pix2pixhd_fast.profile import Subject, record
from pix2pixhd_fast.training import step
from pix2pixhd_fast.training.discriminator_pass import fits
from pix2pixhd_fast.training.parameter_gradients import give_gradients, give_zeros
from tests.helpers import assert_close_l2
from tests.test_step import SMALL, make_batch, make_model, wide_inputs

PASSES = {"at once": step._adversarial_at_once, "by graph": step._adversarial_by_graph}


def taken(model, inputs, way, share=0.25):
    """Losses, the gradient of the picture on top of another one, gradients of D's parameters."""
    batch = step._Batch(model, inputs, share, last=True)
    random = torch.Generator().manual_seed(1)
    fake = torch.rand(batch.real.shape, generator=random, dtype=batch.real.dtype) * 2 - 1
    image = fake.requires_grad_()
    image.grad = torch.rand(image.shape, generator=random, dtype=image.dtype)
    seeds = {letter: batch.seed(letter, image) for letter in "GD"}
    model.optimizers.zero_grad()
    PASSES[way](batch, image, seeds)
    found = {f"loss {name}": loss for name, loss in batch.losses.items()}
    found["picture"] = image.grad
    return found | {n: p.grad for n, p in model.netD.named_parameters() if p.grad is not None}


def assert_same(actual, expected, tol):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype and actual[name].stride() == value.stride(), name
        assert_close_l2(actual[name], value, tol, name)


CONFIGURATIONS = {
    "two scales": dict(num_D=2),
    "one scale, one layer": dict(num_D=1, n_layers_D=1),
    "three scales, two layers": dict(num_D=3, n_layers_D=2),
    "a level that is no label map": dict(num_D=4, n_layers_D=1),
    "no feature matching": dict(num_D=2, no_ganFeat_loss=True),
    "channels instead of labels": dict(num_D=2, label_nc=0, input_nc=3),
    "labels alone": dict(num_D=2, no_instance=True),
}


def batch_for(model, size):
    batch = make_batch(2, size)
    if not model.options.label_nc:
        batch["label"] = torch.rand(2, 3, *size)
    return batch


@pytest.mark.parametrize("size", [(24, 32), (21, 35)])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_gradients_are_those_of_the_graph(name, size):
    model = make_model(**CONFIGURATIONS[name]).double()
    inputs = wide_inputs(model, batch_for(model, size))
    expected = taken(model, inputs, "by graph")
    assert_same(taken(model, inputs, "at once"), expected, 1e-12)
    biases = {id(bias) for bias in dead_biases(model.netD)}
    assert len(biases) == model.options.num_D * model.options.n_layers_D
    for p in model.netD.parameters():
        assert p.grad.any() != (id(p) in biases)


@pytest.mark.parametrize("amp, tol", [("off", 1e-5), ("bf16", 2e-2)])
def test_in_the_precision_of_a_training(amp, tol):
    model = make_model(num_D=2, amp=amp)
    inputs = model.training_inputs(make_batch())
    expected = taken(model, inputs, "by graph")
    assert_same(taken(model, inputs, "at once"), expected, tol)


def test_what_is_frozen_gets_no_gradient():
    model = make_model(num_D=2).double()
    frozen = {"scale0_layer0.0.weight", "scale1_layer0.0.bias", "scale1_layer2.0.weight"}
    for name in frozen:
        model.netD.get_parameter(name).requires_grad_(False)
    found = taken(model, wide_inputs(model), "at once")
    assert not frozen & found.keys()
    assert_same(found, taken(model, wide_inputs(model), "by graph"), 1e-12)


def hook(net):
    net.scale0_layer1[0].register_forward_hook(lambda *_: None)


def share(net):
    net.scale0_layer1[0] = net.scale1_layer1[0]


OTHERS = {
    "a hook inside": hook,
    "a hook on D": lambda net: net.register_forward_hook(lambda *_: None),
    "another pyramid": lambda net: setattr(net, "downsample", nn.AvgPool2d(2)),
    "a parametrised weight": lambda net: spectral_norm(net.scale0_layer1[0]),
    "a weight in two places": share,
    "another norm": lambda net: net.scale0_layer1.__setitem__(1, nn.InstanceNorm2d(8, affine=True)),
    "another layer": lambda net: net.scale0_layer1.append(nn.Dropout(0.5)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_discriminators_go_by_the_graph(name):
    model = make_model(num_D=2)
    assert step._fits_at_once(step._Batch(model, model.training_inputs(make_batch()), 1.0, True))
    assert fits(model.netD)
    OTHERS[name](model.netD)
    assert not fits(model.netD)
    model.training_step(make_batch())
    assert all(p.grad is not None for p in model.netD.parameters())


@pytest.mark.parametrize("changes", [dict(pool_size=2), dict(norm="batch"), dict(no_lsgan=True)])
def test_what_needs_more_forwards_goes_by_the_graph(changes):
    model = make_model(**changes)
    batch = step._Batch(model, model.training_inputs(make_batch()), 1.0, True)
    assert not step._fits_at_once(batch)


def test_a_picture_that_grows_goes_by_the_graph():
    model = make_model(num_D=3)
    inputs = model.training_inputs(make_batch(2, (2, 3)))
    assert not step._fits_at_once(step._Batch(model, inputs, 1.0, True))


def test_dead_biases_share_one_piece_of_zeros():
    model = make_model(num_D=2)
    step.backward(model, model.training_inputs(make_batch()))
    for net in (model.netG, model.netD):
        dead = dead_biases(net)
        assert dead and not any(bias.grad.any() for bias in dead)
        assert len({bias.grad.untyped_storage().data_ptr() for bias in dead}) == 1
        assert len({bias.grad.data_ptr() for bias in dead}) == len(dead)
    with backend("eager"):
        assert not dead_biases(model.netG)
    hook(model.netD)
    assert len(dead_biases(model.netD)) == 2 * 3 - 1


def test_gradients_are_given_as_autograd_gives_them():
    p, q = (nn.Parameter(torch.rand(4, 3, 2, 2)) for _ in range(2))
    fitting, other = torch.rand(4, 3, 2, 2), torch.rand(4, 3, 2, 2).bfloat16()
    other = other.contiguous(memory_format=torch.channels_last)
    give_gradients([p, q], [fitting, other])
    assert p.grad is fitting and torch.equal(q.grad, other.float())
    assert q.grad.stride() == q.stride() and q.grad.dtype == q.dtype
    give_gradients([p, q], [fitting.clone(), other])
    give_zeros([p, q])
    assert torch.equal(q.grad, 2 * other.float())
    assert p.grad is fitting


def test_traced_as_the_backward_of_d():
    options = Options(**SMALL, num_D=2, vgg_weights="random")
    launches = record(Subject(options, (64, 32))).launches
    arithmetic = {(x.path, x.phase): 0 for x in launches}
    for x in launches:
        arithmetic[x.path, x.phase] += x.cost.flops
    networks = {(net, phase) for net in ("netG", "netD") for phase in ("forward", "backward")}
    assert {place for place, flops in arithmetic.items() if flops} == networks
    assert arithmetic["netD", "backward"] > 1.5 * arithmetic["netD", "forward"]
