"""multiscale_gan_loss: the reference against PyTorch, the C++ and CUDA kernels against it."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from torch import nn

from pix2pixhd_fast import InputError, backend, networks
from pix2pixhd_fast._library import kernel
from pix2pixhd_fast.ops import multiscale_gan_loss
from tests.cuda_on_cpu import HERE, SEEDS, Output, device_program
from tests.helpers import assert_close_l2
from tests.pictures import TOLERANCES, needs_cpp, ops

NAMES = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat16"}


def probabilities(*sizes, dtype=torch.float32, seed=0):
    """In [0, 1], both ends included where there is room."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.rand(size, generator=generator) for size in sizes]
    for p in found:
        p.flatten()[:2] = torch.tensor([0.0, 1.0])[: p.numel()]
    return [p.to(dtype) for p in found]


def by_reference(predictions, target, lsgan, dloss=0.7):
    wide = [p.double() for p in predictions]
    loss = kernel("multiscale_gan_loss_forward", wide, target, lsgan)
    dloss = torch.tensor(dloss).double()
    return loss, kernel("multiscale_gan_loss_backward", dloss, wide, target, lsgan)


def assert_same(loss, gradients, predictions, target, lsgan):
    want, exact = by_reference(predictions, target, lsgan)
    assert_close_l2(loss, want, 1e-5, "loss")
    for dp, one, p in zip(gradients, exact, predictions, strict=True):
        assert dp.dtype == p.dtype and dp.is_contiguous()
        # log p at 0 clamps, (p - 1) / (p * (1 - p)) does not: beyond float16
        assert_close_l2(dp.double().clamp(-6e4, 6e4), one.clamp(-6e4, 6e4), TOLERANCES[p.dtype], "")


SIZES = st.lists(st.integers(1, 300) | st.tuples(*[st.integers(1, 20)] * 4), min_size=1, max_size=3)


@needs_cpp
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@settings(max_examples=15)
@given(SIZES, st.sampled_from([0.0, 1.0, 0.9]), st.booleans(), st.integers(0, 9))
@example([(1, 1, 131, 259), (1, 1, 67, 131)], 1.0, True, 0)
@example([70_000], 1.0, False, 0)
def test_kernel_against_reference(dtype, sizes, target, lsgan, seed):
    predictions = probabilities(*sizes, dtype=dtype, seed=seed)
    loss = ops.multiscale_gan_loss_forward(predictions, target, lsgan)
    dloss = torch.tensor(0.7)
    found = ops.multiscale_gan_loss_backward(dloss, predictions, target, lsgan)
    assert_same(loss, found, predictions, target, lsgan)


