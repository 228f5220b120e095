"""first_l1 and first_relu: what runs against the reference, and that against PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from pix2pixhd_fast._library import INTERPRETED, reference
from tests.helpers import assert_close_l2
from tests.pictures import TOLERANCES, draw, ops
from tests.relu_pictures import coarse, unpacked

# Pictures, inputs, height, width and channels: one element, channels that 8 divides and not, more
# than a block.
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 7, 6), (1, 3, 9, 12, 16), (1, 4, 3, 70, 8)]


def parameters_of(inputs, channels):
    """Sixteenths of integers, so that products and sums are exact."""
    weight = coarse(inputs, 3, 3, channels, seed=3).contiguous() / 8
    return weight, coarse(1, channels, 1, 1, seed=4).flatten() / 8


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_small_kernel_against_reference(dtype, shape):
    n, inputs, h, w, channels = shape
    x, y = coarse(n, inputs, h, w), coarse(n, inputs, h, w, torch.float16, seed=1).contiguous()
    parameters = parameters_of(inputs, channels)
    for keep in (True, False):
        given = (x, y, *parameters, dtype, 0.25, keep)
        a, sums, codes = ops.first_l1(*given)
        expected, expected_sums, expected_codes = reference("first_l1")(*given)
        assert a.dtype == dtype and a.stride() == expected.stride()
        assert_close_l2(a, expected, TOLERANCES[dtype], "a")
        # On the CPU the distance is taken of what is rounded.
        assert_close_l2(sums.sum(), expected_sums.sum(), max(1e-6, TOLERANCES[dtype]), "sum")
        if dtype == torch.float32 or INTERPRETED:
            assert torch.equal(a, expected) and torch.equal(codes, expected_codes)
    again = ops.first_relu(x, *parameters, dtype)
    assert torch.equal(again, a)
    assert torch.equal(reference("first_relu")(x, *parameters, dtype), expected)


def test_small_as_pytorch():
    x, y = coarse(2, 3, 5, 7), coarse(2, 3, 5, 7, seed=1)
    x[0, 1, 2, 3] = float("nan")
    weight, bias = parameters_of(3, 6)
    features = [F.relu(F.conv2d(t, weight.permute(3, 0, 1, 2), bias, padding=1)) for t in (x, y)]
    a, _, _ = ops.first_l1(x, y, weight, bias, torch.float32, 0.5, True)
    torch.testing.assert_close(a, features[0], rtol=0, atol=0, equal_nan=True)
    x, y = coarse(2, 3, 5, 7), coarse(2, 3, 5, 7, seed=1)
    a, sums, codes = ops.first_l1(x, y, weight, bias, torch.float32, 0.5, True)
    b = features[1]
    assert_close_l2(sums.sum(), 0.5 * (a - b).abs().sum(), 1e-6, "sum")
    signs = torch.where(a > 0, 2 + (a - b).sign(), 0.0).permute(0, 2, 3, 1).flatten()
    assert unpacked(codes, 2).tolist()[: signs.numel()] == signs.tolist()


def test_opcheck():
    x, y = draw(1, 3, 4, 5), draw(1, 3, 4, 5, seed=1)
    parameters = parameters_of(3, 6)
    torch.library.opcheck(ops.first_relu, (x, *parameters, torch.bfloat16))
    torch.library.opcheck(ops.first_l1, (x, y, *parameters, torch.float32, 0.5, True))
