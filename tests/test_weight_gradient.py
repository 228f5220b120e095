"""The weight gradient as products of matrices, against the library in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pix2pixhd_fast.ops import weight_gradient as module
from pix2pixhd_fast.ops.norm_act_conv import Conv, _gradients
from tests.helpers import assert_close_l2


def problem(n, c, k, h, w, kernel, stride, pad, transposed=False):
    """dy, x and weight of a convolution, float32 channels_last."""
    torch.manual_seed(n * 1000 + c * 100 + h * 10 + w)
    shape = (c, k) if transposed else (k, c)
    weight = torch.randn(*shape, kernel, kernel)
    x = torch.randn(n, c, h, w).contiguous(memory_format=torch.channels_last)
    conv = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d
    y = conv(x, weight, stride=stride, padding=pad)
    return torch.randn_like(y), x, weight


def expected(dy, x, weight, stride, pad, transposed=False):
    """dx, dweight and dbias by the library, in float64."""
    return torch.ops.aten.convolution_backward(
        dy.double(), x.double(), weight.double(), [dy.shape[1]], [stride] * 2, [pad] * 2, [1, 1],
        transposed, [0, 0], 1, [True] * 3,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_drawn_convolutions(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    kernel, stride, pad = draw(1, 4), draw(1, 3), draw(0, 5)
    least = max(1, kernel - 2 * pad)
    h, w = draw(least, least + 9), draw(least, least + 9)
    dy, x, weight = problem(draw(1, 3), draw(1, 5), draw(1, 5), h, w, kernel, stride, pad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PATCH_VALUES", draw(1, 2000))  # one row to all rows in a part
        found = module.weight_gradient(dy, x, (kernel, kernel), stride, pad)
    assert_close_l2(found, expected(dy, x, weight, stride, pad)[1], 1e-5, "dweight")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_by_products(transposed, stride):
    dy, x, weight = problem(2, 16, 18, 9, 11, 3, stride, 1, transposed)
    assert module.suits_products(weight, x, stride)
    conv = Conv(weight, torch.zeros(dy.shape[1]), stride, transposed)
    found = _gradients(dy, x, tuple(x.shape[2:]), conv, 1, (True, True, True))
    wanted = expected(dy, x, weight, stride, 1, transposed)
    for name, got, want in zip(("dx", "dweight", "dbias"), found, wanted, strict=True):
        assert got.shape == want.shape
        assert_close_l2(got, want, 1e-5, name)


@pytest.mark.parametrize("transposed", [False, True])
def test_pointwise_kernels_with_a_stride_do_not_reach_the_library(transposed):
    dy, x, weight = problem(2, 2, 3, 8, 8, 1, 2, 0, transposed)
    assert module.suits_products(weight, x, 2)
    conv = Conv(weight, None, 2, transposed)
    found = _gradients(dy, x, tuple(x.shape[2:]), conv, 0, (True, True, False))
    wanted = expected(dy, x, weight, 2, 0, transposed)
    assert_close_l2(found[1], wanted[1], 1e-5, "dweight")
