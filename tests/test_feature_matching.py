"""feature_matching_loss by its public function: against PyTorch's own layers, and its refusals."""

import pytest
import torch
import torch.nn.functional as F

from pix2pixhd_fast import InputError, backend, networks
from pix2pixhd_fast.nn.losses import feature_matching_loss as loss_of_discriminator
from pix2pixhd_fast.ops import Feature, Norm, channel_statistics, feature_matching_loss
from pix2pixhd_fast.ops.norm_act_pad import ACTIVATIONS
from tests.helpers import assert_close_l2
from tests.pictures import TOLERANCES, activation, draw

KINDS = ("none", "instance", "batch", "fixed")


def parameters(kind, x):
    """mean and rstd as a convolution and `nn.norms` leave them."""
    with torch.no_grad():
        if kind == "instance":
            return channel_statistics(x, 1e-5)
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        if kind == "fixed":
            mean, var = torch.full_like(mean, 0.3), torch.full_like(var, 2.0)
        return mean.repeat(len(x), 1), (var + 1e-5).rsqrt().repeat(len(x), 1)


def feature(kind, act, x, gamma, beta):
    statistics = (None, None) if kind == "none" else parameters(kind, x)
    return Feature(x, Norm(kind, *statistics, gamma, beta), act, 0.2)


def ours(kind, act, *pairs):
    """The loss of pairs of (fake, real, gamma, beta)."""
    fake = [feature(kind, act, f, *affine) for f, _, *affine in pairs]
    real = [feature(kind, act, r, *affine) for _, r, *affine in pairs]
    return feature_matching_loss(fake, real, [0.25, 1.5])


def pytorchs(kind, act, *pairs):
    def feature(x, gamma, beta):
        if kind == "instance":
            x = F.instance_norm(x)
        elif kind != "none":
            mean, var = torch.full_like(x[0, :, 0, 0], 0.3), torch.full_like(x[0, :, 0, 0], 2.0)
            x = F.batch_norm(x, mean, var, training=kind == "batch")
        if gamma is not None:
            x = x * gamma[:, None, None] + beta[:, None, None]
        return activation(x, act, 0.2)

    terms = [F.l1_loss(feature(f, g, b), feature(r, g, b).detach()) for f, r, g, b in pairs]
    return sum(w * term for w, term in zip([0.25, 1.5], terms, strict=False))


def pairs_of(dtype, affine, n=2):
    tensors = []
    for seed, shape in enumerate([(n, 3, 3, 4), (n, 2, 5, 2)]):
        x, y = draw(*shape, torch.float32, seed=seed), draw(*shape, torch.float32, seed=seed + 5)
        more = [draw(1, 1, 1, shape[1], seed=seed + k).flatten() for k in (7, 8)]
        pair = [x.to(dtype).requires_grad_(), y.to(dtype)]
        tensors.append(pair + ([t.to(dtype).requires_grad_() for t in more] if affine else []))
    return [pair if affine else [*pair, None, None] for pair in tensors]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_are_those_of_pytorch(kind, affine, dtype):
    pairs = pairs_of(dtype, affine)
    leaves = [t for pair in pairs for t in pair if t is not None and t.requires_grad]
    found = []
    for loss in (ours, pytorchs):
        value = loss(kind, "leaky_relu", *pairs)
        found.append([value, *torch.autograd.grad(3 * value, leaves)])
    assert found[0][0].dtype == dtype
    for mine, exact in zip(*found, strict=True):
        assert_close_l2(mine, exact, 1e-5 if dtype == torch.float32 else 1e-10, "gradient")


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    pairs = pairs_of(torch.float64, True)
    real = [
        feature(kind, "tanh", r, g.detach().clone(), b.detach().clone()) for _, r, g, b in pairs
    ]

    def loss(*leaves):
        fake = [feature(kind, "tanh", *leaves[i : i + 3]) for i in (0, 3)]
        return feature_matching_loss(fake, real, [0.25, 1.5])

    assert torch.autograd.gradcheck(loss, [t for f, _, *affine in pairs for t in (f, *affine)])


