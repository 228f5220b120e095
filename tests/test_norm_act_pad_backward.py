"""The two passes of the backward of norm_act_pad: the kernels against the reference in float64."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from tests.pictures import (
    FORMATS,
    SMALL,
    TOLERANCES,
    Problem,
    assert_like_reference,
    draw,
    needs_cpp,
    ops,
    problems,
    small,
)


def arguments(problem, dtype=torch.float32, layout="nchw"):
    """Of norm_act_pad_reduce up to beta."""
    dy = draw(*problem.padded_shape, dtype, layout, seed=1)
    x, minus = (
        draw(*problem.shape, dtype, layout, seed=seed, border=border)
        for seed, border in ((2, problem.border), (3, 1))
    )
    mean, *rest = problem.prologue()
    return (dy, x, minus, None, *rest) if problem.more else (dy, x, None, mean, *rest)


def assert_passes(problem, dtype, layout):
    given = arguments(problem, dtype, layout)
    assert_like_reference("norm_act_pad_reduce", *given, *problem.options)
    means = (problem.per_image(5), problem.per_image(6))
    for more in ((None, None), means):
        assert_like_reference("norm_act_pad_backward", *given, *more, *problem.options)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("index", range(len(SMALL)))
def test_small_kernel_against_reference(index, layout):
    problem = small(layout)[index]
    assert_passes(problem, torch.float32, layout)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_small_narrow_kernel_against_reference(dtype):
    for layout in FORMATS:
        assert_passes(SMALL[4], dtype, layout)


@needs_cpp
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=60)
@given(problems(), st.sampled_from(sorted(FORMATS)))
@example(Problem((1, 2, 210, 331), "relu", "reflect", 3), "nchw")
@example(Problem((1, 33, 70, 61), "tanh", "replicate", 3), "channels_last")
@example(Problem((1, 2100, 5, 4), "leaky_relu", "reflect", 3, more=True), "channels_last")
def test_kernel_against_reference(dtype, problem, layout):
    assert_passes(problem, dtype, layout)


@needs_cpp
@pytest.mark.parametrize("layout", FORMATS)
def test_any_number_of_threads(layout):
    problem = Problem((1, 3, 300, 401), "leaky_relu", "reflect", 3)
    given = arguments(problem, layout=layout)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        means = ops.norm_act_pad_reduce(*given, *problem.options)
        dx = ops.norm_act_pad_backward(*given, *means, *problem.options)
        results.append((*means, dx))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e-7, 1.0, 100.0])
def test_narrow_dtypes_round_once(dtype, scale):
    """The same bits as the float32 kernel and PyTorch's conversions, subnormal numbers included."""
    problem = Problem((1, 2, 60, 70), "tanh", "reflect", 3)
    dy, x, *rest = arguments(problem, dtype)
    dy = (dy * 1e-2 * scale).to(dtype)
    dx = ops.norm_act_pad_backward(dy, x, *rest, None, None, *problem.options)
    wide = (dy.float(), x.float(), *rest)
    want = ops.norm_act_pad_backward(*wide, None, None, *problem.options)
    assert torch.equal(dx, want.to(dtype))


@pytest.mark.parametrize("layout", FORMATS)
def test_opcheck(layout):
    for problem in (SMALL[1], SMALL[4], Problem((0, 3, 4, 5), "tanh", "zero", 2)):
        given = arguments(problem._replace(gamma=None, beta=None), layout=layout)
        torch.library.opcheck(ops.norm_act_pad_reduce, (*given, *problem.options))
        more = (problem.per_image(5), problem.per_image(6))
        torch.library.opcheck(ops.norm_act_pad_backward, (*given, *more, *problem.options))


@needs_cpp
def test_kernel_refuses_what_would_read_outside():
    x = draw(1, 2, 4, 4)
    with pytest.raises(RuntimeError, match="dy does not match x"):
        ops.norm_act_pad_reduce(x, x, *(None,) * 5, "relu", 0.2, "zero", 1)
    with pytest.raises(RuntimeError, match=r"a parameter must be \[C\] or \[N, C\]"):
        mean = torch.zeros(1, 1)
        ops.norm_act_pad_reduce(x, x, None, mean, mean, None, None, "relu", 0.2, "none", 0)
    with pytest.raises(RuntimeError, match="minus does not match x"):
        minus = x[:, :, 1:]
        ops.norm_act_pad_backward(x, x, minus, *(None,) * 6, "relu", 0.2, "none", 0)
