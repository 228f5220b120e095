"""label_conv2d_backward: its reference against PyTorch's gradient, the kernels against that."""

import pytest
import torch

from pix2pixhd_fast.ops.label_conv2d import label_conv2d_backward_ref, label_conv2d_ref
from tests.helpers import assert_close_l2
from tests.pictures import draw, ops
from tests.test_label_conv2d import LARGE, SMALL, TOLERANCES, arguments


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_large_kernel_against_reference(dtype, level):
    """More than one partition; runs longer than those that are summed in float32."""
    given = arguments(LARGE._replace(level=level))
    y = label_conv2d_ref(*given)[0]
    dy = (y / 100).to(dtype)  # in float16 the sums must not overflow
    options = (*given[:2], 35, 7, 7, *given[6:10])
    found = ops.label_conv2d_backward(dy, *options)
    right = label_conv2d_backward_ref(dy.double(), *options)
    for name, mine, exact in zip(("dweight", "dbias"), found, right, strict=True):
        assert mine.dtype == dtype
        assert_close_l2(mine, exact, TOLERANCES[dtype], name)


@pytest.mark.parametrize("problem", SMALL)
def test_gradient_of_the_reference(problem):
    """What the reference of the backward says, and PyTorch's gradient of that of the forward."""
    given = arguments(problem._replace(dense=0, dead_bias=False, act="none"), torch.float64)
    leaves = [t.requires_grad_() for t in given[2:4]]
    y = label_conv2d_ref(*given)[0]
    dy = draw(*y.shape, torch.float64, seed=2)
    options = (*given[:2], problem.num_labels, problem.kernel, problem.kernel, *given[6:10])
    found = label_conv2d_backward_ref(dy, *options)
    for mine, exact in zip(found, torch.autograd.grad(y, leaves, dy), strict=True):
        assert_close_l2(mine, exact, 1e-12, "gradient")
