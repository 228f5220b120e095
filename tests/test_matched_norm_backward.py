"""The gradient of a matched feature: against its two parts, and kernels against the reference."""

from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from pix2pixhd_fast import InputError
from pix2pixhd_fast._library import kernel
from pix2pixhd_fast.ops import Feature, Norm, channel_statistics, feature_matching_loss, normalise
from pix2pixhd_fast.ops.blocks import layout_of
from pix2pixhd_fast.ops.matched_norm_backward import (
    Matching,
    match_features,
    matched_norm_backward,
)
from pix2pixhd_fast.ops.norm_act_pad import ACTIVATIONS
from tests.helpers import assert_close_l2
from tests.pictures import FORMATS, TOLERANCES, draw, needs_cpp, ops, widened


class Case(NamedTuple):
    """A shape, an activation, whether there is a norm; borders around x and real."""

    shape: tuple[int, int, int, int]
    act: str = "leaky_relu"
    normalised: bool = True
    border: int = 0
    real_layout: str | None = None

    def per_image(self, seed: int) -> torch.Tensor | None:
        if not self.normalised:
            return None
        return torch.randn(self.shape[:2], generator=torch.Generator().manual_seed(seed))

    def arguments(self, dtype=torch.float32, layout="channels_last") -> tuple:
        """Of the op."""
        dp = draw(*self.shape, dtype, layout, seed=1)
        x = draw(*self.shape, dtype, layout, seed=2, border=self.border)
        real = draw(*self.shape, dtype, self.real_layout or layout, seed=3, border=self.border)
        means = [self.per_image(seed) for seed in range(4, 12)]
        for k in (1, 5):
            means[k] = None if means[k] is None else means[k].abs() + 0.1
        mean, rstd, mean_g, mean_dot, real_mean, real_rstd, *of_match = means
        sides = (dp, x, mean, rstd, mean_g, mean_dot, real, real_mean, real_rstd, *of_match)
        return (*sides, torch.tensor(1.5), 0.3, self.act, 0.2)


# One pixel, more channels than a block has, more pixels than a block has, sides that are odd.
SMALL = [
    Case((1, 1, 1, 1)),
    Case((2, 3, 5, 7), "relu", border=1),
    Case((1, 70, 2, 3)),
    Case((1, 2, 33, 41), "leaky_relu", False),
    Case((1, 2, 63, 37), "tanh"),
    Case((2, 2, 4, 4), "none"),
]


def assert_like_reference(case, dtype, layout):
    given = case.arguments(dtype, layout)
    dx = ops.matched_norm_backward(*given)
    exact = kernel("matched_norm_backward", *map(widened, given))
    dense = torch.empty(dx.shape, memory_format=layout_of(given[1]))
    assert dx.stride() == dense.stride() and dx.dtype == dtype
    assert_close_l2(dx, exact, TOLERANCES[dtype], "dx")


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.act)
def test_small_kernel_against_reference(case, layout):
    assert_like_reference(case, torch.float32, layout)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_small_narrow_kernel_against_reference(dtype):
    assert_like_reference(SMALL[1]._replace(real_layout="nchw"), dtype, "channels_last")


@needs_cpp
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=30)
@given(
    st.builds(
        Case,
        st.tuples(
            st.integers(0, 3),
            st.integers(1, 9) | st.sampled_from([32, 67, 300]),
            *[st.integers(1, 60)] * 2,
        ),
        st.sampled_from(ACTIVATIONS),
        st.booleans(),
        st.integers(0, 2),
        st.none() | st.sampled_from(sorted(FORMATS)),
    ),
    st.sampled_from(sorted(FORMATS)),
)
@example(Case((2, 64, 65, 129)), "channels_last")
@example(Case((1, 2, 310, 331), "relu"), "nchw")
def test_kernel_against_reference(dtype, case, layout):
    assert_like_reference(case, dtype, layout)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("normalised", [True, False])
def test_small_equal_features_have_no_gradient_of_their_own(act, normalised):
    dp, x, mean, rstd, *means, real, _, _, match_g, match_dot, _, weight, _, slope = Case(
        (1, 5, 9, 8), act, normalised
    ).arguments()
    none = None if match_g is None else torch.zeros_like(match_g)
    sides = (dp, x, mean, rstd, *means)
    found = ops.matched_norm_backward(
        *sides, x, mean, rstd, none, none, torch.tensor(1e6), weight, act, slope
    )
    rest = (match_g, match_dot, torch.tensor(0.0), weight, act, slope)
    assert torch.equal(found, ops.matched_norm_backward(*sides, real, mean, rstd, *rest))


def test_small_nan_stays():
    given = list(Case((1, 3, 4, 5), "leaky_relu", False).arguments())
    given[1][0, 1, 2, 3] = float("nan")
    assert ops.matched_norm_backward(*given).isnan().sum() == 1


