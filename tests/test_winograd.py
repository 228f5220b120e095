"""Winograd's convolutions: transforms against their references, all directions in float64."""

from functools import partial

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch._subclasses import FakeTensorMode

from pix2pixhd_fast._library import INTERPRETED, has_kernel, reference
from pix2pixhd_fast.ops import Conv, Norm, norm_act_conv
from pix2pixhd_fast.ops import winograd as module
from tests.helpers import assert_close_l2

ops = torch.ops.pix2pixhd_fast
needs_cpp = pytest.mark.skipif(
    INTERPRETED or not has_kernel("winograd_points_", "CPU"),
    reason="the C++ kernels are not built",
)
# Measured: 1.3e-6 in large shapes, 5e-6 where a result is few numbers, which cancel.
LARGE, ANY = 3e-6, 1e-5


def picture(shape, layout):
    """[N, C, H, W]: channels next to each other, pixels next to each other, or every other one."""
    n, c, h, w = shape
    if layout == "channels_last":
        return torch.randn(n, h, w, c).permute(0, 3, 1, 2)
    if layout == "default":
        return torch.randn(n, c, h, w)
    return torch.randn(n, 2 * h, 2 * w, c + 2)[:, ::2, ::2, 1:-1].permute(0, 3, 1, 2)


LAYOUTS = st.sampled_from(["channels_last", "default", "phase"])


@pytest.mark.parametrize("taps", [2, 3, 4, 5])
def test_points_and_pixels_are_the_convolution(taps):
    """Of a line, in float64: the matrices themselves, with the evaluation on either side."""
    side = module.SIDE + 1 - taps
    x, weight = torch.randn(module.SIDE).double(), torch.randn(taps).double()
    of_x, of_weight = (t.new_tensor(module.to_points(len(t))) @ t for t in (x, weight))
    found = x.new_tensor(module.evaluation(side)).T @ (of_x * of_weight)
    assert_close_l2(found, x.unfold(0, taps, 1) @ weight, 1e-14, "y")


def integer(data, low, high):
    return data.draw(st.integers(low, high))


@settings(max_examples=40)
@given(st.data(), LAYOUTS, st.booleans())
def test_points_kernel_against_reference(data, layout, turned):
    draw = partial(integer, data)
    shape = (draw(1, 3), data.draw(st.sampled_from([1, 3, 64, 70])), draw(1, 9), draw(1, 9))
    side, step, down, across = draw(2, 6), draw(1, 6), draw(1, 6), draw(1, 6)
    pad = draw(0, side - 1)
    first = draw(0, shape[0] * down - 1)
    rows = draw(1, shape[0] * down - first)
    # Of a larger tensor, as the phases of a picture are.
    found = torch.full((36, rows * across, shape[1] + 3), torch.nan)
    expected = found.clone()
    x, options = picture(shape, layout), (side, step, pad, down, across, first, turned)
    ops.winograd_points_(x, found[..., 1:-2], *options)
    reference("winograd_points_")(x, expected[..., 1:-2], *options)
    assert torch.equal(found.isnan(), expected.isnan())
    assert_close_l2(found.nan_to_num(), expected.nan_to_num(), 1e-6, "points")


@settings(max_examples=40)
@given(st.data(), LAYOUTS, st.booleans())
def test_pixels_kernel_against_reference(data, layout, biased):
    draw = partial(integer, data)
    shape = (draw(1, 3), data.draw(st.sampled_from([1, 3, 64, 70])), draw(1, 9), draw(1, 9))
    side, down, across = draw(2, 5), draw(1, 5), draw(1, 5)
    first = draw(0, shape[0] * down - 1)
    rows = draw(1, shape[0] * down - first)
    points = torch.randn(36, rows * across, shape[1] + 3)[..., 1:-2]
    bias = torch.randn(shape[1]) if biased else None
    torch.manual_seed(1)
    found = picture(shape, layout)
    torch.manual_seed(1)
    expected = picture(shape, layout)
    ops.winograd_pixels_(points, found, bias, side, down, across, first)
    reference("winograd_pixels_")(points, expected, bias, side, down, across, first)
    assert_close_l2(found, expected, 1e-6, "y")


