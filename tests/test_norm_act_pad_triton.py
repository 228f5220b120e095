"""The Triton kernels of norm_act_pad: run by Triton's interpreter, compiled for every GPU."""

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

POINTERS = dict.fromkeys(["x", "y", "dy", "dx"], "*bf16") | dict.fromkeys(
    ["means", "squares", "mean", "rstd", "sums", "dots", "mean_g", "mean_dot"], "*fp32"
)
# Blocks that the launchers choose: of many channels, and of one (the default memory format).
WIDE, SINGLE = {"BLOCK_P": 32, "BLOCK_C": 64}, {"BLOCK_P": 1024, "BLOCK_C": 1}
MODE = {"ACT": "tanh", "PADDING": "reflect"}


@needs_compiler
def test_small_cases_in_the_interpreter():
    """The tests whose names say so, with the Triton kernels instead of the C++ ones."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PIX2PIXHD_FAST_BACKEND": "triton"}
    command = [sys.executable, "-m", "pytest", "tests/test_norm_act_pad.py"]
    command += ["-k", "small and not eager", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    # Nothing was skipped, and nothing ran elsewhere.
    assert " skipped" not in result.stdout


def kernels():
    from pix2pixhd_fast.kernels import norm_act_pad as forward
    from pix2pixhd_fast.kernels import norm_act_pad_backward as backward

    split = {"BLOCK_S": WIDE["BLOCK_P"], "BLOCK_C": WIDE["BLOCK_C"]}
    yield forward._statistics_kernel, WIDE
    yield forward._combine_statistics_kernel, split
    yield backward._combine_backward_kernel, split
    for block in (WIDE, SINGLE):
        yield forward._apply_kernel, block | MODE
        yield backward._reduce_backward_kernel, block | MODE
        yield backward._apply_backward_kernel, block | MODE


@needs_compiler
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles_without_spills(capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel, constants in kernels():
        wide = constants["BLOCK_C"] > 1
        code = compile_kernel(kernel, capability, POINTERS, constants, ["channels"] if wide else [])
        assert code.stack == code.local == 0, f"{kernel.__name__} {constants}: {code} spills"
        # At least 3 blocks of 128 threads on a processor.
        assert code.registers <= 168, f"{kernel.__name__} {constants}: {code}"
        # Whole vectors of channels in one instruction.
        assert not wide or code.vector_loads, f"{kernel.__name__}: no vector loads"
