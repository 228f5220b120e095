"""The Triton kernels of norm_act_pad, run by Triton's interpreter."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

pytest.importorskip("triton")


@pytest.mark.skipif(os.getenv("TRITON_INTERPRET") == "1", reason="it is the inner run itself")
def test_small_cases_in_the_interpreter():
    """The tests whose names say so, with the Triton kernels instead of the C++ ones."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PIX2PIXHD_FAST_BACKEND": "triton"}
    command = [sys.executable, "-m", "pytest", "tests/test_norm_act_pad.py"]
    command += ["-k", "small and not eager", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    # Nothing was skipped, and nothing ran elsewhere.
    assert " skipped" not in result.stdout
