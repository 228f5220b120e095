"""norm_act_pad: the reference against PyTorch, the kernels against the reference in float64."""

import sys

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from torch import Tensor

from pix2pixhd_fast import InputError, backend
from pix2pixhd_fast._library import INTERPRETED, library_status
from pix2pixhd_fast.ops import norm_act_pad
from pix2pixhd_fast.ops.norm_act_pad import (
    ACTIVATIONS,
    PADDINGS,
    norm_act_pad_backward_ref,
    norm_act_pad_ref,
)
from tests.helpers import assert_close_l2

op = torch.ops.pix2pixhd_fast.norm_act_pad
backward_op = torch.ops.pix2pixhd_fast.norm_act_pad_backward
needs_cpp = pytest.mark.skipif(
    INTERPRETED or "norm_act_pad" not in library_status()["kernels"],
    reason="the C++ kernels are not built",
)

X = torch.zeros(1, 2, 4, 6)
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# N, C, H, W, act, padding, pad: single pixels, rows and columns, pad = side - 1, more channels than
# a block has, more pixels than a block has, mirrors that meet in the middle
SMALL = [
    (1, 1, 1, 1, "relu", "none", 0),
    (2, 3, 1, 1, "leaky_relu", "replicate", 2),
    (1, 2, 1, 7, "relu", "zero", 2),
    (1, 2, 6, 1, "tanh", "replicate", 1),
    (2, 3, 5, 7, "relu", "reflect", 3),
    (1, 2, 4, 4, "none", "reflect", 3),
    (1, 70, 2, 3, "leaky_relu", "reflect", 1),
    (1, 3, 30, 41, "tanh", "reflect", 3),
    (1, 1, 33, 40, "relu", "replicate", 1),
]


