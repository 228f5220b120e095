"""perceptual_l1 against the same chain of PyTorch's modules, and VGGLoss on it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode

from pix2pixhd_fast import InputError, backend, networks
from pix2pixhd_fast.ops import perceptual_l1
from pix2pixhd_fast.profile.summary import live_bytes
from pix2pixhd_fast.profile.tracer import Tracer
from tests.helpers import assert_close_l2
from tests.pictures import ops

BEHIND = ["l1", "pool", "l1", "relu", "pool", "l1"]
FACTORS = [0.25, 0.5, 1.0]


def chain(dtype=torch.float32, width=6):
    """Weights that keep the deviation, and biases."""
    weights, biases, channels = [], [], 3
    for _ in BEHIND:
        weights.append(torch.randn(width, channels, 3, 3, dtype=dtype) * (4.5 * channels) ** -0.5)
        biases.append(torch.randn(width, dtype=dtype) / 4)
        channels = width
    return weights, biases


def value_and_gradient(function, x, y, *rest):
    leaf = x.detach().clone().requires_grad_()
    loss = function(leaf, y, *rest)
    (3 * loss).backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_value_and_gradient_are_the_chains(dtype, tol, layout):
    rest = chain(dtype)
    x, y = torch.randn(2, 2, 3, 17, 23, dtype=dtype)
    x = x.contiguous(memory_format=layout)
    loss, dx = value_and_gradient(perceptual_l1, x, y, *rest, BEHIND, FACTORS)
    expected, expected_dx = value_and_gradient(exact, x, y, *rest)
    assert loss.dtype == dtype and loss.shape == () and dx.stride() == x.stride()
    assert_close_l2(loss, expected, tol, "loss")
    assert_close_l2(dx, expected_dx, tol, "dx")
    assert perceptual_l1(x, y, *rest, BEHIND, FACTORS).equal(loss)  # nothing kept, the same sums


def exact(x, y, weights, biases, behind=BEHIND, factors=FACTORS):
    """In float64."""
    wide = [[t.double() for t in group] for group in (weights, biases)]
    x, y, loss, rest = x.double(), y.double(), 0.0, list(factors)
    for weight, bias, word in zip(*wide, behind, strict=True):
        x, y = (F.relu(F.conv2d(t, weight, bias, padding=1)) for t in (x, y))
        if word == "pool":
            x, y = F.max_pool2d(x, 2, 2), F.max_pool2d(y, 2, 2)
        elif word == "l1":
            loss = loss + rest.pop(0) * F.l1_loss(x, y)
    return loss


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision(dtype, autocast):
    rest = chain()
    x, y = torch.randn(2, 1, 3, 12, 16)
    expected = value_and_gradient(exact, x, y, *rest)
    with torch.autocast("cpu", dtype, enabled=autocast):
        x, y = (x, y) if autocast else (x.to(dtype), y.to(dtype))
        loss, dx = value_and_gradient(perceptual_l1, x, y, *rest, BEHIND, FACTORS)
    assert loss.dtype == torch.float32 and dx.dtype == x.dtype
    # Six layers, and signs that turn where features are near: wide bounds, not measured ones.
    assert_close_l2(loss, expected[0], 2e-2, "loss")
    assert_close_l2(dx, expected[1], 0.25 if dtype == torch.bfloat16 else 0.1, "dx")


def test_gradcheck():
    weights, biases = chain(torch.float64, 2)
    x, y = torch.randn(2, 1, 3, 8, 9, dtype=torch.float64)

    def loss(x):
        return perceptual_l1(x, y, weights, biases, BEHIND, FACTORS)

    assert torch.autograd.gradcheck(loss, x.requires_grad_(), eps=1e-7)
    one = torch.ones((), dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(loss(x), x, one, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        dx.sum().backward()


def test_opcheck():
    x, y = torch.randn(2, 1, 3, 5, 6)
    weights, biases = chain(width=2)
    behind = ["pool", "l1"]  # each word costs seconds
    rest = (weights[:2], biases[:2], behind, [1.0])
    # Symbolic sizes would take half a minute; `test_compiled` differentiates what is traced.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for dtype in (torch.float32, torch.bfloat16):
        given = (x.requires_grad_(), y, *rest, dtype, True)
        torch.library.opcheck(ops.perceptual_l1, given, test_utils=checks)
    given = (*given[:-2], torch.float32, True)
    loss, codes, _ = ops.perceptual_l1(*given)
    options = (list(x.shape), torch.float32, torch.float16, False)
    back = (loss.detach(), codes, rest[0], behind, [1.0], *options)
    torch.library.opcheck(ops.perceptual_l1_backward, back, test_utils=checks)


def test_only_bits_are_kept():
    x, y = torch.randn(2, 1, 3, 32, 32)
    loss = perceptual_l1(x.requires_grad_(), y, *chain(), BEHIND, FACTORS)
    kept = loss.grad_fn.saved_tensors
    codes = [t for t in kept if t.dtype == torch.uint8]
    planes = (32 * 32 * 2, 16 * 16 * 4, 16 * 16 * 2, 16 * 16, 8 * 8 * 4, 8 * 8 * 2)
    assert [t.numel() for t in codes] == [6 * bits // 8 for bits in planes]
    assert len(kept) == len(codes) + len(BEHIND)
    with torch.no_grad():
        _, codes, _ = ops.perceptual_l1(x, y, *chain(), BEHIND, FACTORS, x.dtype, False)
    assert not any(t.numel() for t in codes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.zeros(3, 8, 8)), r"x must be \[N, C, H, W\]"),
        (dict(x=torch.zeros(0, 3, 8, 8)), "x must hold at least one picture"),
        (dict(y=torch.zeros(1, 3, 8, 9)), "y must be a floating picture"),
        (dict(biases=[]), "weights, biases and behind"),
        (dict(weights=[torch.zeros(6, 4, 3, 3)] * 6), "weights and biases must be"),
        (dict(behind=["l2"] * 6), "behind must be of l1, pool, relu"),
        (dict(factors=[1.0]), "factors must be one number"),
        (dict(x=torch.zeros(1, 3, 3, 9), y=torch.zeros(1, 3, 3, 9)), "sides of at least 4"),
    ],
)
def test_refuses(change, message):
    weights, biases = chain()
    picture = torch.zeros(1, 3, 8, 8)
    given = dict(x=picture, y=picture, weights=weights, biases=biases, behind=BEHIND)
    with pytest.raises(InputError, match=message):
        perceptual_l1(**{**given, "factors": FACTORS, **change})


@pytest.fixture(scope="module")
def loss_module():
    return networks.VGGLoss(weights="random")


def test_vgg_loss_is_the_ordinary_one(loss_module):
    """Value and gradient against float64, no further from it than the ordinary loss."""
    x, y = torch.rand(2, 1, 3, 33, 50) * 2 - 1
    with backend("eager"):
        wide = networks.VGGLoss(weights="random").double()
        expected, expected_dx = value_and_gradient(
            features_in_float64, x.double(), y.double(), wide
        )
        eager, eager_dx = value_and_gradient(loss_module, x, y)
    loss, dx = value_and_gradient(loss_module, x, y)
    assert_close_l2(loss, eager, 1e-5, "loss")
    assert_close_l2(dx, eager_dx, 1e-5, "dx")
    assert_close_l2(loss, expected, 1e-5, "loss in float64")
    assert_close_l2(dx, expected_dx, 1e-5, "dx in float64")


def features_in_float64(x, y, loss):
    pairs = zip(loss.weights, loss.vgg(x), loss.vgg(y), strict=True)
    return sum(w * F.l1_loss(fx, fy) for w, fx, fy in pairs)


def test_vgg_loss_in_bf16(loss_module):
    x, y = torch.rand(2, 1, 3, 16, 16) * 2 - 1
    exact = value_and_gradient(loss_module, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradient(loss_module, x, y)
        with backend("eager"):
            eager = value_and_gradient(loss_module, x, y)
    for name, mine, theirs, true in zip(("loss", "dx"), found, eager, exact, strict=True):
        assert mine.dtype == torch.float32
        far = (theirs - true).norm() / true.norm()
        assert_close_l2(mine, true, max(1.2 * far.item(), 1e-2), name)


def fresh():
    return networks.VGGLoss(weights="random")


def runs_op(module, x=None, y=None):
    """Whether a call of VGGLoss runs the op."""
    x = torch.rand(1, 3, 16, 16, requires_grad=True) if x is None else x
    loss = module(x, torch.rand(1, 3, 16, 16) if y is None else y)
    return "perceptual_l1" in loss.grad_fn.name()


def test_vgg_loss_runs_the_op_only_where_it_may():
    module = fresh()
    assert runs_op(module)
    with backend("eager"):
        assert not runs_op(module)
    seen = []
    hook = module.vgg.slice3[0].register_forward_hook(lambda *a: seen.append(a))
    assert not runs_op(module) and len(seen) == 2
    hook.remove()
    assert runs_op(module)
    module.vgg.slice2[2] = nn.AvgPool2d(2, 2)
    assert not runs_op(module)
    module = fresh()
    module.vgg.requires_grad_()
    assert not runs_op(module)
    module = fresh()
    module.vgg.slice1[0].padding_mode = "reflect"
    module.vgg.slice1[0]._reversed_padding_repeated_twice = [1, 1, 1, 1]
    assert not runs_op(module)
    module = fresh()
    for name in ("weight", "bias"):
        torch.nn.utils.parametrize.register_parametrization(
            module.vgg.slice4[0], name, nn.Identity()
        )
    assert not runs_op(module)


@pytest.mark.filterwarnings("ignore")
def test_compiled(loss_module):
    torch._dynamo.reset()
    x, y = torch.rand(2, 1, 3, 16, 16)
    expected = value_and_gradient(loss_module, x, y)
    compiled = torch.compile(loss_module, backend="aot_eager", fullgraph=True)
    found = value_and_gradient(compiled, x, y)
    assert_close_l2(found[0], expected[0], 1e-6, "loss")
    assert_close_l2(found[1], expected[1], 1e-6, "dx")


def traced(choice, autocast):
    """Bytes of the peak, kept by the forward, touched, and launches, of VGGLoss at 512x256."""
    with FakeTensorMode(), backend(choice):
        module = fresh()
        with Tracer(module) as tracer:
            x, y = torch.empty(1, 3, 256, 512, requires_grad=True), torch.empty(1, 3, 256, 512)
            tracer.restart()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = module(x, y)
            kept = live_bytes(tracer.recording)[-1]
            loss.backward()
            tracer.stop()
    recording = tracer.recording
    touched = sum(launch.cost.touched for launch in recording.launches)
    peak = live_bytes(recording).max() - recording.start
    return peak, kept - recording.start, touched, len(recording.launches)


@pytest.mark.parametrize(("autocast", "plane"), [(False, 4), (True, 2)])
def test_traced_memory(autocast, plane):
    """At most two full-size features of 64 channels and a little; eager holds eight or more."""
    plane *= 64 * 256 * 512
    peak, kept, touched, launches = traced("fused", autocast)
    eager_peak, _, eager_touched, eager_launches = traced("eager", autocast)
    converted = 2 * sum(p.numel() for p in fresh().parameters()) if autocast else 0
    assert peak - converted < 2.75 * plane and peak < 0.3 * eager_peak
    assert kept - converted < 0.9 * 64 * 256 * 512  # bits alone
    assert touched < 0.5 * eager_touched
    assert launches < (0.3 if autocast else 0.43) * eager_launches


def test_detached_leaf_frees_everything(loss_module):
    """Value and gradient of a picture at once: after it only these two are left."""
    fake = torch.rand(1, 3, 16, 16, requires_grad=True) * 2
    picture = fake.detach().requires_grad_()
    loss = loss_module(picture, torch.rand(1, 3, 16, 16))
    node = loss.grad_fn
    (gradient,) = torch.autograd.grad(loss, picture)
    with pytest.raises(RuntimeError, match="freed"):
        node.saved_tensors  # noqa: B018
    assert gradient.shape == fake.shape and picture.grad is None
