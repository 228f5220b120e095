"""conv3x3 and the gradient of its input: against the reference, and that against autograd."""

import pytest
import torch
import torch.nn.functional as F

from pix2pixhd_fast._library import reference
from tests.helpers import assert_close_l2
from tests.pictures import TOLERANCES, draw, ops


@pytest.mark.parametrize("dtype", [*TOLERANCES, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [(1, 3, 1, 1, 5), (2, 5, 7, 6, 3), (3, 8, 16, 17, 1)], ids=str)
def test_is_the_convolution_and_its_gradient(dtype, sizes):
    n, channels, results, h, w = sizes
    x, dy = (draw(n, c, h, w, dtype, "channels_last", seed=c) for c in (channels, results + 20))
    dy = dy[:, :results].contiguous(memory_format=torch.channels_last)
    weight = draw(results, channels, 3, 3, dtype, seed=2)
    leaf = x.double().requires_grad_()
    expected = F.conv2d(leaf, weight.double(), None, 1, 1)
    expected.backward(dy.double())
    tolerance = TOLERANCES.get(dtype, 1e-12)
    for conv3x3, gradient in (
        (reference("conv3x3"), reference("conv3x3_input_gradient")),
        (ops.conv3x3, ops.conv3x3_input_gradient),
    ):
        for name, found, exact in (
            ("y", conv3x3(x, weight), expected.detach()),
            ("dx", gradient(dy, weight), leaf.grad),
        ):
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert found.dtype == dtype and found.shape == exact.shape
            assert_close_l2(found, exact, tolerance, name)


def test_opcheck():
    x, weight = draw(1, 3, 4, 5, layout="channels_last"), draw(2, 3, 3, 3, seed=1)
    torch.library.opcheck(ops.conv3x3, (x, weight))
    torch.library.opcheck(ops.conv3x3_input_gradient, (ops.conv3x3(x, weight), weight))
