"""The Triton kernel of norm_act_conv: run by Triton's interpreter, compiled for every GPU.

The tests named `interpreted` run in a child process.
"""

import importlib
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pix2pixhd_fast import InputError, _library
from pix2pixhd_fast._library import INTERPRETED
from pix2pixhd_fast.ops.norm_act_conv import Conv, norm_act_conv
from pix2pixhd_fast.ops.norm_act_pad import ACTIVATIONS, Norm
from tests.helpers import ROOT, assert_close_l2
from tests.triton_interpreter import multiply_bf16

pytest.importorskip("triton")
from pix2pixhd_fast.kernels import conv_engine, conv_launches  # noqa: E402
from pix2pixhd_fast.kernels.norm_act_conv_plan import Layer, plan  # noqa: E402

needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs in the child process")
needs_compiler = pytest.mark.skipif(INTERPRETED, reason="nothing is compiled when interpreted")
CAPABILITIES = (80, 86, 89, 90, 100, 120)
# The interpreter truncates what it stores as bfloat16 (a GPU rounds): twice the error.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
MODES = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}

if INTERPRETED:
    multiply_bf16()


@needs_compiler
def test_in_the_interpreter():
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PIX2PIXHD_FAST_BACKEND": "triton",
        "PIX2PIXHD_FAST_CONV_ENGINE": "triton",
    }
    command = [sys.executable, "-m", "pytest", __file__, "-k", "interpreted"]
    command += ["-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " skipped" not in result.stdout


# x, weight, padding, pad, stride, transposed, output_padding
SMALL = [
    ((2, 16, 5, 20), (24, 16, 3, 3), "reflect", 1, 1, False, 0),  # several tiles, two images
    ((1, 16, 3, 270), (24, 16, 3, 3), "reflect", 1, 1, False, 0),
    ((1, 16, 12, 270), (16, 16, 3, 3), "zero", 1, 2, False, 0),
    ((1, 3, 9, 20), (20, 3, 7, 7), "reflect", 3, 1, False, 0),  # rows of taps in one piece
    ((1, 36, 7, 140), (17, 36, 7, 7), "none", 0, 1, False, 0),
    ((1, 5, 8, 9), (20, 5, 4, 4), "zero", 2, 2, False, 0),
    ((1, 20, 4, 130), (3, 20, 7, 7), "reflect", 3, 1, False, 0),  # few outputs: shifted sums
    ((1, 34, 4, 150), (1, 34, 4, 4), "none", 0, 1, False, 0),
    ((1, 5, 2, 9), (1, 5, 4, 4), "zero", 2, 1, False, 0),
    ((1, 6, 3, 200), (6, 9, 3, 3), "zero", 1, 2, True, 1),  # transposed: four phases
    ((1, 6, 3, 4), (6, 9, 4, 4), "zero", 1, 2, True, 0),
    ((1, 5, 2, 3), (130, 5, 1, 2), "replicate", 1, 1, False, 0),  # blocks of outputs
    ((1, 1, 1, 1), (1, 1, 1, 1), "none", 0, 1, False, 0),
    ((1, 2, 6, 5), (3, 2, 5, 5), "none", 0, 2, False, 0),
    ((1, 2, 4, 4), (9, 2, 1, 1), "reflect", 3, 1, False, 0),  # borders that meet
    ((1, 4, 5, 9), (8, 4, 3, 3), "replicate", 5, 1, False, 0),  # border wider than the kernel
]


def has_both_kinds_of_tiles(layer: Layer) -> bool:
    """Whether some tile reads padding, or beyond the picture, and some does not."""
    shape = plan(layer)
    stride = 1 if layer.transposed else layer.stride
    kernel_height, kernel_width = (-(-side // shape.up) for side in layer.weight[2:])
    # In a phase, what is read begins within its taps around the output.
    begin = -layer.pad if shape.up == 1 else 0
    reach_x = 1 if shape.shift > 1 else kernel_width

    def inside(first: int, block: int, reach: int, size: int) -> bool:
        return first * stride + begin >= 0 and (
            (first + block - 1) * stride + begin + reach - 1 < size
        )

    tiles = {
        inside(top, shape.block_h, kernel_height, layer.x[2])
        and inside(left, shape.block_w, reach_x, layer.x[3])
        for top in range(0, shape.rows, shape.block_h)
        for left in range(0, shape.columns, shape.tile_width)
    }
    return tiles == {True, False}


def test_small_cases_have_tiles_inside_and_at_the_border():
    """For each way to sum: single taps, stride 2, rows of taps, shifted sums, phases."""
    layers = [Layer(*case[:2], torch.float32, False, "none", *case[2:]) for case in SMALL]
    ways = {
        (layer.stride, plan(layer).flat, plan(layer).shift > 1, plan(layer).up)
        for layer in layers
        if has_both_kinds_of_tiles(layer)
    }
    wanted = {(1, False, False, 1), (2, False, False, 1), (1, True, False, 1)}
    assert wanted | {(1, False, True, 1), (2, False, False, 2)} <= ways


def draw(case, norm: str, dtype: torch.dtype, bias: bool):
    """x, norm, weight, bias: deviations of about 1 everywhere."""
    shape, weight = case[:2]
    n, c, transposed = *shape[:2], case[5]
    outputs = weight[1 if transposed else 0]
    fan = c * weight[2] * weight[3]
    x, gamma, beta = torch.randn(shape) * 2 + 1, torch.randn(c) + 1, torch.randn(c)
    mean, rstd = torch.randn(n, c) + 1, torch.rand(n, c) + 0.2
    norms = {
        "none": Norm(),
        "instance": Norm("instance", mean, rstd),
        "batch": Norm("batch", mean[:1].expand(n, c), rstd[:1].expand(n, c), gamma, beta),
        "fixed": Norm("fixed", mean, rstd, gamma.to(dtype), beta.to(dtype)),
    }
    w = (torch.randn(weight) / fan**0.5).to(dtype)
    b = torch.randn(outputs).to(dtype) if bias else None
    return x.to(dtype), norms[norm], w, b


def expected(x, norm, weight, bias, case, act, slope, eps):
    """PyTorch in float64."""
    *_, padding, pad, stride, transposed, output_padding = case
    wide = [t if t is None else t.double() for t in (*norm.tensors, bias)]
    mean, rstd, gamma, beta, bias = wide
    z = x.double()
    z = z if mean is None else (z - mean[..., None, None]) * rstd[..., None, None]
    z = z if gamma is None else z * gamma[:, None, None] + beta[:, None, None]
    functions = {"relu": F.relu, "tanh": torch.tanh, "none": lambda z: z}
    z = functions.get(act, lambda z: F.leaky_relu(z, slope))(z)
    if transposed:
        y = F.conv_transpose2d(z, weight.double(), bias, stride, pad, output_padding)
    else:
        z = F.pad(z, (pad,) * 4, mode=MODES[padding]) if pad else z
        y = F.conv2d(z, weight.double(), bias, stride)
    variance = y.var((2, 3), correction=0)
    return y, y.mean((2, 3)), (variance + eps).rsqrt()


def compute(x, norm, weight, bias, case, act, slope, eps):
    """By the kernel itself: its parts in the op may be other kernels."""
    from pix2pixhd_fast.kernels.norm_act_conv import forward

    return forward(x, *norm.tensors, weight, bias, norm.kind, act, slope, *case[2:], False, eps)


@needs_interpreter
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_interpreted_small_cases(case):
    """In float32 and 16 bits; norms, activations and dtypes drawn for each."""
    generator = random.Random(str(case))
    for dtype in (torch.float32, generator.choice([torch.float16, torch.bfloat16])):
        act = generator.choice(ACTIVATIONS)
        norm = generator.choice(["none", "instance", "batch", "fixed"])
        drawn = draw(case, norm, dtype, bias=generator.random() < 0.5)
        found = compute(*drawn, case, act, 0.3, 1e-3)
        wanted = expected(*drawn, case, act, 0.3, 1e-3)
        for name, a, b in zip(("y", "mean", "rstd"), found, wanted, strict=True):
            # A mean may be anywhere near zero: y is around 1.
            scale = 1.0 if name == "mean" else 0.0
            assert_close_l2(a + scale, b + scale, TOLERANCES[dtype], f"{name} {dtype} {act} {norm}")
        assert found[0].dtype == dtype and found[1].dtype == torch.float32
        assert found[0].is_contiguous(memory_format=torch.channels_last)


@needs_interpreter
@pytest.mark.parametrize("norm", ["none", "instance", "batch", "fixed"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_interpreted_every_norm_and_activation(norm, act):
    case = ((2, 3, 5, 6), (4, 3, 3, 3), "zero", 1, 1, False, 0)
    drawn = draw(case, norm, torch.float32, bias=True)
    for a, b in zip(
        compute(*drawn, case, act, 0.3, 1e-3), expected(*drawn, case, act, 0.3, 1e-3), strict=True
    ):
        assert_close_l2(a, b, 1e-5, f"{norm} {act}")


@needs_interpreter
def test_interpreted_statistics_of_far_values():
    """A mean of 1000 deviations, in float32; several tiles of unequal size."""
    case = ((1, 4, 20, 37), (8, 4, 1, 1), "none", 0, 1, False, 0)
    x, norm, weight, _ = draw(case, "none", torch.float32, bias=False)
    bias = torch.full((8,), 1000.0)
    y, mean, rstd = compute(x, norm, weight, bias, case, "none", 0.2, 1e-5)
    wanted = y.double().var((2, 3), correction=0).add(1e-5).rsqrt()
    assert_close_l2(rstd, wanted, 1e-4, "rstd")
    assert_close_l2(mean, y.double().mean((2, 3)), 1e-6, "mean")


@needs_interpreter
def test_interpreted_without_statistics_and_dead_bias():
    case = SMALL[0]
    x, norm, weight, bias = draw(case, "instance", torch.float32, bias=True)
    from pix2pixhd_fast.kernels.norm_act_conv import forward

    rest = ("instance", "relu", 0.2, *case[2:])
    plain = forward(x, *norm.tensors, weight, None, *rest, False, None)
    dead = forward(x, *norm.tensors, weight, bias, *rest, True, None)
    assert torch.equal(plain[0], dead[0])
    assert plain[1].shape == plain[2].shape == (0,)


@needs_interpreter
def test_interpreted_nan_stays():
    case = ((1, 16, 3, 40), (16, 16, 1, 1), "none", 0, 1, False, 0)
    x, _, weight, _ = draw(case, "none", torch.float32, bias=False)
    x[0, 3, 1, 2] = float("nan")
    y, *_ = compute(x, Norm(), weight, None, case, "relu", 0.2, None)
    assert y[0, :, 1, 2].isnan().all() and y.isnan().sum() == 16


@needs_interpreter
def test_interpreted_gradients_through_the_op(monkeypatch):
    """The convolution by the kernel, the passes of the backward by their references."""
    for module in ("norm_act_conv", "norm_act_pad"):
        module = importlib.import_module(f"pix2pixhd_fast.ops.{module}")
        monkeypatch.setattr(module, "kernel", lambda name, *t: _library._references[name](*t))
    case = ((2, 6, 5, 7), (5, 6, 3, 3), "reflect", 1, 1, False, 0)
    x, norm, weight, bias = draw(case, "fixed", torch.float32, bias=True)
    names, inputs = ("x", "weight", "bias"), [t.requires_grad_() for t in (x, weight, bias)]
    y, *_ = norm_act_conv(x, norm, Conv(weight, bias), "leaky_relu", 0.3, "reflect", 1, 1e-5)
    wanted, *_ = expected(x, norm, weight, bias, case, "leaky_relu", 0.3, 1e-5)
    dy = torch.randn(y.shape)
    pairs = zip(
        torch.autograd.grad(y, inputs, dy),
        torch.autograd.grad(wanted, inputs, dy.double()),
        names,
        strict=True,
    )
    for found, expected_gradient, name in pairs:
        assert_close_l2(found, expected_gradient, 1e-5, name)


LARGE = Layer((1, 64, 512, 1024), (64, 64, 3, 3), torch.bfloat16, True, "relu", "reflect", 1)


@needs_compiler
def test_engine(monkeypatch):
    """Large and thin layers are the kernel's, deep ones the library's, unless it is said."""
    monkeypatch.delenv(conv_engine.VARIABLE, raising=False)
    deep = LARGE._replace(x=(1, 1024, 32, 64), weight=(1024, 1024, 3, 3))
    assert [conv_engine.engine(layer) for layer in (LARGE, deep)] == ["triton", "library"]
    monkeypatch.setenv(conv_engine.VARIABLE, "triton")
    assert conv_engine.engine(deep) == "triton"
    assert conv_engine.engine(deep._replace(dtype=torch.float64)) == "library"
    assert conv_engine.engine(LARGE._replace(x=(1, 64, 8192, 8192))) == "library"
    monkeypatch.setenv(conv_engine.VARIABLE, "library")
    assert conv_engine.engine(LARGE) == "library"
    monkeypatch.setenv(conv_engine.VARIABLE, "cudnn")
    with pytest.raises(InputError, match="PIX2PIXHD_FAST_CONV_ENGINE must be one of"):
        conv_engine.engine(LARGE)


@needs_compiler
def test_draw_goes_to_fewer_bytes(monkeypatch):
    monkeypatch.delenv(conv_engine.VARIABLE, raising=False)
    layer = LARGE._replace(x=(2, 128, 257, 513), weight=(256, 128, 4, 4), padding="zero", pad=2)
    layer = layer._replace(stride=2)
    ours, passes = conv_engine.triton(layer), conv_engine.library(layer)
    assert passes.seconds < ours.seconds < conv_engine.DRAW * passes.seconds
    assert ours.bytes < passes.bytes
    assert conv_engine.engine(layer) == "triton"


@needs_compiler
def test_exact_float32_is_the_librarys(monkeypatch):
    monkeypatch.delenv(conv_engine.VARIABLE, raising=False)
    single = LARGE._replace(dtype=torch.float32)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert conv_engine.engine(single) == "triton"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert conv_engine.engine(single) == "library"


@needs_compiler
def test_tiles_cover_the_output():
    from pix2pixhd_fast.kernels.norm_act_conv import LAYERS

    for layer in LAYERS:
        shape = plan(layer)
        assert shape.tiles_x * shape.tile_width >= shape.columns, layer
        assert shape.tiles * shape.block_h * shape.tile_width >= layer.y[2] * layer.y[3], layer
        assert shape.blocks * shape.block_n >= layer.channels, layer


def touched(found) -> int:
    return sum(launch.read + launch.written for launch in found)


@needs_compiler
def test_launches_agree_with_the_model():
    """The described launches against the bytes and kernels that the engine is chosen by."""
    from pix2pixhd_fast.kernels.norm_act_conv import LAYERS

    for layer in LAYERS:
        small, model = conv_launches.sizes(layer), conv_engine.triton(layer)
        found = conv_launches.kernel_launches(layer)
        rest = small.bias + small.parameters + small.statistics
        assert touched(found) - rest == model.bytes, layer
        assert len(found) == model.kernels, layer
        assert sum(launch.flops for launch in found) == layer.flops


@needs_compiler
def test_launches_follow_the_engine(monkeypatch):
    x, weight = torch.empty(1, 8, 32, 32, device="meta"), torch.empty(8, 8, 3, 3, device="meta")
    rest = (None, "none", "none", 0.2, "reflect", 1, 1, False, 0, True, 1e-5)
    for name, described in (("triton", True), ("library", False)):
        monkeypatch.setenv(conv_engine.VARIABLE, name)
        found = conv_launches.launches(x, *(None,) * 4, weight, *rest)
        assert (found is not None) == described


@needs_compiler
def test_weights_are_copied_only_where_they_are_not_channels_last(monkeypatch):
    monkeypatch.setenv(conv_engine.VARIABLE, "triton")
    x = torch.empty(1, 8, 32, 32, device="meta")
    wide = torch.empty(8, 12, 3, 3, device="meta")
    last = wide[:, :8].contiguous(memory_format=torch.channels_last)
    rest = (None, "none", "none", 0.2, "reflect", 1, 1, False, 0, True, 1e-5)
    ours = ["implicit_gemm.convolution", "implicit_gemm.combine"]
    for weight, copies in ((last, 0), (last.contiguous(), 1), (wide[:, :8], 1)):
        found = conv_launches.launches(x, *(None,) * 4, weight, *rest)
        assert [launch.name for launch in found] == ["aten::clone"] * copies + ours
        assert found[-1].scratch - found[-1].read == copies * 4 * weight.numel()


def build(variant, capability: int):
    """The compiled kernel, and its resources and instructions."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(variant.kernel.arg_names)
        if name in variant.multiples_of_16
    }
    source = ASTSource(variant.kernel, dict(variant.types), dict(variant.constants), attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=dict(variant.options))
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        said = subprocess.run([tool, "-res-usage", "-sass", cubin.name], capture_output=True)
    return compiled, said.stdout.decode()


@needs_compiler
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles_to_tensor_cores_without_spills(capability, tmp_path, monkeypatch):
    """A residual block and what combines its statistics, of all variants."""
    from pix2pixhd_fast.kernels import norm_act_conv as launcher

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for variant in launcher.variants_of(LARGE):
        compiled, text = build(variant, capability)
        label = f"sm_{capability} {variant.kernel.__name__} {dict(variant.constants)}"
        stack, local = re.search(r"STACK:(\d+).*LOCAL:(\d+)", text).groups()
        assert stack == local == "0", f"{label} spills {stack} and {local} bytes"
        if variant.kernel.__name__ == "combine_kernel":
            continue
        assert re.search(r"\b(HMMA|HGMMA|UTCHMMA)\b", text), f"{label}: no tensor cores"
        # 99 KiB for each block where there is least, 227 on sm_80 (163), sm_90, sm_100.
        most = 227 if capability in (90, 100) else 163 if capability == 80 else 99
        assert compiled.metadata.shared <= most * 1024, f"{label}: {compiled.metadata.shared}"
        size = 2 if variant.types["x"] in ("*bf16", "*fp16") else 4
        if variant.constants["C"] * size % 16 == 0:
            assert "LDGSTS.E.BYPASS.128" in text or "LDGSTS.E.BYPASS.LTC128B.128" in text, label