def test_no_gradient_to_the_real_ones_and_no_second_derivative(backend_name):
    fake, real = (draw(1, 3, 4, 5, seed=seed).requires_grad_() for seed in (0, 1))
    loss = feature_matching_loss([Feature(fake)], [Feature(real)], [1.0])
    (dx,) = torch.autograd.grad(loss, fake, create_graph=True)
    assert torch.autograd.grad(loss, real, allow_unused=True) == (None,)
    assert torch.equal(dx, (fake - real).sign() / fake.numel())
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(dx.sum(), fake)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_equal_features_have_loss_and_gradient_zero(act, dtype):
    x = draw(2, 24, 9, 11, dtype, "channels_last").requires_grad_()
    gamma, beta = draw(1, 1, 1, 24).flatten(), draw(1, 1, 1, 24, seed=1).flatten()
    for norm in (Norm(), Norm("instance", *channel_statistics(x, 1e-5), gamma, beta)):
        loss = feature_matching_loss([Feature(x, norm, act)], [Feature(x, norm, act)], [1.0])
        assert loss == 0 and not torch.autograd.grad(loss, x)[0].any()


def test_nan_and_nothing_give_nan():
    x, y = draw(1, 4, 6, 6).requires_grad_(), draw(1, 4, 6, 6, seed=1)
    with torch.no_grad():
        x[0, 0, 0, 0] = float("nan")
    loss = feature_matching_loss([Feature(x)], [Feature(y)], [1.0])
    (dx,) = torch.autograd.grad(loss, x)
    assert loss.isnan() and dx.isnan().sum() == 1
    none = Feature(draw(0, 4, 6, 6).requires_grad_())
    loss = feature_matching_loss([none, Feature(y)], [none, Feature(y)], [1.0, 1.0])
    assert loss.isnan() and torch.autograd.grad(loss, none.x)[0].shape == (0, 4, 6, 6)


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_discriminator_matches_its_features_before_they_are_written(norm, dtype):
    """Lists of tensors and of what is pending, fused, against eager."""
    torch.manual_seed(0)
    net = networks.define_D(5, 8, 3, norm, False, 2, True)
    fake, real = torch.randn(2, 2, 5, 40, 56).requires_grad_()
    found = []
    for name, features in (("eager", net), ("fused", net), ("fused", net.features_raw)):
        with backend(name), torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = loss_of_discriminator(features(fake), features(real))
            found.append([loss, *torch.autograd.grad(loss, fake)])
    for name, other in zip(("written", "pending"), found[1:], strict=True):
        # bf16: signs of differences that round to nothing
        tolerances = (1e-5, 1e-4) if dtype is None else (5e-3, 0.2)
        for got, want, tol in zip(other, found[0], tolerances, strict=True):
            assert_close_l2(got, want, tol, f"{name} {norm}")


def test_nothing_of_full_size_is_saved():
    x, y = draw(1, 8, 32, 32).requires_grad_(), draw(1, 8, 32, 32, seed=1)
    norms = [Norm("instance", *channel_statistics(t, 1e-5)) for t in (x, y)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        feature_matching_loss([Feature(x, norms[0])], [Feature(y, norms[1])], [1.0])
    large = {t.data_ptr() for t in saved if t.numel() > 16}
    assert large == {x.data_ptr(), y.data_ptr()}


def test_compiles_in_one_graph(backend_name):
    def loss(x, y):
        sides = [Feature(t, Norm("instance", *channel_statistics(t, 1e-5)), "relu") for t in (x, y)]
        return feature_matching_loss(sides[:1], sides[1:], [0.5])

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x, y = draw(1, 3, 6, 8).requires_grad_(), draw(1, 3, 6, 8, seed=1)
    found = [(f(x, y), torch.autograd.grad(f(x, y), x)[0]) for f in (compiled, loss)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


X = Feature(torch.zeros(1, 2, 3, 4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([], [], []), "equally many and at least one, got 0, 0 and 0"),
        (([X], [X], [1.0, 2.0]), "got 1, 1 and 2"),
        (([Feature(torch.zeros(3))], [X], [1.0]), r"x must be \[N, C, H, W\]"),
        (([X], [Feature(torch.zeros(1, 2, 3, 5))], [1.0]), r"real\[0\] must have the shape"),
        (([X], [Feature(X.x.half())], [1.0]), r"real\[0\] must have dtype and device of fake\[0\]"),
        (([X._replace(act="gelu")], [X], [1.0]), "act must be one of"),
        (([X], [X._replace(act="relu")], [1.0]), r"real\[0\] must have act and slope of fake\[0\]"),
        (([X._replace(norm=Norm("group"))], [X], [1.0]), r"norm of fake\[0\] must be one of"),
    ],
)
def test_refuses(given, message):
    with pytest.raises(InputError, match=message):
        feature_matching_loss(*given)
