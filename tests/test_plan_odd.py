"""What the plan leaves to the ordinary layers: odd inputs, odd layers; the plan in words."""

import copy

import pytest
import torch
from torch import nn

import pix2pixhd_fast.networks as networks
from pix2pixhd_fast import InputError, backend, describe_plan
from pix2pixhd_fast.nn.sequence import Sequence
from tests.plans import BATCH, INSTANCE, assert_same, flat, picture, unit


def outcome(net, x, choice):
    with backend(choice):
        try:
            return flat(copy.deepcopy(net)(x))[0]
        except (RuntimeError, ValueError) as error:
            return error


SMALL = {"instance": nn.InstanceNorm2d(4), "batch": nn.BatchNorm2d(4), "5": nn.BatchNorm2d(5)}


def conv_norm(norm):
    return Sequence(nn.Conv2d(3, 4, 3), copy.deepcopy(SMALL[norm]))


def block(padding):
    return networks.ResnetBlock(3, padding, INSTANCE)


ODD = {
    "no batch axis": (lambda: Sequence(*unit()), torch.randn(3, 6, 6)),
    "no images": (lambda: Sequence(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(0, 3, 6, 6)),
    "integers": (lambda: Sequence(*unit()), torch.ones(1, 3, 6, 6).int()),
    "complex": (lambda: Sequence(*unit()), torch.ones(1, 3, 6, 6) * 1j),
    "single pixel": (lambda: conv_norm("instance"), torch.randn(1, 3, 3, 3)),
    "single pixel, block": (lambda: block("zero"), torch.ones(1, 3, 1, 1)),
    "single value": (lambda: conv_norm("batch"), torch.randn(1, 3, 3, 3)),
    "two values": (lambda: conv_norm("batch"), torch.randn(2, 3, 3, 3)),
    "channels of a norm": (lambda: conv_norm("5"), torch.randn(1, 3, 6, 6)),
    "reflects too much": (lambda: Sequence(*unit()), torch.randn(1, 3, 1, 9)),
    "reflects a line": (
        lambda: Sequence(nn.Conv2d(3, 3, 3), block("reflect")),
        torch.randn(1, 3, 3, 9),
    ),
    "too small": (lambda: Sequence(nn.Conv2d(3, 4, 7)), torch.randn(1, 3, 5, 5)),
    "channels": (lambda: Sequence(*unit()), torch.randn(1, 4, 6, 6)),
    "dtype": (lambda: Sequence(*unit()), torch.randn(1, 3, 6, 6).double()),
    "empty sequence": (lambda: Sequence(), torch.randn(2, 3)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_inputs_end_as_in_eager(name):
    make, x = ODD[name]
    net = make()
    eager, fused = outcome(net, x, "eager"), outcome(net, x, "fused")
    if isinstance(eager, Exception):
        assert isinstance(fused, type(eager) | InputError), fused
        if name.startswith("single"):
            assert str(fused) == str(eager)
    else:
        assert (fused.shape, fused.dtype) == (eager.shape, eager.dtype)
        assert torch.allclose(fused, eager, atol=1e-5)


UNFUSED = {
    "it has groups": [nn.Conv2d(4, 4, 3, groups=2)],
    "it is dilated": [nn.Conv2d(4, 4, 3, dilation=2)],
    "its padding is 'same'": [nn.Conv2d(4, 4, 3, padding="same")],
    "its strides or paddings differ": [nn.Conv2d(4, 4, 3, stride=(1, 2))],
    "its output paddings differ": [nn.ConvTranspose2d(4, 4, 3, 2, output_padding=(0, 1))],
    "its sides differ or are negative": [nn.ReflectionPad2d((1, 2, 1, 1)), nn.Conv2d(4, 4, 3)],
    "the convolution behind it pads as well": [nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3, padding=1)],
    "the convolution behind it is transposed": [nn.ZeroPad2d(1), nn.ConvTranspose2d(4, 4, 3)],
    "no convolution is right behind it": [nn.ReflectionPad2d(1)],
    "it keeps running statistics": [nn.InstanceNorm2d(4, track_running_stats=True)],
    "no convolution that fits is right in front of it": [nn.InstanceNorm2d(4)],
    "there is no fused step for it": [nn.Sigmoid()],
}


@pytest.mark.parametrize("reason", UNFUSED)
def test_what_runs_as_it_is_says_why(reason):
    net = Sequence(nn.Conv2d(3, 4, 1), nn.Tanh(), *UNFUSED[reason]).double()
    assert reason in describe_plan(net)
    assert_same(net, picture(2, 3, 7, 8))


def test_describe_plan():
    text = describe_plan(networks.LocalEnhancer(36, 3, 16, 1, 1, 1, 1, INSTANCE))
    assert "reflect 3 | conv 7x7 36->16 | statistics, then instance norm, relu" in text
    assert "zero 1 | transposed conv 3x3 32->16 stride 2 | statistics" in text
    assert "residual block: reflect 1 | conv 3x3 32->32" in text
    assert "conv_block" not in text  # part of the block's line
    assert "model1_2 [Sequence]" in text and "then tanh" in text
    block = describe_plan(networks.ResnetBlock(4, "zero", BATCH, use_dropout=True))
    assert "ordinary Dropout: it drops now" in block and "its conv_block (see there)" in block
    assert "no sequence" in describe_plan(nn.Linear(1, 1))
    with pytest.raises(InputError, match="net must be an nn.Module, got int"):
        describe_plan(3)
