"""norm_act_conv: against the layers of PyTorch in float64."""

import importlib
import itertools
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from torch import Tensor

from pix2pixhd_fast import InputError
from pix2pixhd_fast.ops import Conv, Norm, norm_act_conv
from pix2pixhd_fast.ops.norm_act_pad import ACTIVATIONS, NORMS
from tests.helpers import assert_close_l2
from tests.pictures import FORMATS, activation, draw, ops, padded, paddings

# The function of the same name hides the module as an attribute.
module = importlib.import_module("pix2pixhd_fast.ops.norm_act_conv")
EPS = 1e-5
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


class Layer(NamedTuple):
    """A norm, an activation, a padding and a convolution, x [n, c, h, w] -> k channels."""

    shape: tuple[int, int, int, int]
    k: int = 3
    kernel: int = 3
    kind: str = "instance"
    affine: bool = False
    act: str = "relu"
    padding: str = "reflect"
    pad: int = 1
    stride: int = 1
    transposed: bool = False
    output_padding: int = 0
    bias: bool = True
    dead_bias: bool = False

    def tensors(self, dtype=torch.float64, layout="nchw") -> dict[str, Tensor]:
        """The leaves, drawn."""
        c = self.shape[1]
        sizes = (c, self.k) if self.transposed else (self.k, c)
        found = {
            "x": draw(*self.shape, dtype, layout),
            "weight": draw(*sizes, self.kernel, self.kernel, dtype, seed=1) / c**0.5 / self.kernel,
        }
        if self.bias:
            found["bias"] = torch.linspace(-1, 1, self.k, dtype=dtype)
        if self.affine:
            found["gamma"] = torch.linspace(0.5, 2, c, dtype=dtype)
            found["beta"] = torch.linspace(-1, 1, c, dtype=dtype)
        return {name: tensor.requires_grad_() for name, tensor in found.items()}

    def norm(self, x, gamma=None, beta=None) -> Norm:
        if self.kind == "none":
            return Norm(gamma=gamma, beta=beta)
        x = x.detach()
        if self.kind == "fixed":
            mean, rstd = torch.full(self.shape[:2], 0.5), torch.full(self.shape[:2], 0.75)
        else:
            dims = (2, 3) if self.kind == "instance" else (0, 2, 3)
            variance, mean = torch.var_mean(x.double(), dims, correction=0)
            mean, rstd = (t.expand(self.shape[:2]) for t in (mean, (variance + EPS).rsqrt()))
        dtype = torch.promote_types(x.dtype, torch.float32)
        return Norm(self.kind, mean.to(dtype), rstd.to(dtype), gamma, beta)

    def fused(self, x, weight, bias=None, gamma=None, beta=None):
        conv = Conv(weight, bias, *self[8:11], self.dead_bias)
        norm = self.norm(x, gamma, beta)
        return norm_act_conv(x, norm, conv, self.act, 0.2, self.padding, self.pad, EPS)

    def layers(self, x, weight, bias=None, gamma=None, beta=None):
        """The same by PyTorch; without the bias where it is dead."""
        if self.kind in ("instance", "batch"):
            dims = (2, 3) if self.kind == "instance" else (0, 2, 3)
            variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
            x = (x - mean) * (variance + EPS).rsqrt()
        elif self.kind == "fixed":
            x = (x - 0.5) * 0.75
        if self.affine:
            x = x * gamma[:, None, None] + beta[:, None, None]
        x = activation(x, self.act, 0.2)
        bias = None if self.dead_bias else bias
        if self.transposed:
            return F.conv_transpose2d(x, weight, bias, self.stride, self.pad, self.output_padding)
        return F.conv2d(padded(x, self.padding, self.pad), weight, bias, self.stride)


def assert_right(layer: Layer, dtype: torch.dtype, layout: str) -> None:
    """y, its statistics and all gradients against the layers in float64."""
    leaves = layer.tensors(dtype, layout)
    wide = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
    y, mean, rstd = layer.fused(**leaves)
    want = layer.layers(**wide)
    tol = TOLERANCES[dtype]
    assert (y.dtype, y.is_contiguous(memory_format=torch.channels_last)) == (dtype, True)
    assert_close_l2(y, want, tol, "y")
    got = y.detach().double()
    assert_close_l2(mean, got.mean((2, 3)), tol, "mean")
    assert_close_l2(rstd, (got.var((2, 3), correction=0) + EPS).rsqrt(), tol, "rstd")
    assert not mean.requires_grad and not rstd.requires_grad
    dy = draw(*y.shape, dtype, seed=2)
    found = torch.autograd.grad(y, list(leaves.values()), dy)
    right = torch.autograd.grad(want, list(wide.values()), dy.double(), allow_unused=True)
    for name, mine, exact in zip(leaves, found, right, strict=True):
        assert mine.dtype == dtype
        if exact is None:
            assert name == "bias" and layer.dead_bias and not mine.any()
            continue
        # Of few pixels next to nothing is left of dx once the means are taken away.
        few = layer.shape[2] * layer.shape[3] < 16
        assert few or assert_close_l2(mine, exact, tol, f"d{name}") is None
        assert mine.shape == exact.shape and mine.isfinite().all()