def problem(n, c, k, h, w, kernel, stride, pad):
    """x and dy, channels_last, and a weight."""
    x = picture((n, c, h, w), "channels_last")
    size = ((side + 2 * pad - kernel) // stride + 1 for side in (h, w))
    return x, picture((n, k, *size), "channels_last"), torch.randn(k, c, kernel, kernel)


def expected(x, dy, weight, bias, stride, pad):
    """y and the gradients of x and weight by the library, in float64."""
    x, dy, weight = (t.double() for t in (x, dy, weight))
    y = F.conv2d(x, weight, None if bias is None else bias.double(), stride, pad)
    gradients = torch.ops.aten.convolution_backward(
        dy, x, weight, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, [True, True, False]
    )
    return y, *gradients[:2]


def assert_directions(x, dy, weight, bias, stride, pad, tolerance):
    found = (
        module.convolve(x, weight, bias, stride, pad),
        module.input_gradient(dy, x.shape[2:], weight, stride, pad),
        module.weight_gradient(dy, x, weight, stride, pad),
    )
    wanted = expected(x, dy, weight, bias, stride, pad)
    for name, got, want in zip(("y", "dx", "dweight"), found, wanted, strict=True):
        assert_close_l2(got, want, tolerance, name)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[1].is_contiguous(memory_format=torch.channels_last)
    assert found[2].stride() == weight.stride()


@settings(max_examples=60)
@given(st.data(), st.sampled_from([(3, 1), (4, 1), (4, 2)]), st.booleans())
def test_drawn_convolutions(data, kind, last):
    """Also smaller than a tile, in one piece and in many, with more tiles than channels or less."""
    draw = partial(integer, data)
    kernel, stride = kind
    pad = draw(0, (kernel - 1) // stride) * stride
    least = max(1, kernel - 2 * pad)
    size = (draw(least, least + 13), draw(least, least + 13))
    channels = st.sampled_from([1, 3, 17, 66])
    x, dy, weight = problem(draw(1, 3), data.draw(channels), data.draw(channels), *size, kernel,
                            stride, pad)  # fmt: skip
    if last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(len(weight)) if draw(0, 1) else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", draw(1, 40))
        patch.setattr(module, "PIECE_VALUES", draw(1, 20000))
        assert_directions(x, dy, weight, bias, stride, pad, ANY)


@pytest.mark.parametrize(
    "kind", [(4, 1, 2, 300, 20), (3, 1, 1, 64, 20), (4, 2, 2, 48, 96)], ids=str
)
def test_many_channels(kind):
    """As large as they are when nothing is patched."""
    kernel, stride, pad, channels, size = kind
    x, dy, weight = problem(1, channels, channels + 8, size, size + 3, kernel, stride, pad)
    assert_directions(x, dy, weight, None, stride, pad, LARGE)


@needs_cpp
@pytest.mark.parametrize("kernel", [(3, 1), (4, 1), (4, 2)], ids=str)
def test_norm_act_conv_takes_it(kernel, monkeypatch):
    """y, its statistics and all gradients against those in float64, which the library computes."""
    (kernel, stride), taken = kernel, []
    monkeypatch.setitem(module.LEAST_PIXELS, (kernel, stride), 100)
    for name in ("convolve", "input_gradient", "weight_gradient"):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=function, n=name: taken.append(n) or f(*a))
    x = picture((2, 36, 21, 22), "channels_last")
    weight = torch.randn(60, 36, kernel, kernel) / 9
    leaves = [x, 1 + 0.1 * torch.randn(36), torch.randn(36), weight, torch.randn(60)]
    mean, rstd = torch.randn(2, 36), 1 + 0.1 * torch.rand(2, 36)
    results = []
    for dtype in (torch.float32, torch.float64):
        x, gamma, beta, weight, bias = own = [t.to(dtype).requires_grad_() for t in leaves]
        norm = Norm("instance", mean.to(dtype), rstd.to(dtype), gamma, beta)
        y, *statistics = norm_act_conv(
            x, norm, Conv(weight, bias, stride), "leaky_relu", 0.2, "zero", 2, eps=1e-5
        )
        torch.manual_seed(3)
        gradients = torch.autograd.grad(y, own, torch.randn_like(y, dtype=torch.float32).to(dtype))
        results.append((y, *statistics, *gradients))
    names = ("y", "mean", "rstd", "dx", "dgamma", "dbeta", "dweight", "dbias")
    for name, got, want in zip(names, *results, strict=True):
        assert_close_l2(got, want, 1e-5, name)
    assert taken == ["convolve", "input_gradient", "weight_gradient"]


@needs_cpp
def test_whatever_the_default_dtype_is():
    x, dy, weight = problem(1, 32, 64, 9, 10, 3, 1, 1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert_directions(x, dy, weight, None, 1, 1, ANY)
    finally:
        torch.set_default_dtype(before)


@needs_cpp
def test_any_number_of_threads():
    x, dy, weight = problem(1, 64, 96, 40, 41, 4, 1, 2)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(
            (
                module.convolve(x, weight, None, 1, 2),
                module.input_gradient(dy, x.shape[2:], weight, 1, 2),
                module.weight_gradient(dy, x, weight, 1, 2),
            )
        )
    for results in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results, found[0], strict=True))