def draw(n, c, h, w, dtype=torch.float32, layout="nchw", seed=0) -> Tensor:
    """Mean 1, deviation 2, rounded to `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, h, w, generator=generator) * 2 + 1
    return x.to(dtype).contiguous(memory_format=FORMATS[layout])


def expected(x, act="none", slope=0.2, padding="none", pad=0, eps=1e-5):
    """The layers of PyTorch, one by one."""
    if x[0, 0].numel() == 1:
        y = x - x  # F.instance_norm refuses a single pixel
    else:
        y = F.instance_norm(x, eps=eps)
    if act == "relu":
        y = F.relu(y)
    elif act == "leaky_relu":
        y = F.leaky_relu(y, slope)
    elif act == "tanh":
        y = torch.tanh(y)
    if pad == 0:
        return y
    mode = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}[padding]
    return F.pad(y, (pad,) * 4, mode=mode)


def assert_right(x, act, padding, pad, slope=0.2, eps=1e-5):
    """Forward and backward of x against PyTorch in float64."""
    x = x.detach().requires_grad_()
    y, mean, rstd = norm_act_pad(x, act, slope, padding, pad, eps)
    dy = draw(*y.shape, x.dtype, seed=1000)
    (dx,) = torch.autograd.grad(y, x, dy)
    wide = x.detach().double().requires_grad_()
    want = expected(wide, act, slope, padding, pad, eps)
    (want_dx,) = torch.autograd.grad(want, wide, dy.double())
    tol = TOLERANCES[x.dtype]
    assert (y.dtype, dx.dtype, mean.dtype) == (x.dtype, x.dtype, torch.float32)
    assert_close_l2(y, want, tol, "y")
    assert_close_l2(mean, wide.mean((2, 3)), 1e-6, "mean")
    variance = wide.var((2, 3), correction=0)
    assert_close_l2(rstd, (variance + eps).rsqrt(), 1e-5, "rstd")
    # Of few pixels next to nothing is left of rstd * dy once the means are taken away.
    whole = torch.linalg.vector_norm(rstd[..., None, None] * dy).item()
    left = torch.linalg.vector_norm(want_dx).item() or 1.0
    assert_close_l2(dx, want_dx, tol * max(1.0, whole / left), "dx")


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_small(case, layout, backend_name):
    *shape, act, padding, pad = case
    if INTERPRETED and layout == "nchw":
        shape[1] = min(2, shape[1])  # each channel is an image, which takes it 0.1 s
    assert_right(draw(*shape, layout=layout), act, padding, pad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_small_narrow(dtype, backend_name):
    for layout in FORMATS:
        assert_right(draw(1, 3, 9, 11, dtype, layout), "leaky_relu", "reflect", 2)


def paddings(h, w):
    """padding and pad that suit a picture of h * w."""
    reflect = st.tuples(st.just("reflect"), st.integers(0, min(h, w, 9) - 1))
    others = st.tuples(st.sampled_from(["replicate", "zero"]), st.integers(0, 5))
    return reflect | others | st.just(("none", 0))


@st.composite
def problems(draw_one):
    h, w = draw_one(st.integers(1, 24)), draw_one(st.integers(1, 90))
    padding, pad = draw_one(paddings(h, w))
    n, c = draw_one(st.integers(1, 3)), draw_one(st.integers(1, 9) | st.sampled_from([32, 67, 300]))
    return (n, c, h, w), draw_one(st.sampled_from(ACTIVATIONS)), padding, pad


@needs_cpp
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=60)
@given(problems(), st.sampled_from(sorted(FORMATS)), st.integers(0, 99))
@example(((1, 2, 210, 331), "relu", "reflect", 3), "nchw", 0)
@example(((1, 33, 70, 61), "tanh", "replicate", 3), "channels_last", 0)
@example(((1, 2100, 5, 4), "leaky_relu", "reflect", 3), "channels_last", 0)
def test_drawn(dtype, problem, layout, seed):
    shape, act, padding, pad = problem
    assert_right(draw(*shape, dtype, layout, seed), act, padding, pad)


@pytest.mark.parametrize("padding", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("layout", FORMATS)
def test_small_padding_moves_data_only(padding, layout, backend_name):
    x = draw(1, 2, 6, 9, layout=layout)
    y = norm_act_pad(x, "tanh")[0]
    mode = "constant" if padding == "zero" else padding
    for pad in (0, 1, 4):
        padded = norm_act_pad(x, "tanh", padding=padding, pad=pad)[0]
        assert torch.equal(padded, F.pad(y, (pad,) * 4, mode=mode))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_reference_backward_is_that_of_autograd(act):
    for padding, pad in (("none", 0), ("reflect", 3), ("replicate", 2), ("zero", 2)):
        x = draw(2, 3, 5, 6, torch.float64).requires_grad_()
        y, mean, rstd = norm_act_pad_ref(x, act, 0.2, padding, pad, 1e-5)
        dy = draw(*y.shape, torch.float64, seed=1)
        (want,) = torch.autograd.grad(y, x, dy)
        got = norm_act_pad_backward_ref(dy, x.detach(), mean, rstd, act, 0.2, padding, pad)
        assert_close_l2(got, want, 1e-13, f"{act} {padding}")


class Reference(torch.autograd.Function):
    """The reference with the reference of its backward."""

    @staticmethod
    def forward(ctx, x, *options):
        y, mean, rstd = norm_act_pad_ref(x, *options)
        ctx.save_for_backward(x, mean, rstd)
        ctx.options = options[:-1]
        return y

    @staticmethod
    def backward(ctx, dy):
        dx = norm_act_pad_backward_ref(dy, *ctx.saved_tensors, *ctx.options)
        return (dx,) + (None,) * 5


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_gradcheck(act, padding):
    x = draw(1, 2, 3, 4, torch.float64).requires_grad_()
    options = (act, 0.2, padding, 0 if padding == "none" else 2, 1e-5)
    assert torch.autograd.gradcheck(lambda x: Reference.apply(x, *options), x)
    assert torch.autograd.gradcheck(lambda x: norm_act_pad(x, *options)[0], x)


VIEWS = {
    "nchw": (lambda x: x, False),
    "channels_last": (lambda x: x.contiguous(memory_format=torch.channels_last), True),
    "one channel": (lambda x: x[:, :1].contiguous(memory_format=torch.channels_last), False),
    "transposed": (lambda x: x.transpose(2, 3), False),
    "strided": (lambda x: x[..., ::2], False),
    "cropped": (lambda x: x.contiguous(memory_format=torch.channels_last)[..., 1:, 3:], False),
    "expanded": (lambda x: x[:, :, :1].expand(-1, -1, 5, -1), False),
}


@pytest.mark.parametrize("name", VIEWS)
def test_small_strides(name, backend_name):
    view, last = VIEWS[name]
    layout = torch.channels_last if last else torch.contiguous_format
    x = view(draw(1, 2, 5, 7))
    assert_right(x, "relu", "reflect", 1)
    leaf = x.detach().requires_grad_()
    y, mean, rstd = norm_act_pad(leaf, "relu", padding="reflect", pad=1)
    assert y.stride() == torch.empty(y.shape, memory_format=layout).stride()
    assert mean.is_contiguous() and rstd.is_contiguous()
    assert not mean.requires_grad and not rstd.requires_grad
    # A gradient of other strides than y.
    (dx,) = torch.autograd.grad(y, leaf, torch.ones(1).expand(y.shape))
    assert dx.isfinite().all()


def test_small_gradient_format():
    for layout, memory_format in FORMATS.items():
        x = draw(2, 3, 4, 5, layout=layout)
        y, mean, rstd = op(x, "relu", 0.2, "zero", 1, 1e-5)
        dx = backward_op(y, x, mean, rstd, "relu", 0.2, "zero", 1)
        assert dx.stride() == torch.empty(dx.shape, memory_format=memory_format).stride()


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5)], ids=str)
def test_small_empty(shape, backend_name):
    for padding, pad in (("none", 0), ("reflect", 2), ("replicate", 2), ("zero", 2)):
        x = torch.empty(shape).requires_grad_()
        y, mean, rstd = norm_act_pad(x, "relu", padding=padding, pad=pad)
        assert y.shape == (*shape[:2], shape[2] + 2 * pad, shape[3] + 2 * pad)
        assert mean.shape == rstd.shape == shape[:2]
        y.sum().backward()
        assert x.grad.shape == shape


@needs_cpp
@pytest.mark.parametrize("shape", [(1, 3, 300, 401), (9, 1, 64, 65)], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_any_number_of_threads(shape, layout):
    x = draw(*shape, layout=layout)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y, mean, rstd = op(x, "leaky_relu", 0.2, "reflect", 3, 1e-5)
        dx = backward_op(y, x, mean, rstd, "leaky_relu", 0.2, "reflect", 3)
        results.append((y, mean, rstd, dx))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-7, 1.0, 100.0])
def test_narrow_dtypes_round_once(dtype, scale):
    """The same bits as the float32 kernel and PyTorch's conversions, subnormal numbers included."""
    x = (draw(1, 2, 60, 70) * scale).to(dtype)
    x[0, 0, 0, 0] = -0.0
    wide = op(x.float(), "tanh", 0.2, "reflect", 3, 1e-12)
    y, mean, rstd = op(x, "tanh", 0.2, "reflect", 3, 1e-12)
    assert torch.equal(mean, wide[1]) and torch.equal(rstd, wide[2])
    assert torch.equal(y, wide[0].to(dtype))
    dy = (y * 1e-4).to(dtype)
    rest = (mean, torch.full_like(rstd, 0.01), "none", 0.2, "reflect", 3)
    dx = backward_op(dy, x, *rest)
    assert torch.equal(dx, backward_op(dy.float(), x.float(), *rest).to(dtype))