@st.composite
def layers(draw_one):
    kernel, stride = draw_one(st.sampled_from([1, 3, 4, 7])), draw_one(st.integers(1, 2))
    h, w = draw_one(st.integers(1, 12)), draw_one(st.integers(1, 12))
    transposed = draw_one(st.booleans()) and kernel > 1
    if transposed:
        padding, pad = "zero", draw_one(st.integers(0, min(kernel // 2, 2)))
    else:
        padding, pad = draw_one(paddings(h, w))
    # The picture must be as large as the kernel, or a transposed one's result at least a pixel.
    needed = 2 * pad + 1 if transposed else max(1, kernel - 2 * pad)
    shape = (draw_one(st.integers(1, 2)), draw_one(st.integers(1, 5)), h + needed, w + needed)
    return Layer(
        shape,
        draw_one(st.integers(1, 5)),
        kernel,
        draw_one(st.sampled_from(NORMS)),
        draw_one(st.booleans()),
        draw_one(st.sampled_from(ACTIVATIONS)),
        padding,
        pad,
        stride,
        transposed,
        draw_one(st.integers(0, stride - 1)) if transposed else 0,
        *draw_one(st.sampled_from([(True, False), (False, False), (True, True)])),
    )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=60)
@given(layers(), st.sampled_from(sorted(FORMATS)))
@example(Layer((1, 2, 9, 8), kind="none", act="none", padding="none", pad=0), "nchw")
@example(Layer((1, 2, 9, 8), 3, 7, pad=3), "channels_last")
@example(Layer((2, 4, 6, 5), 2, 3, "batch", True, "relu", "zero", 1, 2, True, 1), "nchw")
@example(Layer((1, 3, 8, 10), 4, 4, "fixed", True, "leaky_relu", "zero", 2, 2), "channels_last")
def test_drawn(dtype, layer, layout):
    assert_right(layer, dtype, layout)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("transposed", [False, True])
def test_gradcheck(kind, transposed):
    layer = Layer((2, 2, 4, 3), 2, 3, kind, True, "tanh", "zero", 1, 2, transposed)
    leaves = layer.tensors()

    def y(*tensors):
        return layer.fused(**dict(zip(leaves, tensors, strict=True)))[0]

    assert torch.autograd.gradcheck(y, tuple(leaves.values()))


def test_only_what_is_needed():
    layer = Layer((1, 2, 5, 6), kind="none", act="none", affine=True)
    for name in layer.tensors():
        leaves = {key: t.detach() for key, t in layer.tensors().items()}
        y = layer.fused(**(leaves | {name: leaves[name].requires_grad_()}))[0]
        y.sum().backward()
        assert [key for key, t in leaves.items() if t.grad is not None] == [name]


PARTS = (
    Layer((1, 3, 8, 11), 4, 4, affine=True, padding="replicate", pad=2, stride=2),
    Layer((2, 3, 7, 6), 5, 4, "none", act="none", padding="zero", pad=2, stride=2),
    Layer((2, 3, 5, 6), 5, padding="reflect"),
    Layer((1, 3, 5, 6), 5, 3, "fixed", True, "tanh", "zero", 1, 2, True, 1),
)


@pytest.mark.parametrize("layer", PARTS, ids=lambda layer: f"{layer.padding}-{layer.transposed}")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_parts_of_the_gradients_are_those_of_all(layer, dtype):
    """And without that of the weight, what the convolution read is not computed anew."""
    leaves = {name: t.detach() for name, t in layer.tensors(dtype).items()}
    given = arguments(layer, leaves)
    dy = draw(*ops.norm_act_conv(*given, None)[0].shape, dtype, seed=2)
    rest = (*given[:6], *given[7:-1])
    dx, dweight, dbias, *affine = ops.norm_act_conv_backward(dy, *rest, True, True, True)
    for needs in itertools.product((False, True), repeat=3):
        parts = zip((dx, dweight, dbias), needs, strict=True)
        wanted = [t for t, needed in parts if needed] + (affine if needs[0] else [])
        with applications() as written:
            found = ops.norm_act_conv_backward(dy, *rest, *needs)
        assert len(written) == needs[1]
        for mine, exact in zip(found, wanted, strict=True):
            assert_close_l2(mine, exact, TOLERANCES[dtype], str(needs))


@contextmanager
def applications():
    """The padded inputs that are computed in the block."""
    found = []

    def noted(*arguments):
        found.append(padded_input(*arguments))
        return found[-1]

    padded_input = module.padded_input
    with mock.patch.object(module, "padded_input", noted):
        yield found


def test_no_statistics_where_none_are_wanted():
    leaves = Layer((1, 2, 5, 6)).tensors()
    y, mean, rstd = norm_act_conv(leaves["x"], Norm(), Conv(leaves["weight"]))
    assert y.shape == (1, 3, 3, 4) and mean.numel() == rstd.numel() == 0


def test_autocast():
    layer = Layer((1, 3, 8, 9), affine=True)
    leaves = layer.tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, mean, _ = layer.fused(**leaves)
    assert (y.dtype, mean.dtype) == (torch.bfloat16, torch.float32)
    want = layer.layers(**leaves)
    assert_close_l2(y, want, 1e-2, "y")
    dy = draw(*y.shape, seed=2)
    found = torch.autograd.grad(y, list(leaves.values()), dy.bfloat16())
    right = torch.autograd.grad(want, list(leaves.values()), dy)
    for name, mine, exact in zip(leaves, found, right, strict=True):
        assert mine.dtype == torch.float32
        assert_close_l2(mine, exact, 4e-2, f"d{name}")


def test_compiles_in_one_graph():
    layer = Layer((2, 3, 6, 8), affine=True)

    def block(*tensors):
        y, mean, _ = layer.fused(*tensors)
        return y.sin() + mean[..., None, None]

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    leaves = tuple(layer.tensors(torch.float32).values())
    assert_close_l2(compiled(*leaves), block(*leaves), 1e-6, "y")
    found = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    right = torch.autograd.grad(block(*leaves).square().sum(), leaves)
    for mine, exact in zip(found, right, strict=True):
        assert_close_l2(mine, exact, 1e-5, "gradient")


def test_shape_inference_without_data():
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 5, 6, 8, dtype=torch.float16, device="cuda")
        conv = Conv(torch.empty(7, 5, 3, 3, dtype=torch.float16, device="cuda"))
        y, mean, rstd = norm_act_conv(x, Norm(), conv, "relu", padding="reflect", pad=1, eps=EPS)
    assert (y.shape, y.dtype, y.device.type) == ((2, 7, 6, 8), torch.float16, "cuda")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (mean.shape, rstd.dtype) == ((2, 7), torch.float32)


def arguments(layer, leaves):
    """Of the op."""
    norm = layer.norm(leaves["x"], leaves.get("gamma"), leaves.get("beta"))
    tensors = (leaves["x"], *norm.tensors, leaves["weight"], leaves.get("bias"))
    options = (layer.kind, layer.act, 0.2, layer.padding, layer.pad, *layer[8:11])
    return (*tensors, *options, layer.dead_bias)


@pytest.mark.parametrize("layout", FORMATS)
def test_opcheck(layout):
    for layer, eps in (
        (Layer((1, 2, 5, 6), affine=True), EPS),
        (Layer((2, 2, 4, 4), 3, 4, "none", act="none", padding="zero", pad=2, stride=2), None),
        (Layer((1, 2, 3, 1), 3, 3, "batch", padding="zero", stride=2, transposed=True), EPS),
    ):
        leaves = layer.tensors(torch.float32, layout)
        given = arguments(layer, leaves)
        torch.library.opcheck(ops.norm_act_conv, (*given, eps))
        dy = draw(*ops.norm_act_conv(*given, eps)[0].shape, layout=layout)
        tensors = [None if t is None else t.detach() for t in given[:6]]
        for needs in ((True, True, True), (False, True, False)):
            torch.library.opcheck(ops.norm_act_conv_backward, (dy, *tensors, *given[7:-1], *needs))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_no_second_derivative(dtype):
    layer = Layer((1, 2, 5, 6))
    leaves = layer.tensors(dtype)
    y = layer.fused(**leaves)[0]
    (dx,) = torch.autograd.grad(y.square().sum(), leaves["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="norm_act_conv has no second derivative"):
        dx.sum().backward()


X, WEIGHT = torch.zeros(1, 2, 4, 6), torch.zeros(3, 2, 3, 3)


@pytest.mark.parametrize(
    ("x", "conv", "options", "message"),
    [
        (X[0], Conv(WEIGHT), {}, r"x must be \[N, C, H, W\], got \[2, 4, 6\]"),
        (X[:, :1], Conv(WEIGHT), {}, "x must have the 2 channels of the weight, got 1"),
        (X, Conv(WEIGHT.half()), {}, "weight must have the dtype of x, torch.float32, got torch.f"),
        (X, Conv(WEIGHT), {"act": "gelu"}, "act must be one of none, relu, .*, got 'gelu'"),
        (X, Conv(WEIGHT), {"pad": 1}, "pad must be 0 where padding is none, got 1"),
        (X, Conv(WEIGHT), {"padding": "reflect", "pad": 4}, "pad must be less than both sides"),
        (
            X,
            Conv(WEIGHT.transpose(0, 1), transposed=True),
            {"padding": "reflect", "pad": 1},
            "padding of a transposed convolution must be none or zero, got 'reflect'",
        ),
    ],
)
def test_refuses(x, conv, options, message):
    with pytest.raises(InputError, match=message):
        norm_act_conv(x, Norm(), conv, **options)
