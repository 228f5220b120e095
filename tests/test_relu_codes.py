"""relu_bits_, relu_l1_ and their backwards: kernels against the reference, that against PyTorch."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings

from pix2pixhd_fast._library import INTERPRETED, library_status, reference
from pix2pixhd_fast.ops.relu_codes import SUM_PROGRAMS
from tests.helpers import assert_close_l2
from tests.pictures import TOLERANCES, draw, ops
from tests.relu_pictures import SMALL, coarse, shapes, unpacked

needs_cpp = pytest.mark.skipif(
    INTERPRETED or "relu_bits_" not in library_status()["kernels"],
    reason="the C++ kernels are not built",
)


def bias_of(x, seed=9):
    return coarse(1, x.shape[1], 1, 1, seed=seed).flatten()


def assert_relu_bits(shape, dtype):
    x = coarse(*shape, dtype)
    bias, g = bias_of(x), draw(*shape, dtype, "channels_last", seed=1)
    exact = x.clone()
    for coded in range(shape[0], -1, -1):
        mine, exact = x.clone(), x.clone()
        bits = ops.relu_bits_(mine, bias, coded)
        assert torch.equal(bits, reference("relu_bits_")(exact, bias, coded))
        assert bits.numel() == -(-x[:coded].numel() // 8) and torch.equal(mine, exact)
    bits = ops.relu_bits_(mine, bias, shape[0])
    expected = g.clone()
    reference("relu_bits_backward_")(expected, bits)
    ops.relu_bits_backward_(g, bits)
    assert torch.equal(g, expected)


def assert_relu_l1(shape, dtype, write_x, write_y, keep, add):
    x, y = coarse(*shape, dtype), coarse(*shape, dtype, seed=1)
    bias, g = bias_of(x), draw(*shape, dtype, "channels_last", seed=2)
    before = torch.arange(SUM_PROGRAMS) / SUM_PROGRAMS if add else None
    found = []
    for relu_l1, backward in (
        (ops.relu_l1_, ops.relu_l1_backward_),
        (reference("relu_l1_"), reference("relu_l1_backward_")),
    ):
        a, b, dx = x.clone(), y.clone(), g.clone()
        sums, codes = relu_l1(a, b, bias, before, 0.25, write_x, write_y, keep)
        if keep:
            backward(dx, codes, torch.tensor(3.0), 0.5, add)
        found.append((a, b, codes, sums, dx))
    (*mine, sums, dx), (*exact, expected, expected_dx) = found
    assert all(torch.equal(p, q) for p, q in zip(mine, exact, strict=True))
    assert sums.shape == expected.shape and sums.dtype == expected.dtype
    assert_close_l2(sums.sum(), expected.sum(), 1e-6, "sum")
    assert_close_l2(dx, expected_dx, TOLERANCES[dtype], "dx")
    assert torch.equal(dx == 0, expected_dx == 0)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_small_kernel_against_reference(dtype):
    for n, shape in enumerate(SMALL):
        assert_relu_bits(shape, dtype)
        assert_relu_l1(shape, dtype, n % 2 == 0, n % 3 == 0, n != 1, n % 2 == 1)


@needs_cpp
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=30)
@given(shapes(), *[st.booleans()] * 4)
@example((1, 67, 40, 50), True, True, True, True)
@example((1, 2100, 5, 7), True, True, True, True)
def test_kernel_against_reference(dtype, shape, write_x, write_y, keep, add):
    assert_relu_bits(shape, dtype)
    assert_relu_l1(shape, dtype, write_x, write_y, keep, add)


def test_small_as_pytorch():
    """Values and gradients, with many zeros, ties and a NaN."""
    x, y = coarse(2, 3, 5, 7), coarse(2, 3, 5, 7, seed=1)
    bias, g = bias_of(x), draw(2, 3, 5, 7, layout="channels_last", seed=2)
    x[0, 1, 2, 3] = float("nan")
    leaf = x.clone().requires_grad_()
    features = F.relu(leaf + bias[:, None, None])
    other = F.relu(y + bias[:, None, None])
    features.backward(g)
    mine, dx = x.clone(), g.clone()
    ops.relu_bits_backward_(dx, ops.relu_bits_(mine, bias, 2))
    assert torch.equal(dx, leaf.grad)
    torch.testing.assert_close(mine, features, rtol=0, atol=0, equal_nan=True)
    x[0, 1, 2, 3] = 1.0
    leaf = x.clone().requires_grad_()
    features = F.relu(leaf + bias[:, None, None])
    expected = 3 * F.l1_loss(features, other, reduction="sum")
    torch.autograd.backward([features, expected], [g, torch.tensor(2.0)])
    a, b = x.clone(), y.clone()
    sums, codes = ops.relu_l1_(a, b, bias, None, 3.0, True, True, True)
    assert_close_l2(sums.sum(), expected, 1e-6, "sum")
    ops.relu_l1_backward_(g, codes, torch.tensor(2.0), 3.0, True)
    assert_close_l2(g, leaf.grad, 1e-6, "dx")
    assert torch.equal(a, features) and torch.equal(b, other)
    assert {0, 1, 2, 3} == set(unpacked(codes, 2).tolist())


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_words_are_little_endian(bits):
    """A code lies where the file of the op says."""
    x = torch.full((1, 1, 1, 9), -1.0).contiguous(memory_format=torch.channels_last)
    x[..., 0] = x[..., 5] = 1.0
    zero = torch.zeros(1)
    if bits == 1:
        codes = ops.relu_bits_(x, zero, 1)
        assert codes.tolist() == [0b100001, 0]
    elif bits == 2:
        _, codes = ops.relu_l1_(x, x.clone(), zero, None, 1.0, False, False, True)
        assert codes.tolist() == [0b10, 0b1000, 0, 0]
    else:
        x = x.repeat(1, 1, 2, 2)
        _, codes = ops.relu_pool(x.contiguous(memory_format=torch.channels_last), zero, 1, 1)
        # Windows 0, 2, 4 and 7 of nine.
        assert codes.tolist() == [0b0001, 0b0010, 0b0010, 0b0001 << 4, 0, 0, 0, 0]


@needs_cpp
def test_any_number_of_threads():
    x, y = (draw(1, 24, 150, 151, layout="channels_last", seed=n) for n in range(2))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(
            ops.relu_l1_(x.clone(), y.clone(), torch.zeros(24), None, 1.0, True, True, True)
        )
    for sums, codes in found[1:]:
        assert torch.equal(sums, found[0][0]) and torch.equal(codes, found[0][1])


@needs_cpp
def test_refuses_other_strides():
    x = draw(1, 3, 4, 5)
    with pytest.raises(RuntimeError, match="channels_last"):
        ops.relu_bits_(x, torch.zeros(3), 1)
    x, none = coarse(1, 3, 4, 6), torch.zeros(3)
    with pytest.raises(RuntimeError, match="coded"):
        ops.relu_bits_(x, none, 2)
    with pytest.raises(RuntimeError, match="coded and room"):
        ops.relu_pool(x, none, 0, 0)
    with pytest.raises(RuntimeError, match="sums must be"):
        ops.relu_l1_(x, x.clone(), none, torch.zeros(3), 1.0, False, False, False)
    with pytest.raises(RuntimeError, match="y does not match"):
        ops.relu_pool_into_(x, none, x.clone())


def test_opcheck():
    x, bias, one = coarse(1, 3, 4, 5), torch.zeros(3), torch.ones(())
    bits, codes = (torch.zeros(8 * n, dtype=torch.uint8) for n in (1, 2))
    torch.library.opcheck(ops.relu_bits_, (x, bias, 1))
    torch.library.opcheck(ops.relu_bits_backward_, (x, bits))
    for sums in (None, torch.ones(SUM_PROGRAMS)):
        torch.library.opcheck(ops.relu_l1_, (x, x.clone(), bias, sums, 0.5, True, True, True))
    torch.library.opcheck(ops.relu_l1_backward_, (x, codes, one, 0.5, True))


def test_small_empty():
    x, one = coarse(0, 3, 4, 5), torch.ones(())
    bits = ops.relu_bits_(x, torch.zeros(3), 0)
    ops.relu_bits_backward_(x, bits)
    sums, codes = ops.relu_l1_(x, x.clone(), torch.zeros(3), None, 0.5, True, True, True)
    ops.relu_l1_backward_(x, codes, one, 0.5, True)
    assert bits.numel() == codes.numel() == 0 and not sums.any()
