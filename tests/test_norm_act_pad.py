"""norm_act_pad and normalise: against PyTorch; the kernel of the forward against its reference."""

import sys

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings

from pix2pixhd_fast import InputError
from pix2pixhd_fast._library import INTERPRETED
from pix2pixhd_fast.ops import Norm, norm_act_pad, normalise
from pix2pixhd_fast.ops.norm_act_pad import ACTIVATIONS, NORMS, PADDINGS
from tests.helpers import assert_close_l2
from tests.pictures import (
    FORMATS,
    TOLERANCES,
    Problem,
    activation,
    assert_like_reference,
    draw,
    needs_cpp,
    ops,
    padded,
    problems,
    small,
)
from tests.pictures import SMALL as SMALL_PROBLEMS

X = torch.zeros(1, 2, 4, 6)
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


def expected(x, act="none", slope=0.2, padding="none", pad=0, eps=1e-5):
    """The layers of PyTorch, one by one."""
    # F.instance_norm refuses a single pixel.
    y = x - x if x[0, 0].numel() == 1 else F.instance_norm(x, eps=eps)
    return padded(activation(y, act, slope), padding, pad)


def assert_right(x, act, padding, pad, slope=0.2, eps=1e-5):
    """Forward and backward of x against PyTorch in float64."""
    x = x.detach().requires_grad_()
    y, mean, rstd = norm_act_pad(x, act, slope, padding, pad, eps)
    dy = draw(*y.shape, x.dtype, seed=1000)
    (dx,) = torch.autograd.grad(y, x, dy)
    wide = x.detach().double().requires_grad_()
    want = expected(wide, act, slope, padding, pad, eps)
    (want_dx,) = torch.autograd.grad(want, wide, dy.double())
    tol = TOLERANCES.get(x.dtype, 1e-12)
    assert (y.dtype, dx.dtype) == (x.dtype, x.dtype)
    assert mean.dtype == torch.promote_types(x.dtype, torch.float32)
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
def test_small(case, layout):
    *shape, act, padding, pad = case
    if INTERPRETED and layout == "nchw":
        shape[1] = min(2, shape[1])  # each channel is an image, which takes it 0.1 s
    for dtype in (torch.float32, torch.float64):
        assert_right(draw(*shape, dtype, layout), act, padding, pad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_small_narrow(dtype):
    for layout in FORMATS:
        assert_right(draw(1, 3, 9, 11, dtype, layout), "leaky_relu", "reflect", 2)


@needs_cpp
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=40)
@given(problems(), st.sampled_from(sorted(FORMATS)), st.integers(0, 99))
@example(Problem((1, 2, 210, 331), "relu", "reflect", 3), "nchw", 0)
@example(Problem((1, 33, 70, 61), "tanh", "replicate", 3), "channels_last", 0)
@example(Problem((1, 2100, 5, 4), "leaky_relu", "reflect", 3), "channels_last", 0)
def test_drawn(dtype, problem, layout, seed):
    x = draw(*problem.shape, dtype, layout, seed)
    assert_right(x, problem.act, problem.padding, problem.pad)


def assert_apply(problem, dtype, layout):
    x = draw(*problem.shape, dtype, layout, border=problem.border)
    residual = draw(*problem.shape, dtype, layout, seed=1, border=1) if problem.more else None
    given = (x, *problem.prologue(), residual, *problem.options)
    assert_like_reference("norm_act_pad_apply", *given)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("index", range(len(SMALL_PROBLEMS)))
def test_small_kernel_against_reference(index, layout):
    problem = small(layout)[index]
    assert_apply(problem, torch.float32, layout)
    assert_apply(problem, torch.bfloat16, layout)


@needs_cpp
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=60)
@given(problems(), st.sampled_from(sorted(FORMATS)))
@example(Problem((1, 2, 210, 331), "relu", "reflect", 3, border=1, more=True), "channels_last")
def test_kernel_against_reference(dtype, problem, layout):
    assert_apply(problem, dtype, layout)


