"""label_conv2d: against PyTorch on one-hot channels in float64, and the kernels against that."""

from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from pix2pixhd_fast import InputError
from pix2pixhd_fast._library import library_status
from pix2pixhd_fast.ops import label_conv2d
from pix2pixhd_fast.ops.label_conv2d import ACTIVATIONS, label_conv2d_ref, level_size
from pix2pixhd_fast.semantic import SemanticMap
from tests.helpers import assert_close_l2
from tests.pictures import draw, ops, padded

EPS, SLOPE = 1e-5, 0.2
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Problem(NamedTuple):
    """A label map [n, 1, h, w] and a convolution of it to k channels.

    `blocks`: sides of the blocks of one label; 1 is noise. With `ignored` about an eighth of them
    is in no class.
    """

    shape: tuple[int, int, int]
    num_labels: int = 5
    k: int = 3
    kernel: int = 3
    stride: int = 1
    padding: str = "reflect"
    pad: int = 1
    level: int = 0
    blocks: int = 3
    ignored: bool = True
    with_edges: bool = True
    dense: int = 0
    bias: bool = True
    dead_bias: bool = False
    act: str = "none"

    @property
    def below(self) -> float:
        """The derivative of the activation below zero."""
        return {"none": 1.0, "relu": 0.0, "leaky_relu": SLOPE}[self.act]

    def scene(self, dtype=torch.float32) -> SemanticMap:
        n, h, w = self.shape
        b = self.blocks
        generator = torch.Generator().manual_seed(h * w + self.num_labels)
        coarse = (n, 1, -(-h // b), -(-w // b))
        ids = torch.randint(0, self.num_labels, coarse, generator=generator)
        if self.ignored:
            ids[torch.rand(coarse, generator=generator) < 0.125] = 1000
        ids = ids.repeat_interleave(b, 2).repeat_interleave(b, 3)[:, :, :h, :w]
        edges = None
        if self.with_edges:
            edges = (torch.rand(n, 1, h, w, generator=generator) < 0.3 / b).to(torch.uint8)
        dense = draw(n, self.dense, *level_size((h, w), self.level), dtype) if self.dense else None
        return SemanticMap(ids, self.num_labels, edges, dense, ignore_label=1000)

    def tensors(self, dtype=torch.float32) -> dict[str, Tensor]:
        """weight and bias, drawn."""
        channels = self.num_labels + self.with_edges + self.dense
        weight = draw(self.k, channels, self.kernel, self.kernel, dtype, seed=1) / self.kernel
        found = {"weight": weight}
        if self.bias:
            found["bias"] = torch.linspace(-1, 1, self.k, dtype=dtype)
        return found

    def fused(self, scene, weight, bias=None):
        options = (self.stride, self.padding, self.pad, self.level, self.dead_bias, EPS, self.act)
        return label_conv2d(scene, weight, bias, *options, SLOPE)

    def layers(self, scene, weight, bias=None):
        """By PyTorch, on one-hot channels in float64, before the activation."""
        x = scene.with_dense(None).to_dense(torch.float64)
        for _ in range(self.level):
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        x = x if scene.dense is None else torch.cat((x, scene.dense.double()), 1)
        bias = None if self.dead_bias else bias
        return F.conv2d(padded(x, self.padding, self.pad), weight, bias, self.stride)


def assert_right(problem: Problem, dtype: torch.dtype) -> None:
    """y, its statistics and all gradients against the layers in float64."""
    leaves = {name: t.requires_grad_() for name, t in problem.tensors(dtype).items()}
    scene = problem.scene(dtype)
    if problem.dense:
        leaves["dense"] = scene.dense.requires_grad_()
    wide = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
    y, mean, rstd = problem.fused(scene, leaves["weight"], leaves.get("bias"))
    raw = problem.layers(scene.with_dense(wide.get("dense")), wide["weight"], wide.get("bias"))
    want = torch.where(raw > 0, raw, raw * problem.below)
    tol = TOLERANCES.get(dtype, 1e-9)
    assert (y.dtype, y.is_contiguous(memory_format=torch.channels_last)) == (dtype, True)
    assert_close_l2(y, want, tol, "y")
    got = y.detach().double()
    assert_close_l2(mean, got.mean((2, 3)), 1e-5, "mean")
    assert_close_l2(rstd, (got.var((2, 3), correction=0) + EPS).rsqrt(), 1e-5, "rstd")
    assert not mean.requires_grad and not rstd.requires_grad
    dy = draw(*y.shape, dtype, seed=2)
    found = torch.autograd.grad(y, list(leaves.values()), dy)
    # Rounding may take a value across zero, where the derivative jumps: the sign is that of y.
    before = dy.double() * torch.where(y > 0, 1.0, problem.below)
    right = torch.autograd.grad(raw, list(wide.values()), before, allow_unused=True)
    for name, mine, exact in zip(leaves, found, right, strict=True):
        assert (mine.dtype, mine.shape) == (dtype, leaves[name].shape)
        if exact is None:
            assert name == "bias" and problem.dead_bias and not mine.any()
        else:
            assert_close_l2(mine, exact, tol, f"d{name}")


SMALL = [
    Problem((1, 1, 1), padding="zero", blocks=1),
    Problem((1, 4, 4), kernel=7, pad=3, blocks=2),
    Problem((2, 9, 8), kernel=4, stride=2, padding="zero", pad=2, dense=3, act="leaky_relu"),
    Problem((1, 12, 13), kernel=4, stride=2, padding="zero", pad=2, level=1, dense=3),
    Problem((1, 29, 23), kernel=7, pad=3, level=2, with_edges=False, dead_bias=True),
]


@pytest.mark.parametrize("problem", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_small(dtype, problem):
    assert_right(problem, dtype)


@st.composite
def problems(draw_one):
    kernel, stride = draw_one(st.sampled_from([1, 2, 3, 4, 7])), draw_one(st.integers(1, 2))
    level = draw_one(st.integers(0, 2))
    h, w = draw_one(st.integers(1, 30)), draw_one(st.integers(1, 40))
    low = level_size((h, w), level)
    padding = draw_one(st.sampled_from(["none", "reflect", "replicate", "zero"]))
    pad = 0 if padding == "none" else draw_one(st.integers(0, 4))
    pad = min(pad, min(low) - 1) if padding == "reflect" else pad
    # The kernel must fit into the padded picture.
    kernel = min(kernel, min(low) + 2 * pad)
    return Problem(
        (draw_one(st.integers(1, 2)), h, w),
        draw_one(st.sampled_from([1, 2, 35, 126, 127, 255, 256]) | st.integers(1, 20)),
        draw_one(st.sampled_from([1, 3, 16, 31, 32, 48, 64, 115])),
        kernel,
        stride,
        padding,
        pad,
        level,
        draw_one(st.sampled_from([1, 4, 12, 50])),
        draw_one(st.booleans()),
        draw_one(st.booleans()),
        draw_one(st.sampled_from([0, 0, 3])),
        *draw_one(st.sampled_from([(True, False), (False, False), (True, True)])),
        draw_one(st.sampled_from(ACTIVATIONS)),
    )


@settings(max_examples=220)
@given(problems())
def test_drawn_kernel_against_reference_layers(problem):
    assert_right(problem, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@settings(max_examples=30)
@given(problems())
def test_narrow_kernel_against_reference_layers(dtype, problem):
    assert_right(problem, dtype)


def arguments(problem: Problem, dtype=torch.float32, eps=EPS) -> tuple:
    """Of the op, without dense channels."""
    scene, tensors = problem.scene(), problem.tensors(dtype)
    options = (problem.level, problem.stride, problem.padding, problem.pad, problem.dead_bias)
    tensors = (tensors["weight"], tensors.get("bias"), None)
    rest = (*options, problem.act, SLOPE, eps)
    return (scene.labels, scene.edges, *tensors, problem.num_labels, *rest)


LARGE = Problem((1, 150, 301), 35, 32, 7, 1, "reflect", 3, 0, 37)


@pytest.mark.skipif(
    "label_conv2d" not in library_status()["kernels"], reason="the C++ kernels are not built"
)
@pytest.mark.parametrize("level", [0, 1])
def test_any_number_of_threads(level):
    given = arguments(LARGE._replace(level=level))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found = ops.label_conv2d(*given)
        gradients = ops.label_conv2d_backward(found[0], *given[:2], 35, 7, 7, *given[6:10])
        results.append((*found, *gradients))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_large_kernel_against_reference(level):
    """More than one chunk of pixels."""
    given = arguments(LARGE._replace(level=level))
    found, right = ops.label_conv2d(*given), label_conv2d_ref(*given)
    for name, mine, exact in zip(("y", "mean", "rstd"), found, right, strict=True):
        assert_close_l2(mine, exact, 1e-5, name)


def test_ignored_ids_contribute_nothing():
    labels = torch.full((1, 1, 6, 7), 255, dtype=torch.uint8)
    scene = SemanticMap(labels, 5, ignore_label=255)
    bias = torch.tensor([1.0, -2.0])
    y, _, _ = label_conv2d(scene, draw(2, 5, 3, 3), bias, 1, "reflect", 1)
    assert torch.equal(y, bias[:, None, None].expand(1, 2, 6, 7))


def test_only_what_is_needed():
    problem = SMALL[2]
    for name in ("weight", "bias", "dense"):
        leaves = problem.tensors() | {"dense": problem.scene().dense}
        leaf = leaves[name].requires_grad_()
        scene = problem.scene().with_dense(leaves["dense"])
        problem.fused(scene, leaves["weight"], leaves["bias"])[0].sum().backward()
        assert [key for key, t in leaves.items() if t.grad is not None] == [name]
        assert leaf.grad.isfinite().all()


def test_no_statistics_where_none_are_wanted():
    scene = SMALL[1].scene()
    y, mean, rstd = label_conv2d(scene, SMALL[1].tensors()["weight"], padding="reflect", pad=3)
    assert y.shape == (1, 3, 4, 4) and mean.numel() == rstd.numel() == 0


def test_autocast():
    problem = SMALL[3]
    leaves = {name: t.requires_grad_() for name, t in problem.tensors().items()}
    with torch.autocast("cpu", torch.bfloat16):
        y, mean, _ = problem.fused(problem.scene(), **leaves)
    assert (y.dtype, mean.dtype) == (torch.bfloat16, torch.float32)
    assert_close_l2(y, problem.layers(problem.scene(), **problem.tensors(torch.float64)), 2e-2, "y")
    found = torch.autograd.grad(y.float().sum(), list(leaves.values()))
    assert all(t.dtype == torch.float32 for t in found)


def test_compiles_in_one_graph():
    problem = SMALL[2]

    def block(scene, dense, weight, bias):
        y, mean, _ = problem.fused(scene.with_dense(dense), weight, bias)
        return y.sin() + mean[..., None, None]

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    scene = problem.scene()
    leaves = [t.requires_grad_() for t in (scene.dense, *problem.tensors().values())]
    assert_close_l2(compiled(scene, *leaves), block(scene, *leaves), 1e-6, "y")
    found = torch.autograd.grad(compiled(scene, *leaves).square().sum(), leaves)
    right = torch.autograd.grad(block(scene, *leaves).square().sum(), leaves)
    for mine, exact in zip(found, right, strict=True):
        assert_close_l2(mine, exact, 1e-5, "gradient")


def test_shape_inference_without_data():
    with torch._subclasses.FakeTensorMode():
        labels = torch.empty(2, 1, 11, 8, dtype=torch.uint8, device="cuda")
        weight = torch.empty(7, 5, 3, 3, dtype=torch.float16, device="cuda")
        scene = SemanticMap(labels, 5)
        y, mean, rstd = label_conv2d(scene, weight, None, 2, "reflect", 1, level=1, eps=EPS)
    assert (y.shape, y.dtype, y.device.type) == ((2, 7, 3, 2), torch.float16, "cuda")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (mean.shape, rstd.dtype) == ((2, 7), torch.float32)


@pytest.mark.parametrize("problem", [*SMALL[:3], Problem((0, 5, 6)), Problem((1, 5, 6), k=32)])
def test_opcheck(problem):
    given = arguments(problem._replace(dense=0))
    addend = draw(*ops.label_conv2d(*given)[0].shape).requires_grad_()
    for tensor in given[2:4]:
        tensor.requires_grad_()
    for eps in (EPS, None) if problem.shape[0] else (None,):
        torch.library.opcheck(ops.label_conv2d, (*given[:4], addend, *given[5:-1], eps))
    options = (*given[:2], problem.num_labels, problem.kernel, problem.kernel, *given[6:10])
    torch.library.opcheck(ops.label_conv2d_backward, (addend.detach(), *options))


def test_no_second_derivative():
    problem = SMALL[1]
    weight = problem.tensors()["weight"].requires_grad_()
    y = problem.fused(problem.scene(), weight)[0]
    (dweight,) = torch.autograd.grad(y.square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="label_conv2d has no second derivative"):
        dweight.sum().backward()


SCENE = SemanticMap(torch.zeros(1, 1, 4, 6, dtype=torch.uint8), 2)
WEIGHT = torch.zeros(3, 2, 3, 3)


@pytest.mark.parametrize(
    ("scene", "weight", "options", "message"),
    [
        (SCENE, WEIGHT[:, :1], {}, r"weight must be \[K, 2, kh, kw\] for .*, got \[3, 1, 3, 3\]"),
        (SCENE, WEIGHT.int(), {}, "weight must be float32, .*, got torch.int32"),
        (SCENE, WEIGHT, {"bias": torch.zeros(2)}, r"bias must be \[3\], got \[2\]"),
        (SCENE, WEIGHT, {"bias": torch.zeros(3).half()}, "bias must have the dtype of weight"),
        (SCENE, WEIGHT, {"stride": 0}, "stride must be at least 1, got 0"),
        (SCENE, WEIGHT, {"act": "tanh"}, "act must be one of none, relu, leaky_relu, .*'tanh'"),
        (SCENE, WEIGHT, {"act": "leaky_relu", "slope": -1.0}, "slope of at least 0, got .* -1.0"),
        (SCENE, WEIGHT, {"level": 3}, "level must be 0, 1 or 2, got 3"),
        (SCENE, WEIGHT, {"level": 1}, "weight must be no larger than the padded picture, 2 x 3"),
        (SCENE, WEIGHT, {"padding": "reflect", "pad": 4}, "pad must be less than both sides"),
        (
            SCENE.with_dense(torch.zeros(1, 1, 4, 6)),
            torch.zeros(3, 3, 2, 2),
            {"level": 1},
            "dense must be 2 x 3, the size of level 1, got 4 x 6",
        ),
    ],
)
def test_refuses(scene, weight, options, message):
    with pytest.raises(InputError, match=message):
        label_conv2d(scene, weight, **options)
