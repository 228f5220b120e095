"""channel_statistics: the kernels against the reference in float64, and that against PyTorch."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from pix2pixhd_fast._library import INTERPRETED
from pix2pixhd_fast.ops import channel_statistics
from tests.helpers import assert_close_l2
from tests.pictures import (
    FORMATS,
    TOLERANCES,
    Problem,
    assert_like_reference,
    draw,
    needs_cpp,
    ops,
    problems,
    small,
)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_small_kernel_against_reference(dtype, layout):
    for problem in small(layout):
        x = draw(*problem.shape, dtype, layout, border=problem.border)
        assert_like_reference("channel_statistics", x, 1e-5)


@needs_cpp
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=40)
@given(problems(), st.sampled_from(sorted(FORMATS)))
@example(Problem((1, 2, 210, 331)), "nchw")
@example(Problem((1, 33, 70, 61)), "channels_last")
@example(Problem((1, 2100, 5, 4)), "channels_last")
def test_kernel_against_reference(dtype, problem, layout):
    x = draw(*problem.shape, dtype, layout, border=problem.border)
    assert_like_reference("channel_statistics", x, 1e-5)


@pytest.mark.parametrize("layout", FORMATS)
def test_small_far_from_zero(layout):
    for shape in ((1, 3, 40, 50), (1, 2, 70, 61)):
        x = draw(*shape, layout=layout) + 100
        mean, rstd = channel_statistics(x, 1e-5)
        # A unit in the last place is 0.8e-7 of 100; measured: 1.5e-7 (Triton), 0.3e-7 (C++).
        assert_close_l2(mean, x.double().mean((2, 3)), 3e-7, "mean")
        assert_close_l2(rstd, x.double().var((2, 3), correction=0).rsqrt(), 1e-5, "rstd")


@pytest.mark.skipif(not INTERPRETED, reason="not under Triton's interpreter")
@pytest.mark.parametrize("layout", FORMATS)
def test_small_parts_are_summed_by_whichever_program_is_last(layout):
    """To the bit, and the next launch finds the counters as it needs them."""
    from pix2pixhd_fast.kernels.blocks import counters

    from tests.triton_interpreter import shuffled_programs

    x = draw(2, 3, 70, 61, layout=layout)
    dy = draw(2, 3, 70, 61, layout=layout, seed=1)
    statistics = channel_statistics(x, 1e-5)
    rest = (None, None, "relu", 0.2, "none", 0)
    sums = ops.norm_act_pad_reduce(dy, x, None, *statistics, *rest)
    for seed in range(3):
        with shuffled_programs(seed):
            assert torch.equal(torch.stack(channel_statistics(x, 1e-5)), torch.stack(statistics))
            again = ops.norm_act_pad_reduce(dy, x, None, *statistics, *rest)
        assert torch.equal(torch.stack(again), torch.stack(sums))
        assert not counters(x).any()


@needs_cpp
def test_any_number_of_threads():
    x = draw(1, 3, 300, 401)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(torch.stack(channel_statistics(x, 1e-5)))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_small_results():
    x = draw(2, 3, 4, 5).transpose(0, 1).requires_grad_()
    for result in channel_statistics(x, 1e-5):
        assert result.is_contiguous() and not result.requires_grad
        assert (result.shape, result.dtype) == ((3, 2), torch.float32)
    for result in channel_statistics(x.double(), 1e-5):
        assert result.is_contiguous() and result.dtype == torch.float64
    assert channel_statistics(x[:0], 1e-5)[0].shape == (0, 2)


@pytest.mark.parametrize("layout", FORMATS)
def test_opcheck(layout):
    for shape in ((1, 2, 3, 4), (2, 3, 1, 1), (0, 3, 4, 5)):
        torch.library.opcheck(ops.channel_statistics, (draw(*shape, layout=layout), 1e-5))