@pytest.mark.parametrize("padding", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("layout", FORMATS)
def test_small_padding_moves_data_only(padding, layout):
    x = draw(1, 2, 6, 9, layout=layout)
    y = norm_act_pad(x, "tanh")[0]
    mode = "constant" if padding == "zero" else padding
    for pad in (0, 1, 4):
        padded = norm_act_pad(x, "tanh", padding=padding, pad=pad)[0]
        assert torch.equal(padded, F.pad(y, (pad,) * 4, mode=mode))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_gradcheck(act, padding):
    x = draw(1, 2, 3, 4, torch.float64).requires_grad_()
    options = (act, 0.2, padding, 0 if padding == "none" else 2, 1e-5)
    assert torch.autograd.gradcheck(lambda x: norm_act_pad(x, *options)[0], x)


def norm_of(x, kind, gamma, beta):
    """With the statistics that the kind says, [N, C]."""
    if kind == "none":
        return Norm(gamma=gamma, beta=beta)
    dims = {"instance": (2, 3), "batch": (0, 2, 3), "fixed": ()}[kind]
    x = x.detach()
    if kind == "fixed":
        mean, rstd = torch.rand(2, *x.shape[:2], dtype=torch.float64) + 0.5
    else:
        variance, mean = torch.var_mean(x, dims, correction=0)
        rstd = (variance + 1e-5).rsqrt().expand(x.shape[:2])
        mean = mean.expand(x.shape[:2])
    return Norm(kind, mean, rstd, gamma, beta)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("act", ["none", "leaky_relu", "tanh"])
def test_gradcheck_of_normalise(kind, with_residual, affine, act):
    x, residual = (draw(2, 2, 3, 4, torch.float64, seed=seed).requires_grad_() for seed in (0, 1))
    parameters = [torch.rand(2, dtype=torch.float64).requires_grad_() for _ in range(2 * affine)]

    # The statistics follow x in finite differences, so that they must be in the gradient as well.
    def function(x, residual, *parameters):
        torch.manual_seed(0)
        norm = norm_of(x, kind, *(parameters or (None, None)))
        residual = residual if with_residual else None
        return normalise(x, norm, residual, act, padding="reflect", pad=2)

    assert torch.autograd.gradcheck(function, (x, residual, *parameters))


@pytest.mark.parametrize("layout", FORMATS)
def test_small_residual_of_a_bordered_tensor(layout):
    """x follows from y and the residual, both inner views, in the backward."""
    x = draw(2, 3, 6, 7, layout=layout).requires_grad_()
    residual = draw(2, 3, 6, 7, layout=layout, seed=1, border=1).requires_grad_()
    mean, rstd = ops.channel_statistics(x.detach(), 1e-5)
    y = normalise(x, Norm("instance", mean, rstd), residual, "none", padding="reflect", pad=1)
    dy = draw(*y.shape, seed=2)
    dx, dresidual = torch.autograd.grad(y, (x, residual), dy)
    wide = [t.detach().double().requires_grad_() for t in (x, residual)]
    want = padded(expected(wide[0]) + wide[1], "reflect", 1)
    assert_close_l2(y, want, 1e-6, "y")
    want_dx, want_dresidual = torch.autograd.grad(want, wide, dy.double())
    assert_close_l2(dx, want_dx, 1e-5, "dx")
    assert_close_l2(dresidual, want_dresidual, 1e-6, "dresidual")
    assert dx.is_contiguous(memory_format=FORMATS[layout])


VIEWS = {
    "nchw": (lambda x: x, False),
    "channels_last": (lambda x: x.contiguous(memory_format=torch.channels_last), True),
    "one channel": (lambda x: x[:, :1].contiguous(memory_format=torch.channels_last), False),
    "transposed": (lambda x: x.transpose(2, 3), False),
    "strided": (lambda x: x[..., ::2], False),
    "cropped": (lambda x: x.contiguous(memory_format=torch.channels_last)[..., 1:, 3:], True),
    "expanded": (lambda x: x[:, :, :1].expand(-1, -1, 5, -1), False),
}


@pytest.mark.parametrize("name", VIEWS)
def test_small_strides(name):
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


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5)], ids=str)
def test_small_empty(shape):
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
        results.append(norm_act_pad(x, "leaky_relu", padding="reflect", pad=3))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-7, 1.0, 100.0])
