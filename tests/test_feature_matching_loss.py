"""feature_matching_loss: the C++ and CUDA kernels against the reference."""

import ctypes
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from pix2pixhd_fast._library import kernel
from pix2pixhd_fast.ops.blocks import layout_of
from pix2pixhd_fast.ops.feature_matching_loss import partial_sums
from tests.cuda_on_cpu import HERE, SEEDS, Output, device_program
from tests.helpers import assert_close_l2
from tests.pictures import FORMATS, TOLERANCES, draw, needs_cpp, ops, widened

ACTS = ("none", "relu", "leaky_relu", "tanh")


class One(NamedTuple):
    """One feature: shape, activation, memory formats, and which parameters its norm has."""

    shape: tuple[int, int, int, int]
    act: str = "leaky_relu"
    fake_format: str = "channels_last"
    real_format: str = "channels_last"
    normalised: bool = True
    affine: bool = False
    scale: float = 1.0

    def norm(self, seed: int) -> list[torch.Tensor]:
        nothing, n, c = torch.empty(0), *self.shape[:2]
        mean, rstd, gamma, beta = (
            torch.randn(size, generator=torch.Generator().manual_seed(seed + k))
            for k, size in enumerate([(n, c), (n, c), (c,), (c,)])
        )
        statistics = [mean, rstd.abs() + 0.1] if self.normalised else [nothing, nothing]
        return statistics + ([gamma, beta] if self.affine else [nothing, nothing])


def arguments(features, dtype=torch.float32, seed=0):
    """Of feature_matching_loss_forward: fake, real, norms, acts, slopes, weights."""
    fake = [draw(*f.shape, dtype, f.fake_format, 2 * i + seed) for i, f in enumerate(features)]
    real = [draw(*f.shape, dtype, f.real_format, 2 * i + 1 + seed) for i, f in enumerate(features)]
    norms = [[t for i, f in enumerate(features) for t in f.norm(9 * i + k)] for k in (0, 50)]
    slopes, weights = [0.2] * len(features), [f.scale for f in features]
    return fake, real, *norms, [f.act for f in features], slopes, weights


def wide(argument):
    return [widened(t) for t in argument] if isinstance(argument, list) else widened(argument)


def assert_forward_and_backward(forward, backward, given, dtype):
    """Against the references in float64; gradients are dense in the format of their feature."""
    loss, sums = forward(*given)
    want, exact_sums = kernel("feature_matching_loss_forward", *map(wide, given))
    assert_close_l2(loss, want, 1e-5, "loss")
    assert_close_l2(sums, exact_sums, 1e-5, "sums")
    dloss = torch.tensor(0.7)
    *features, acts, slopes, weights = given
    found = backward(dloss, *features, sums, acts, slopes, weights)
    rest = (*map(wide, features), exact_sums, acts, slopes, weights)
    expected = kernel("feature_matching_loss_backward", dloss.double(), *rest)
    for dx, exact, x in zip(found, expected, given[0], strict=True):
        like = torch.empty(x.shape, memory_format=layout_of(x))
        assert (dx.dtype, dx.stride()) == (x.dtype, like.stride())
        # rounded too: float16 has few digits for gradients that a million elements share
        assert_close_l2(dx, exact.to(dtype), TOLERANCES[dtype], "dx")


@st.composite
def features(draw_one):
    side, channels = st.integers(1, 40), st.integers(1, 9) | st.sampled_from([16, 64, 67, 300])
    shapes = st.tuples(st.integers(1, 2), channels, side, side)
    formats, flag = st.sampled_from(sorted(FORMATS)), st.booleans()
    weight = st.sampled_from([0.25, 1.0])
    one = st.builds(One, shapes, st.sampled_from(ACTS), formats, formats, flag, flag, weight)
    return draw_one(st.lists(one, min_size=1, max_size=4))


# Of a discriminator: channels_last, the first without a norm; more than a chunk, odd sides
DISCRIMINATOR = [
    One((1, 64, 33, 65), normalised=False),
    One((1, 128, 17, 33)),
    One((1, 256, 9, 17), scale=0.5),
    One((1, 8, 150, 61)),
]
PLANES = [
    One((2, 3, 210, 331), "relu", "nchw", "nchw", False),
    One((2, 3, 110, 331), "none", "nchw", "channels_last", affine=True),
    One((0, 3, 4, 4), "none", "nchw", "nchw"),
]


