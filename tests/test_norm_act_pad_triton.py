"""The Triton kernels of the memory passes: run by Triton's interpreter, compiled for every GPU."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT
from tests.triton_code import CAPABILITIES, compile_kernel

needs_compiler = pytest.mark.skipif(
    os.getenv("TRITON_INTERPRET") == "1", reason="under the interpreter nothing is compiled"
)
pytest.importorskip("triton")

TESTS = [
    f"tests/test_{name}.py"
    for name in ("channel_statistics", "norm_act_pad", "norm_act_pad_backward", "fold")
]
POINTERS = dict.fromkeys(["x", "y", "dy", "dx", "residual", "minus"], "*bf16") | dict.fromkeys(
    ["means", "squares", "mean", "rstd", "gamma", "beta", "sums", "dots", "mean_g", "mean_dot"],
    "*fp32",
)
# Blocks that the launchers choose: of many channels, of few pixels of them, and of one channel (the
# default memory format).
WIDE, SINGLE = {"BLOCK_P": 32, "BLOCK_C": 64}, {"BLOCK_P": 1024, "BLOCK_C": 1}
NARROW = {"BLOCK_P": 128, "BLOCK_C": 16}
MODE = {"ACT": "tanh", "PADDING": "reflect"}
# What may be multiples of 16 where channels are.
MULTIPLES = ["channels", "x_row", "residual_row", "minus_row", "dx_row"]


@needs_compiler
def test_small_cases_in_the_interpreter():
    """The tests whose names say so, with the Triton kernels instead of the C++ ones."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PIX2PIXHD_FAST_BACKEND": "triton"}
    command = [sys.executable, "-m", "pytest", *TESTS]
    command += ["-k", "small", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    # Nothing was skipped, and nothing ran elsewhere.
    assert " skipped" not in result.stdout


def kernels():
    from pix2pixhd_fast.kernels import channel_statistics as statistics
    from pix2pixhd_fast.kernels import norm_act_pad as forward
    from pix2pixhd_fast.kernels import norm_act_pad_backward as backward

    split = {"BLOCK_S": WIDE["BLOCK_P"], "BLOCK_C": WIDE["BLOCK_C"]}
    yield statistics._statistics_kernel, WIDE | {"WHOLE": False}
    yield statistics._statistics_kernel, NARROW | {"WHOLE": True}
    yield statistics._combine_statistics_kernel, split
    yield backward._combine_kernel, split
    yield backward._reduce_kernel, NARROW | MODE
    plain = dict.fromkeys(["mean", "rstd", "gamma", "beta", "minus"])
    yield backward._reduce_kernel, WIDE | MODE | plain
    for block in (WIDE, SINGLE):
        yield forward._apply_kernel, block | MODE
        yield backward._reduce_kernel, block | MODE
        yield backward._backward_kernel, block | MODE
        yield backward._fold_kernel, block | {"PADDING": "reflect", "ADD": True}


@needs_compiler
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles_without_spills(capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel, constants in kernels():
        wide = constants["BLOCK_C"] > 1
        code = compile_kernel(kernel, capability, POINTERS, constants, MULTIPLES if wide else [])
        assert code.stack == code.local == 0, f"{kernel.__name__} {constants}: {code} spills"
        # At least 3 blocks of 128 threads on a processor.
        assert code.registers <= 168, f"{kernel.__name__} {constants}: {code}"
        # Whole vectors of channels in one instruction.
        assert not wide or code.vector_loads, f"{kernel.__name__}: no vector loads"