def test_narrow_dtypes_round_once(dtype, scale):
    """The same bits as the float32 kernel and PyTorch's conversions, subnormal numbers included."""
    x = (draw(1, 2, 60, 70) * scale).to(dtype)
    x[0, 0, 0, 0] = -0.0
    wide = norm_act_pad(x.float(), "tanh", padding="reflect", pad=3, eps=1e-12)
    y, mean, rstd = norm_act_pad(x, "tanh", padding="reflect", pad=3, eps=1e-12)
    assert torch.equal(mean, wide[1]) and torch.equal(rstd, wide[2])
    assert torch.equal(y, wide[0].to(dtype))
    # Where nothing is computed, nothing is rounded.
    moved = ops.norm_act_pad_apply(x, *(None,) * 5, "none", 0.2, "reflect", 3)
    assert torch.equal(moved, F.pad(x, (3,) * 4, mode="reflect"))


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
    norm_act_pad(X, "relu")
    for name in ("channel_statistics", "norm_act_pad"):
        assert f"pix2pixhd_fast.kernels.{name}" in sys.modules


def test_small_far_from_zero():
    # float32 has 4e-6 for a value of 100: so much is lost before the subtraction.
    x = draw(1, 3, 40, 50) + 100
    y, mean, rstd = norm_act_pad(x)
    assert_close_l2(mean, x.double().mean((2, 3)), 1e-7, "mean")
    assert_close_l2(rstd, x.double().var((2, 3), correction=0).rsqrt(), 1e-5, "rstd")
    assert_close_l2(y, expected(x.double()), 1e-5, "y")


@pytest.mark.parametrize("layout", FORMATS)
def test_opcheck(layout):
    for problem in (SMALL_PROBLEMS[1], SMALL_PROBLEMS[4], Problem((0, 3, 4, 5), "tanh", "zero", 2)):
        tensors = problem._replace(gamma=None, beta=None).prologue()
        x = draw(*problem.shape, layout=layout)
        # opcheck cannot copy empty views.
        residual = draw(*problem.shape, layout=layout, border=problem.border)
        torch.library.opcheck(ops.norm_act_pad_apply, (x, *tensors, residual, *problem.options))
        kind = "instance" if problem.normalised else "none"
        arguments = (x.requires_grad_(), *tensors, residual, kind, *problem.options)
        torch.library.opcheck(ops.norm_act_pad, arguments)
        dy = draw(*problem.padded_shape, layout=layout)
        arguments = (dy, x.detach(), None, *tensors, kind, *problem.options)
        torch.library.opcheck(ops.normalise_backward, arguments)


def test_shape_inference_without_data():
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 5, 6, 8, dtype=torch.float16, device="cuda")
        x = x.contiguous(memory_format=torch.channels_last)
        y, mean, _ = norm_act_pad(x, "relu", padding="reflect", pad=3)
    assert (y.shape, y.dtype, y.device.type) == ((2, 5, 12, 14), torch.float16, "cuda")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (mean.shape, mean.dtype) == ((2, 5), torch.float32)


def test_compiles_in_one_graph():
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


def test_small_autocast_keeps_the_dtype():
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
    apply = ops.norm_act_pad_apply
    with pytest.raises(RuntimeError, match="pad does not suit x"):
        apply(x, *(None,) * 5, "relu", 0.2, "reflect", 4)
    with pytest.raises(RuntimeError, match=r"a parameter must be \[C\] or \[N, C\]"):
        apply(x, None, None, torch.zeros(3), None, None, "relu", 0.2, "none", 0)
    with pytest.raises(RuntimeError, match="residual does not match x"):
        apply(x, *(None,) * 4, x[..., 1:], "relu", 0.2, "none", 0)