@needs_cpp
def test_what_it_is_for():
    """Large layers in float32 on the CPU, whose weights fit; nothing else."""
    large, weight = torch.empty(1, 64, 40, 40), torch.empty(64, 64, 3, 3)
    assert module.suits(large, weight, 1, 1, False)
    assert module.suits_gradients(large, weight, 1, 1, False)
    no = [
        (large, weight, 1, 3, False),  # pad
        (large, weight, 2, 1, False),  # stride
        (large, weight, 1, 1, True),
        (large[..., :9, :9], weight, 1, 1, False),
        (large[:0], weight, 1, 1, False),
        (large.double(), weight.double(), 1, 1, False),
        (large.bfloat16(), weight.bfloat16(), 1, 1, False),
        (large.to("meta"), weight.to("meta"), 1, 1, False),
        (large[:, :16], weight[:, :16], 1, 1, False),
        (large, weight[..., :2], 1, 1, False),
        (large, torch.empty(64, 64, 5, 5), 1, 1, False),
        (large, torch.empty(64, 64, 4, 4), 2, 1, False),
    ]
    with FakeTensorMode(allow_non_fake_inputs=True):
        no.append((torch.empty(1, 64, 40, 40), weight, 1, 1, False))
    for arguments in no:
        assert not module.suits(*arguments)
        assert not module.suits_gradients(*arguments) or arguments[0].shape[2] < 40


@needs_cpp
@pytest.mark.parametrize(
    ("x", "points", "grid"),
    [
        (torch.zeros(1, 3, 8, 8).double(), (36, 4, 3), (6, 4, 1, 2, 2, 0)),
        (torch.zeros(1, 3, 8, 8), (35, 4, 3), (6, 4, 1, 2, 2, 0)),
        (torch.zeros(1, 3, 8, 8), (36, 4, 4), (6, 4, 1, 2, 2, 0)),
        (torch.zeros(1, 3, 8, 8), (36, 4, 3), (7, 4, 1, 2, 2, 0)),
        (torch.zeros(1, 3, 8, 8), (36, 4, 3), (6, 4, 1, 2, 2, 1)),
        (torch.zeros(1, 3, 8, 8), (36, 3, 3), (6, 4, 1, 2, 2, 0)),
    ],
)
def test_refuses_what_does_not_fit(x, points, grid):
    with pytest.raises(RuntimeError, match="winograd"):
        ops.winograd_points_(x, torch.zeros(points), *grid, False)


def test_opcheck():
    x, points = torch.randn(1, 3, 8, 8), torch.zeros(36, 4, 3)
    torch.library.opcheck(ops.winograd_points_, (x, points, 6, 4, 1, 2, 2, 0, False))
    torch.library.opcheck(ops.winograd_pixels_, (points, x, torch.zeros(3), 4, 2, 2, 0))