def feature(x, act, normalised):
    norm = Norm("instance", *channel_statistics(x, 1e-5)) if normalised else Norm()
    return Feature(x, norm, act, 0.2)


@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_the_sum_of_both_gradients(act, dtype, tol):
    """What autograd adds up: that of who reads the features, and that of the loss."""
    shapes = [(2, 3, 6, 5), (2, 4, 7, 4), (2, 5, 1, 3)]
    fakes, reals, dps = (
        [draw(*shape, layout="channels_last", seed=seed + k).to(dtype)
         for k, shape in enumerate(shapes)]
        for seed in (0, 10, 20)
    )  # fmt: skip
    kinds, weights, dloss = (False, True, True), [0.25, 1.5, 2.0], torch.tensor(3.0, dtype=dtype)
    for x in fakes:
        x.requires_grad_()
    fake, real = ([*map(feature, side, [act] * 3, kinds)] for side in (fakes, reals))
    loss = feature_matching_loss(fake, real, weights)
    read = [normalise(f.x, f.norm, None, act, 0.2) for f in fake]
    expected = torch.autograd.grad([loss, *read], fakes, [dloss, *dps])
    fake = [f._replace(x=f.x.detach()) for f in fake]
    same, matchings = match_features(fake, real, weights, dloss)
    assert torch.equal(same, loss.detach()) and not same.requires_grad
    for dp, f, matching, exact in zip(dps, fake, matchings, expected, strict=True):
        dx = matched_norm_backward(dp, f, matching)
        assert dx.stride() == exact.stride() and dx.dtype == dtype
        assert_close_l2(dx, exact, tol, "dx")


def test_nothing_has_a_gradient_of_nothing():
    fake, real = (feature(draw(0, 3, 4, 5), "relu", True) for _ in range(2))
    loss, (matching,) = match_features([fake], [real], [1.0], torch.tensor(1.0))
    assert loss.isnan()
    assert matched_norm_backward(fake.x, fake, matching).shape == (0, 3, 4, 5)


@needs_cpp
@pytest.mark.parametrize("layout", FORMATS)
def test_any_number_of_threads(layout):
    given = Case((2, 3, 200, 301)).arguments(layout=layout)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(ops.matched_norm_backward(*given))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_opcheck():
    for case in (SMALL[1], SMALL[3]):
        torch.library.opcheck(ops.matched_norm_backward, case.arguments())


def test_no_second_derivative():
    dp, *rest = SMALL[1].arguments()
    dx = ops.matched_norm_backward(dp.requires_grad_(), *rest)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        dx.sum().backward()


X = feature(torch.rand(1, 2, 3, 4), "relu", True)
ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("fake", "real", "dloss", "message"),
    [
        (X, X._replace(act="tanh"), ONE, r"real\[0\] must have act and slope of fake\[0\]"),
        (X._replace(norm=Norm("batch")), X, ONE, "norm of fake must be none or instance"),
        (X, X._replace(norm=Norm("none", gamma=ONE[None])), ONE, "norm of real .* with them"),
        (X, X, torch.zeros(2), r"dloss must be a number on cpu, got \[2\]"),
    ],
)
def test_match_features_refuses(fake, real, dloss, message):
    with pytest.raises(InputError, match=message):
        match_features([fake], [real], [1.0], dloss)


@pytest.mark.parametrize(
    ("dp", "matching", "message"),
    [
        (X.x[..., 1:], Matching(X, torch.zeros(2, 1, 2), ONE, 1.0), "dp must be as x"),
        (X.x.half(), Matching(X, torch.zeros(2, 1, 2), ONE, 1.0), "dp must be as x"),
        (X.x, Matching(X, None, ONE, 1.0), r"sums must be \[2, N, C\] .* got None"),
        (X.x, Matching(X, torch.zeros(2, 2), ONE, 1.0), r"sums must be .* got \[2, 2\]"),
        (X.x, Matching(feature(X.x[..., 1:], "relu", True), None, ONE, 1.0), "must have the shape"),
    ],
)
def test_refuses(dp, matching, message):
    with pytest.raises(InputError, match=message):
        matched_norm_backward(dp, X, matching)


@needs_cpp
def test_kernel_refuses_what_would_read_outside():
    given = list(Case((1, 4, 3, 3)).arguments())
    for at, wrong, message in (
        (0, given[0][..., 1:], "dp does not match x"),
        (6, given[6][..., 1:], "real does not match x"),
        (3, torch.ones(1, 1), r"a parameter must be \[C\] or \[N, C\]"),
        (11, torch.ones(2), "dloss must be one number"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.matched_norm_backward(*given[:at], wrong, *given[at + 1 :])
