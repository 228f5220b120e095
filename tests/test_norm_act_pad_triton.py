"""The Triton kernels of the memory passes: run by Triton's interpreter."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

pytest.importorskip("triton")

TESTS = [
    f"tests/test_{name}.py"
    for name in (
        "channel_statistics",
        "norm_act_pad",
        "norm_act_pad_backward",
        "matched_norm_backward",
        "fold",
        "relu_codes",
        "relu_pool",
    )
]


@pytest.mark.skipif(os.getenv("TRITON_INTERPRET") == "1", reason="is under the interpreter already")
def test_small_cases_in_the_interpreter():
    """The tests whose names say so, with the Triton kernels instead of the C++ ones."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PIX2PIXHD_FAST_BACKEND": "triton"}
    command = [sys.executable, "-m", "pytest", *TESTS]
    command += ["-k", "small", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    # Nothing was skipped, and nothing ran elsewhere.
    assert " skipped" not in result.stdout
