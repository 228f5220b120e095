"""The boundary map of one 2048x1024 scene: the kernel, the reference, and a copy of the ids."""

import pytest
import torch

from pix2pixhd_fast import backend
from pix2pixhd_fast.ops import instance_boundaries


@pytest.fixture(params=[torch.int32, torch.int64], ids=["int32", "int64"])
def ids(request):
    """[1, 1, 1024, 2048]: 8x16 instances of 128x128 pixels."""
    rows, columns = torch.arange(1024) // 128, torch.arange(2048) // 128
    return (rows[:, None] * 16 + columns).to(request.param)[None, None]


@pytest.mark.parametrize("name", ["fused", "eager"])
def test_instance_boundaries(benchmark, ids, name):
    with backend(name):
        benchmark(instance_boundaries, ids)


def test_copy(benchmark, ids):
    benchmark(ids.clone)
