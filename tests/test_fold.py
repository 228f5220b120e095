"""fold and fold_add_, the gradients of paddings: against autograd of F.pad, kernels as well."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from pix2pixhd_fast._library import INTERPRETED
from tests.helpers import assert_close_l2
from tests.pictures import (
    FORMATS,
    SMALL,
    TOLERANCES,
    assert_like_reference,
    draw,
    inner,
    needs_cpp,
    ops,
    padded,
    problems,
    small,
)


def assert_folds(problem, dtype, layout, border):
    """Into a new tensor, and added to the inner part of one with a border."""
    n, c, h, w = problem.shape
    rest = (problem.padding, problem.pad)
    dy = draw(*problem.padded_shape, dtype, layout, seed=1, border=problem.border)
    assert_like_reference("fold", dy, *rest)
    x = draw(*problem.shape).double().requires_grad_()
    (want,) = torch.autograd.grad(padded(x, *rest), x, dy.double())
    assert_close_l2(ops.fold(dy, *rest), want, TOLERANCES[dtype], "fold")

    dx = draw(n, c, h + 2 * border, w + 2 * border, dtype, layout)
    want = want + inner(dx, border).double()
    before = dx.clone()
    ops.fold_add_(dx, dy, border, *rest)
    assert_close_l2(inner(dx, border), want, TOLERANCES[dtype], "fold_add_")
    inner(dx, border).copy_(inner(before, border))
    assert torch.equal(dx, before), "the border has changed"


@pytest.mark.parametrize("layout", FORMATS)
def test_small_kernel_against_reference(layout):
    for index, problem in enumerate(small(layout)):
        if not INTERPRETED or (problem.pad > 0 and problem.shape[2] < 20):
            assert_folds(problem, torch.float32, layout, index % 3)
    assert_folds(SMALL[4], torch.bfloat16, layout, 2)


@needs_cpp
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=40)
@given(problems(), st.sampled_from(sorted(FORMATS)), st.integers(0, 3))
def test_kernel_against_reference(dtype, problem, layout, border):
    assert_folds(problem, dtype, layout, border)


def test_small_any_strides():
    dy = draw(2, 3, 9, 8).transpose(2, 3)
    want = draw(2, 3, 9, 8).transpose(2, 3).contiguous()
    assert torch.equal(ops.fold(dy, "reflect", 2), ops.fold(want, "reflect", 2))
    dx = torch.zeros(2, 3, 6, 5).transpose(2, 3)
    ops.fold_add_(dx, dy[:, :, :7, :8], 0, "reflect", 1)
    assert_close_l2(dx, ops.fold(want[:, :, :7, :8], "reflect", 1), 1e-6, "dx")


@pytest.mark.parametrize("layout", FORMATS)
def test_opcheck(layout):
    for shape, padding in (((1, 2, 5, 6), "reflect"), ((0, 3, 5, 5), "zero")):
        dy = draw(*shape, layout=layout)
        torch.library.opcheck(ops.fold, (dy, padding, 1))
        torch.library.opcheck(ops.fold_add_, (draw(*shape, layout=layout), dy, 1, padding, 1))


@needs_cpp
def test_kernel_refuses_what_would_read_outside():
    dy = draw(1, 2, 4, 4)
    with pytest.raises(RuntimeError, match="pad does not suit x"):
        ops.fold(dy, "reflect", 2)
    with pytest.raises(RuntimeError, match="dy does not match x"):
        ops.fold_add_(dy, dy, 1, "none", 0)