@needs_cpp
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_stays_in_its_channel(dtype, bad):
    for layout in FORMATS:
        x = draw(1, 3, 5, 40, dtype, layout)
        x[0, 1, 2, 3] = bad
        for act in ACTIVATIONS:
            y = norm_act_pad(x, act, padding="reflect", pad=1)[0]
            assert y[:, 1].isnan().any() and y[:, ::2].isfinite().all()


@pytest.mark.skipif(not INTERPRETED, reason="not under Triton's interpreter")
def test_small_runs_triton():
    op(X, "relu", 0.2, "none", 0, 1e-5)
    assert "pix2pixhd_fast.kernels.norm_act_pad" in sys.modules


def test_small_far_from_zero():
    # float32 has 4e-6 for a value of 100: so much is lost before the subtraction.
    x = draw(1, 3, 40, 50) + 100
    y, mean, rstd = norm_act_pad(x)
    assert_close_l2(mean, x.double().mean((2, 3)), 1e-7, "mean")
    assert_close_l2(rstd, x.double().var((2, 3), correction=0).rsqrt(), 1e-5, "rstd")
    assert_close_l2(y, expected(x.double()), 1e-5, "y")


@pytest.mark.parametrize("layout", FORMATS)
def test_small_opcheck(layout):
    for shape, padding in (((1, 2, 3, 4), "reflect"), ((0, 3, 4, 5), "zero")):
        x = draw(*shape, layout=layout).requires_grad_()
        options = ("tanh", 0.2, padding, 2)
        torch.library.opcheck(op, (x, *options, 1e-5))
        y, mean, rstd = op(x.detach(), *options, 1e-5)
        torch.library.opcheck(backward_op, (y, x.detach(), mean, rstd, *options))