def test_any_strides():
    (p,) = probabilities((2, 3, 8, 10))
    views = [p[..., ::2], p.transpose(1, 3), p.contiguous(memory_format=torch.channels_last)]
    for lsgan in (True, False):
        loss = ops.multiscale_gan_loss_forward(views, 1.0, lsgan)
        found = ops.multiscale_gan_loss_backward(torch.tensor(0.7), views, 1.0, lsgan)
        assert_same(loss, found, views, 1.0, lsgan)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("target", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("lsgan", [True, False])
def test_value_and_gradient_are_those_of_pytorch(lsgan, target, dtype):
    predictions = [p.requires_grad_() for p in probabilities((1, 1, 5, 7), (3,), 2, dtype=dtype)]
    loss = F.mse_loss if lsgan else F.binary_cross_entropy
    want = sum(loss(p, torch.full_like(p, target)) for p in predictions)
    mine = multiscale_gan_loss(predictions, target, lsgan)
    assert mine.dtype == dtype
    assert_close_l2(mine, want, 1e-6, "loss")
    grads = [torch.autograd.grad(value, predictions) for value in (2 * mine, 2 * want)]
    for got, exact in zip(*grads, strict=True):
        assert_close_l2(got, exact, 1e-6, "gradient")


@pytest.mark.parametrize("lsgan", [True, False])
def test_gradcheck(lsgan):
    predictions = [
        (p * 0.8 + 0.1).requires_grad_() for p in probabilities((2, 3), 4, dtype=torch.float64)
    ]
    assert torch.autograd.gradcheck(
        lambda *p: multiscale_gan_loss(list(p), 0.9, lsgan), predictions
    )


@needs_cpp
@pytest.mark.parametrize("lsgan", [True, False])
def test_any_number_of_threads(lsgan):
    predictions = probabilities(100_001, 4)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        loss = ops.multiscale_gan_loss_forward(predictions, 1.0, lsgan)
        more = ops.multiscale_gan_loss_backward(loss, predictions, 1.0, lsgan)
        results.append([loss, *more])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_nothing_and_impossible_probabilities_give_nan(backend_name):
    none = torch.empty(1, 1, 0, 4, requires_grad=True)
    loss = multiscale_gan_loss([none, torch.ones(2)], 1.0)
    assert loss.isnan() and torch.autograd.grad(loss, none)[0].shape == none.shape
    assert multiscale_gan_loss([torch.tensor([0.5, -0.1])], 1.0, False).isnan()


@pytest.mark.parametrize("use_lsgan", [True, False])
def test_loss_of_networks_is_the_same_under_both_backends(use_lsgan):
    scales = [[None, p.requires_grad_()] for p in probabilities((2, 1, 5, 7), (2, 1, 3, 4))]
    criterion, found = networks.GANLoss(use_lsgan, 0.9, 0.1), []
    assert isinstance(criterion.loss, nn.MSELoss if use_lsgan else nn.BCELoss)
    for name in ("eager", "fused"):
        with backend(name):
            loss = criterion(scales, True) + 3 * criterion(scales, False)
            found.append([loss, *torch.autograd.grad(loss, [scale[-1] for scale in scales])])
    for want, got in zip(*found, strict=True):
        assert_close_l2(got, want, 1e-6, "gradient")


def by_cuda_code(predictions, target, lsgan, seed):
    program, name = device_program(HERE / "multiscale_gan_loss.cpp"), NAMES[predictions[0].dtype]
    p, q = predictions
    blocks = sum(-(-one.numel() // 2048) for one in predictions)
    loss, outputs = torch.empty(()), [torch.empty_like(one) for one in predictions]
    rest = (target, int(lsgan))
    sums = (Output(torch.empty(blocks)), Output(loss))
    program.run(f"measure_{name}", p, p.numel(), q, q.numel(), *rest, *sums, seed=seed)
    pairs = (p, Output(outputs[0]), p.numel(), q, Output(outputs[1]), q.numel())
    program.run(f"differentiate_{name}", *pairs, *rest, torch.tensor(0.7), seed=seed)
    return loss, outputs


@pytest.mark.parametrize("dtype", NAMES, ids=str)
@pytest.mark.parametrize("lsgan", [True, False])
def test_cuda_code_against_reference(lsgan, dtype):
    for seed, sizes in zip(SEEDS, [(1, 5), (2048, 300), (2100, 33)], strict=True):
        predictions = probabilities(*sizes, dtype=dtype)
        assert_same(*by_cuda_code(predictions, 0.9, lsgan, seed), predictions, 0.9, lsgan)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("lsgan", [True, False])
def test_cuda_kernel_on_a_device(lsgan, dtype):
    predictions = probabilities((1, 1, 131, 259), (2, 1, 5, 7), *[3] * 70, dtype=dtype)
    there = [p.cuda() for p in predictions]
    loss = ops.multiscale_gan_loss_forward(there, 1.0, lsgan)
    found = ops.multiscale_gan_loss_backward(torch.tensor(0.7).cuda(), there, 1.0, lsgan)
    assert_same(loss, [dp.cpu() for dp in found], predictions, 1.0, lsgan)


def test_opcheck():
    predictions = probabilities((2, 3), 4)
    torch.library.opcheck(ops.multiscale_gan_loss_forward, (predictions, 0.9, False))
    given = (torch.tensor(1.0), predictions, 0.9, True)
    torch.library.opcheck(ops.multiscale_gan_loss_backward, given)


def test_compiles_in_one_graph(backend_name):
    predictions = [p.requires_grad_() for p in probabilities((2, 3), 4)]

    def loss(*given):
        return multiscale_gan_loss(given, 0.9)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = [[value, *torch.autograd.grad(value, predictions)]
             for value in (compiled(*predictions), loss(*predictions))]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradient_where_it_is_wanted_and_no_second_derivative(backend_name):
    p, q = probabilities((2, 3), 4)
    loss = multiscale_gan_loss([p.requires_grad_(), q], 0.9)
    (dp,) = torch.autograd.grad(loss, p, create_graph=True)
    assert not q.requires_grad
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(dp.sum(), p)


X = torch.zeros(2)


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], "at least one, got none"),
        ([X.int()], "must be float32, float16, bfloat16 or float64, got torch.int32"),
        ([X, X.half()], r"predictions\[1\] must have dtype and device of predictions\[0\]"),
    ],
)
def test_refuses(predictions, message):
    with pytest.raises(InputError, match=message):
        multiscale_gan_loss(predictions, 1.0)
