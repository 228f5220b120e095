"""residual_block: against the modules of PyTorch in float64."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from pix2pixhd_fast import InputError
from pix2pixhd_fast.ops import Bordered, residual_block
from pix2pixhd_fast.ops.norm_act_pad import ACTIVATIONS
from tests.helpers import assert_close_l2
from tests.pictures import FORMATS, activation, draw, inner, ops, padded

EPS = (1e-5, 1e-3)
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


def leaves_of(shape, dtype=torch.float64, layout="nchw") -> list[Tensor]:
    """h, both weights and both biases."""
    c = shape[1]
    weights = (draw(c, c, 3, 3, dtype, seed=seed) / c for seed in (1, 2))
    biases = (torch.linspace(-1, 1, c, dtype=dtype) for _ in range(2))
    return [t.requires_grad_() for t in (draw(*shape, dtype, layout), *weights, *biases)]


def modules(h, weight1, weight2, bias1, bias2, act="relu", slope=0.2, padding="reflect"):
    """By PyTorch, with the biases that have no effect."""
    y = F.conv2d(padded(h, padding, 1), weight1, bias1)
    y = activation(F.instance_norm(y, eps=EPS[0]), act, slope)
    y = F.conv2d(padded(y, padding, 1), weight2, bias2)
    return h + F.instance_norm(y, eps=EPS[1])


def fused(h, weight1, weight2, bias1, bias2, act="relu", slope=0.2, padding="reflect", borders=()):
    """With the border of h, if any, written before and that of the result, if any, checked."""
    border, next_border = borders or (0, 0)
    given = Bordered(padded(h, padding, border), border)
    weights, biases = (weight1, weight2), (bias1, bias2)
    out = residual_block(given, weights, biases, act, slope, padding, EPS, next_border)
    assert out.border == next_border
    inside = inner(out.padded, next_border)
    assert torch.equal(out.padded, padded(inside, padding, next_border))
    # What reads the border as well gives it a gradient.
    return out.padded


def assert_right(shape, dtype, layout, act, padding, borders):
    leaves = leaves_of(shape, dtype, layout)
    # Not channels_last: there F.instance_norm of PyTorch 2.14 has a wrong gradient on the CPU.
    wide = [t.detach().double().contiguous().requires_grad_() for t in leaves]
    y = fused(*leaves, act, 0.2, padding, borders)
    want = padded(modules(*wide, act, 0.2, padding), padding, borders[1])
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert_close_l2(y, want, TOLERANCES[dtype], "y")
    dy = draw(*y.shape, dtype, seed=3)
    found = torch.autograd.grad(y, leaves, dy)
    right = torch.autograd.grad(want, wide, dy.double())
    names = ("dh", "dweight1", "dweight2")
    for name, mine, exact in zip(names, found, right, strict=False):
        assert_close_l2(mine, exact, TOLERANCES[dtype], name)
    assert not any(dbias.any() for dbias in found[3:])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=30)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(3, 9), st.integers(3, 9)),
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(ACTIVATIONS),
    st.sampled_from(["reflect", "replicate", "zero"]),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
def test_drawn(dtype, shape, layout, act, padding, borders):
    assert_right(shape, dtype, layout, act, padding, (0, 0) if padding == "zero" else borders)


def test_chain_of_blocks():
    """Each writes the border that the next one reads."""
    leaves = leaves_of((1, 3, 5, 6), torch.float32)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    h, want = Bordered(leaves[0]), wide[0]
    for border in (1, 1, 0):
        h = residual_block(h, leaves[1:3], (None, None), "relu", eps=EPS, border=border)
        want = modules(want, *wide[1:])
    assert_close_l2(h.padded, want, 1e-5, "h")
    found = torch.autograd.grad(h.padded.square().sum(), leaves[:3])
    right = torch.autograd.grad(want.square().sum(), wide[:3])
    for mine, exact in zip(found, right, strict=True):
        assert_close_l2(mine, exact, 1e-4, "gradient")


@pytest.mark.parametrize("padding", ["reflect", "replicate", "zero"])
def test_gradcheck(padding):
    leaves = leaves_of((1, 2, 3, 4))[:3]
    borders = (0, 0) if padding == "zero" else (1, 1)

    def block(*tensors):
        return fused(*tensors, None, None, "tanh", 0.2, padding, borders)

    assert torch.autograd.gradcheck(block, leaves)


def test_autocast():
    leaves = leaves_of((1, 16, 16, 16), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = fused(*leaves, borders=(1, 1))
    assert y.dtype == torch.bfloat16
    want = padded(modules(*leaves), "reflect", 1)
    assert_close_l2(y, want, 2e-2, "y")
    dy = draw(*y.shape, seed=3)
    found = torch.autograd.grad(y, leaves[:3], dy.bfloat16())
    right = torch.autograd.grad(want, leaves[:3], dy)
    # Measured: 0.016, 0.06 and 0.009; of the modules under autocast 0.021, 0.08 and 0.013.
    for mine, exact in zip(found, right, strict=True):
        assert mine.dtype == torch.float32
        assert_close_l2(mine, exact, 0.1, "gradient")


def test_compiles_in_one_graph():
    def block(h, *weights):
        first = residual_block(Bordered(h), weights, (None, None), border=1)
        return residual_block(first, weights, (None, None)).padded.sin()

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    leaves = leaves_of((2, 3, 6, 8), torch.float32)[:3]
    assert_close_l2(compiled(*leaves), block(*leaves), 1e-5, "y")
    found = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    right = torch.autograd.grad(block(*leaves).square().sum(), leaves)
    for mine, exact in zip(found, right, strict=True):
        assert_close_l2(mine, exact, 1e-4, "gradient")


def test_shape_inference_without_data():
    with torch._subclasses.FakeTensorMode():
        h = torch.empty(2, 5, 8, 9, dtype=torch.float16, device="cuda")
        weights = [torch.empty(5, 5, 3, 3, dtype=torch.float16, device="cuda") for _ in range(2)]
        out = residual_block(Bordered(h, 1), weights, (None, None))
    assert (out.padded.shape, out.padded.dtype) == ((2, 5, 6, 7), torch.float16)
    assert out.padded.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", FORMATS)
def test_opcheck(layout):
    for shape, padding, borders in (
        ((1, 2, 5, 6), "reflect", (1, 1)),
        ((2, 3, 4, 3), "zero", (0, 0)),
    ):
        leaves = leaves_of(shape, torch.float32, layout)
        given = (*leaves, "leaky_relu", 0.2, padding, *borders, *EPS)
        torch.library.opcheck(ops.residual_block, given)
        out, *rest = (t.detach() for t in ops.residual_block(*given))
        h, weight1, weight2 = (t.detach() for t in leaves[:3])
        dout = draw(*out.shape, layout=layout, seed=3)
        for needs in ((True, True), (False, True)):
            arguments = (dout, out, h, *rest, weight1, weight2, *given[5:10], *needs)
            torch.library.opcheck(ops.residual_block_backward, arguments)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_no_second_derivative(dtype):
    leaves = leaves_of((1, 2, 5, 6), dtype)
    y = fused(*leaves)
    (dh,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="residual_block has no second derivative"):
        dh.sum().backward()


H, WEIGHT = torch.zeros(1, 2, 5, 6), torch.zeros(2, 2, 3, 3)


@pytest.mark.parametrize(
    ("h", "weight", "options", "message"),
    [
        (Bordered(H[0]), WEIGHT, {}, r"x must be \[N, C, H, W\], got \[2, 5, 6\]"),
        (Bordered(H[:, :1]), WEIGHT, {}, "x must have the 2 channels of the weight, got 1"),
        (Bordered(H), WEIGHT.double(), {}, "weight must have the dtype of x, torch.float32, got"),
        (Bordered(H), WEIGHT[..., :2], {}, r"weights must be \[C, C, 3, 3\], got \[2, 2, 3, 2\]"),
        (Bordered(H), WEIGHT, {"act": "gelu"}, "act must be one of none, relu, .*, got 'gelu'"),
        (Bordered(H, 1), WEIGHT, {"padding": "zero"}, "border must be 0 where padding is zero"),
        (Bordered(H), WEIGHT, {"padding": "zero", "border": 1}, "border must be 0 where padding"),
        (Bordered(H[:, :, :1]), WEIGHT, {}, "pad must be less than both sides of x, 1 x 6"),
        (Bordered(H, 2), WEIGHT, {}, "border must be 0 or 1, got 2"),
        (Bordered(H), WEIGHT, {"border": 2}, "border must be 0 or 1, got 2"),
        (Bordered(H), WEIGHT, {"padding": "none"}, "padding must be reflect, replicate or zero"),
    ],
)
def test_refuses(h, weight, options, message):
    with pytest.raises(InputError, match=message):
        residual_block(h, (weight, weight), (None, None), **options)