def test_shape_inference_without_data():
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 5, 6, 8, dtype=torch.float16, device="cuda")
        x = x.contiguous(memory_format=torch.channels_last)
        y, mean, _ = norm_act_pad(x, "relu", padding="reflect", pad=3)
    assert (y.shape, y.dtype, y.device.type) == ((2, 5, 12, 14), torch.float16, "cuda")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (mean.shape, mean.dtype) == ((2, 5), torch.float32)


def test_compiles_in_one_graph(backend_name):
    def block(x):
        return norm_act_pad(x * 2, "relu", padding="reflect", pad=2)[0].sin()

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((1, 3, 6, 8), (2, 4, 9, 5)):
        x = draw(*shape).requires_grad_()
        y = compiled(x)
        assert_close_l2(y, block(x), 1e-6, "y")
        (dx,) = torch.autograd.grad(y.square().sum(), x)
        (want,) = torch.autograd.grad(block(x).square().sum(), x)
        assert_close_l2(dx, want, 1e-6, "dx")


def test_small_autocast_keeps_the_dtype(backend_name):
    x = draw(1, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        h = F.conv2d(x, torch.ones(4, 4, 1, 1))
        assert h.dtype == norm_act_pad(h, "relu")[0].dtype == torch.bfloat16
        assert norm_act_pad(x)[0].dtype == torch.float32


def test_small_no_second_derivative():
    x = draw(1, 2, 4, 4).requires_grad_()
    y = norm_act_pad(x, "tanh")[0]
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="norm_act_pad has no second derivative"):
        dx.sum().backward()


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X[0], {}, r"x must be \[N, C, H, W\], got \[2, 4, 6\]"),
        (X.int(), {}, "x must be float32, float16, bfloat16 or float64, got torch.int32"),
        (X[:, :, :0], {}, r"x must have at least one pixel, got \[1, 2, 0, 6\]"),
        (X, {"act": "gelu"}, "act must be one of none, relu, leaky_relu, tanh, got 'gelu'"),
        (X, {"padding": "same"}, "padding must be one of none, reflect, replicate, zero, got 'sam"),
        (X, {"pad": 1}, "pad must be 0 where padding is none, got 1"),
        (X, {"padding": "zero", "pad": -1}, "pad must be at least 0, got -1"),
        (X, {"padding": "reflect", "pad": 4}, "pad must be less than both sides of x, 4 x 6, .* 4"),
        (X, {"eps": 0.0}, "eps must be positive, got 0.0"),
    ],
)
def test_refuses(x, options, message):
    with pytest.raises(InputError, match=message):
        norm_act_pad(x, **options)


@needs_cpp
def test_kernel_refuses_what_would_read_outside():
    x = draw(1, 2, 4, 4)
    with pytest.raises(RuntimeError, match="pad does not suit x"):
        op(x, "relu", 0.2, "reflect", 4, 1e-5)
    _, mean, rstd = op(x, "relu", 0.2, "none", 0, 1e-5)
    with pytest.raises(RuntimeError, match="dy does not match x"):
        backward_op(x, x, mean, rstd, "relu", 0.2, "zero", 1)
    with pytest.raises(RuntimeError, match="mean and rstd must be float32"):
        backward_op(x, x, mean[:, :1], rstd, "relu", 0.2, "none", 0)


@needs_cpp
def test_fused_runs_the_kernel_and_eager_does_not():
    for name, count in (("fused", 1), ("eager", 0)):
        with torch.profiler.profile() as profile, backend(name):
            norm_act_pad(X)
        calls = [e.name for e in profile.events() if e.name == "pix2pixhd_fast::norm_act_pad"]
        assert len(calls) == count
