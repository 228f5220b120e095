"""Every case of every op, fused and eager, and a copy of 256 MiB as the ceiling of the memory."""

import pytest
import torch

from pix2pixhd_fast.benchmark import Request, cases
from pix2pixhd_fast.benchmark.ceilings import COPY_BYTES
from pix2pixhd_fast.benchmark.ops import OPS

CASES = list(cases(Request(tuple(OPS), sizes=((2048, 1024),), dtypes=("fp32", "bf16"))))


@pytest.mark.parametrize("backend", ["fused", "eager"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_op(benchmark, case, backend):
    benchmark(case.prepare(backend, case.dtype))


def test_copy(benchmark):
    """Into memory that is there already: one reading, one writing."""
    x = torch.ones(COPY_BYTES // 4)
    benchmark(torch.empty_like(x).copy_, x)
