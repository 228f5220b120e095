"""relu_pool and its backward: the kernels against the reference, and that against PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings

from pix2pixhd_fast._library import INTERPRETED, library_status, reference
from tests.pictures import TOLERANCES, draw, ops
from tests.relu_pictures import SMALL, coarse, shapes

needs_cpp = pytest.mark.skipif(
    INTERPRETED or "relu_pool" not in library_status()["kernels"],
    reason="the C++ kernels are not built",
)


def assert_like_reference(shape, dtype):
    x, bias = coarse(*shape, dtype), coarse(1, shape[1], 1, 1, seed=9).flatten()
    n = shape[0]
    for coded, room in ((0, n), (1, 2 * n), (n, n)):
        y, codes = ops.relu_pool(x, bias, coded, room)
        expected, expected_codes = reference("relu_pool")(x, bias, coded, room)
        assert torch.equal(y[:n], expected[:n]) and torch.equal(codes, expected_codes)
        assert y.shape == expected.shape and y.stride() == expected.stride()
    other = torch.full_like(y, -1.0)
    ops.relu_pool_into_(x, bias, other)
    assert torch.equal(other, y)
    g = draw(*y.shape, dtype, "channels_last", seed=1)
    dx = ops.relu_pool_backward(g, codes, *shape[2:])
    assert dx.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(dx, reference("relu_pool_backward")(g, codes, *shape[2:]))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_small_kernel_against_reference(dtype):
    for shape in SMALL:
        assert_like_reference(shape, dtype)


@needs_cpp
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=30)
@given(shapes())
@example((1, 67, 40, 51))
@example((2, 300, 9, 90))
def test_kernel_against_reference(dtype, shape):
    assert_like_reference(shape, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_as_pytorch(dtype):
    """With ties at the maximum, windows of zeros, odd sides and NaNs."""
    x, bias = coarse(2, 3, 9, 11, dtype), coarse(1, 3, 1, 1, seed=9).flatten()
    x[0, 0, :2, :2] = -9.0
    x[0, 1, 4, 4] = x[0, 1, 5, 4] = x[1, 2, 1, 1] = float("nan")
    leaf = x.clone().requires_grad_()
    expected = F.max_pool2d(F.relu(leaf + bias.to(dtype)[:, None, None]), 2, 2)
    g = draw(*expected.shape, dtype, "channels_last", seed=1)
    expected.backward(g)
    relu_pool, backward = (
        (reference(name) if dtype == torch.float64 else getattr(ops, name))
        for name in ("relu_pool", "relu_pool_backward")
    )
    y, codes = relu_pool(x, bias, 2, 2)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(backward(g, codes, 9, 11), leaf.grad)


def test_opcheck():
    x = coarse(1, 3, 4, 5)
    torch.library.opcheck(ops.relu_pool, (x, torch.zeros(3), 1, 1))
    y, codes = ops.relu_pool(x, torch.zeros(3), 1, 1)
    torch.library.opcheck(ops.relu_pool_into_, (x, torch.zeros(3), y))
    torch.library.opcheck(ops.relu_pool_backward, (y, codes, 4, 5))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (1, 3, 1, 5), (2, 3, 4, 1)])
def test_small_without_windows(shape):
    y, codes = ops.relu_pool(coarse(*shape), torch.zeros(3), shape[0], shape[0])
    assert y.numel() == codes.numel() == 0
    assert torch.equal(ops.relu_pool_backward(y, codes, *shape[2:]), torch.zeros(shape))