@needs_cpp
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=25)
@given(features(), st.integers(0, 9))
@example(DISCRIMINATOR, 0)
@example(PLANES[:2], 0)
def test_kernel_against_reference(dtype, some, seed):
    given = arguments(some, dtype, seed)
    forward, backward = ops.feature_matching_loss_forward, ops.feature_matching_loss_backward
    assert_forward_and_backward(forward, backward, given, dtype)


def test_any_strides():
    """Views that are dense in no format, of either side."""
    fake = [draw(2, 5, 9, 18)[..., ::2], draw(1, 8, 9, 7, layout="channels_last")[:, ::2]]
    real = [draw(2, 9, 9, 5, seed=1).transpose(1, 3), draw(1, 8, 4, 4, seed=2)[:, ::2, :1]]
    real = [real[0], real[1].expand(-1, -1, 9, -1)[..., :1].expand(-1, -1, -1, 7)]
    some = [One((2, 5, 9, 9)), One((1, 4, 9, 7), affine=True)]
    given = (fake, real, *arguments(some)[2:])
    forward, backward = ops.feature_matching_loss_forward, ops.feature_matching_loss_backward
    assert_forward_and_backward(forward, backward, given, torch.float32)


@needs_cpp
def test_any_number_of_threads():
    given = arguments([*DISCRIMINATOR, *PLANES[:2]])
    *tensors, acts, slopes, weights = given
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        loss, sums = ops.feature_matching_loss_forward(*given)
        rest = (*tensors, sums, acts, slopes, weights)
        results.append([loss, sums, *ops.feature_matching_loss_backward(loss, *rest)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_opcheck():
    some = [One((2, 3, 4, 5), affine=True), One((1, 2, 3, 3), normalised=False)]
    for dtype in (torch.float32,):
        fake, real, fake_norms, real_norms, *rest = arguments(some, dtype)
        for t in (*fake, *fake_norms[2:4]):
            t.requires_grad_()
        given = (fake, real, fake_norms, real_norms, ["batch", "none"], *rest)
        torch.library.opcheck(ops.feature_matching_loss, given)
    torch.library.opcheck(ops.feature_matching_loss_forward, arguments(some))
    *tensors, acts, slopes, weights = arguments(some)
    _, sums = ops.feature_matching_loss_forward(*tensors, acts, slopes, weights)
    given = (torch.tensor(1.0), *tensors, sums, acts, slopes, weights)
    torch.library.opcheck(ops.feature_matching_loss_backward, given)


@needs_cpp
def test_kernel_refuses_what_would_read_outside():
    fake, real, fake_norms, real_norms, *rest = arguments([One((1, 4, 3, 3))])
    with pytest.raises(RuntimeError, match="real does not match"):
        wrong = [real[0][..., 1:]]
        ops.feature_matching_loss_forward(fake, wrong, fake_norms, real_norms, *rest)
    with pytest.raises(RuntimeError, match="lists of different lengths"):
        ops.feature_matching_loss_forward(fake, real, fake_norms[:3], real_norms, *rest)
    with pytest.raises(RuntimeError, match="sums do not match"):
        given = (torch.tensor(1.0), fake, real, fake_norms, real_norms, torch.zeros(7), *rest)
        ops.feature_matching_loss_backward(*given)


NAMES = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat16"}


def by_cuda_code(one, elements, dtype, seed):
    """Loss, sums and both gradients, by the CUDA kernels run on the CPU, and the arguments."""
    program = device_program(HERE / "feature_matching_loss.cpp")
    plain = One((1, 1, 1, elements), "none", "nchw", "nchw", normalised=False, scale=2.0)
    given = arguments([one._replace(scale=0.5, real_format=one.fake_format), plain], dtype, seed)
    given = (*given[:3], [*given[2][:4], *given[3][4:]], *given[4:])  # both sides have one norm
    memory = [[t.permute(0, 2, 3, 1) if t.stride(1) == 1 and t.shape[1] > 1 else t for t in side]
              for side in given[:2]]  # fmt: skip
    n, c, h, w = one.shape
    last = memory[0][0] is not given[0][0]
    images, channels = (n, c) if last else (n * c, 1)
    (fake, plain_fake), (real, plain_real) = ([t.contiguous() for t in side] for side in memory)
    norm = [0 if t.numel() == 0 else t for t in given[2][:4]]
    slope = {"none": 1.0, "relu": 0.0, "leaky_relu": 0.2, "tanh": 2.0}[one.act]
    sizes = torch.zeros(2, dtype=torch.int64)
    shape = (images, h * w, channels)
    places = [ctypes.c_void_p(t.data_ptr()) for t in (fake, real, plain_fake, plain_real, sizes)]
    getattr(program.library, f"sizes_{NAMES[dtype]}")(
        *places[:2], *map(ctypes.c_int64, shape), *places[2:4], ctypes.c_int64(elements), places[4]
    )
    blocks, partials = sizes.tolist()
    counted = partial_sums(given[0][0], True, False), partial_sums(given[0][1], False, True)
    described = tuple(map(sum, zip(*counted, strict=True)))
    if all(t.data_ptr() % 16 == 0 for t in (fake, real, plain_fake, plain_real)):
        assert described == (blocks, partials)
    distances, parts, sums = torch.empty(blocks), torch.empty(partials), torch.empty(2 * n * c)
    loss, dx, plain_dx = torch.empty(()), torch.empty_like(fake), torch.empty_like(plain_fake)
    more = (*norm, *shape, c, slope, plain_fake, plain_real)
    written = map(Output, (distances, parts, loss, sums))
    program.run(f"measure_{NAMES[dtype]}", fake, real, *more, elements, *written, seed=seed)
    written, more = Output(dx), (*more, Output(plain_dx))
    last_ones = (elements, torch.tensor(0.7), sums)
    name = f"differentiate_{NAMES[dtype]}"
    program.run(name, fake, real, written, *more, *last_ones, seed=seed)
    dx = dx.permute(0, 3, 1, 2) if last else dx
    return (loss, sums, [dx, plain_dx]), given


@pytest.mark.parametrize("dtype", NAMES, ids=str)
@settings(max_examples=6)
@given(
    st.builds(
        One,
        st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 8, 24]), *[st.integers(1, 9)] * 2),
        st.sampled_from(ACTS),
        st.sampled_from(sorted(FORMATS)),
        affine=st.booleans(),
    ),
    st.integers(1, 99),
    st.sampled_from(SEEDS),
)
@example(One((1, 64, 9, 17)), 16, 0)
@example(One((1, 1, 80, 60), "relu", "nchw", "nchw", False, True), 17_000, 1)
@example(One((1, 1030, 2, 2), "none", affine=True), 7, 2)
def test_cuda_code_against_reference(dtype, one, elements, seed):
    if not one.normalised and not one.affine:
        one = one._replace(affine=True)
    (loss, sums, gradients), given = by_cuda_code(one, elements, dtype, seed)
    want, exact_sums = kernel("feature_matching_loss_forward", *map(wide, given))
    if not one.normalised:
        sums = sums.reshape(exact_sums.shape)
    assert_close_l2(loss, want, 1e-5, "loss")
    assert_close_l2(sums, exact_sums, 1e-5, "sums")
    *tensors, acts, slopes, weights = given
    rest = (*map(wide, tensors), exact_sums, acts, slopes, weights)
    expected = kernel("feature_matching_loss_backward", torch.tensor(0.7).double(), *rest)
    for dx, exact in zip(gradients, expected, strict=True):
        assert_close_l2(dx, exact.to(dtype), TOLERANCES[dtype], "dx")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_cuda_kernel_on_a_device(dtype):
    for some in (DISCRIMINATOR, PLANES, DISCRIMINATOR * 6):
        given = arguments(some, dtype)
        there = [[t.cuda() for t in side] for side in given[:4]]
        loss, sums = ops.feature_matching_loss_forward(*there, *given[4:])
        want, exact_sums = kernel("feature_matching_loss_forward", *map(wide, given))
        assert loss.isnan() and want.isnan() or (loss.cpu() - want).abs() < 1e-5 * want
        assert_close_l2(sums, exact_sums, 1e-5, "sums")
        dloss = torch.tensor(0.7)
        rest = (exact_sums.float().cuda(), *given[4:])
        found = ops.feature_matching_loss_backward(dloss.cuda(), *there, *rest)
        rest = (*map(wide, given[:4]), exact_sums, *given[4:])
        expected = kernel("feature_matching_loss_backward", dloss.double(), *rest)
        for dx, exact in zip(found, expected, strict=True):
            assert_close_l2(dx, exact.to(dtype), TOLERANCES[dtype], "dx")
