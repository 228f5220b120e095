"""Drawn sequences: the plan, forward and backward, against PyTorch's layers in float64."""

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import Phase, given, settings
from torch import nn

from pix2pixhd_fast import backend
from pix2pixhd_fast.nn.generators import ResnetBlock
from pix2pixhd_fast.nn.norms import by_batch
from pix2pixhd_fast.nn.sequence import Sequence
from tests.helpers import cancelled_bias

# A failure says enough as it is drawn; to make it small takes minutes.
AS_DRAWN = (Phase.explicit, Phase.generate)
PADS = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d, "zeros": nn.ZeroPad2d}
NORMS = {
    "none": lambda c: [],
    "instance": lambda c: [nn.InstanceNorm2d(c)],
    "instance, affine": lambda c: [nn.InstanceNorm2d(c, eps=1e-3, affine=True)],
    "instance, tracking": lambda c: [nn.InstanceNorm2d(c, track_running_stats=True)],
    "batch": lambda c: [nn.BatchNorm2d(c)],
    "batch, plain": lambda c: [nn.BatchNorm2d(c, momentum=0.3, affine=False)],
    "batch, cumulative": lambda c: [nn.BatchNorm2d(c, momentum=None)],
    "batch, untracked": lambda c: [nn.BatchNorm2d(c, eps=1e-3, track_running_stats=False)],
}
ACTS = {
    "none": list,
    "relu": lambda: [nn.ReLU()],
    "relu in place": lambda: [nn.ReLU(True)],
    "leaky": lambda: [nn.LeakyReLU(0.2, True)],
    "tanh": lambda: [nn.Tanh()],
    "sigmoid": lambda: [nn.Sigmoid()],
    "elu in place": lambda: [nn.ELU(inplace=True)],
}
EXTRAS = {
    "dropout": lambda c: [nn.Dropout(0.5)],
    "no dropout": lambda c: [nn.Dropout(0.0)],
    "pool": lambda c: [nn.AvgPool2d(3, 1, 1)],
    "identity": lambda c: [nn.Identity()],
}


def conv(draw, c):
    """A convolution to `out` channels with its padding, in one of the ways to write that."""
    out, kernel = draw(st.integers(1, 6)), draw(st.sampled_from([1, 3, 4, 5, 7]))
    pad, mode = draw(st.integers(0, 3)), draw(st.sampled_from(sorted(PADS)))
    options = {"stride": draw(st.integers(1, 2)), "bias": draw(st.booleans())}
    if draw(st.booleans()):
        layers = [nn.Conv2d(c, out, kernel, padding=pad, padding_mode=mode, **options)]
    else:
        layers = [PADS[mode](pad), nn.Conv2d(c, out, kernel, **options)]
    return layers, out


def transposed(draw, c):
    out, kernel, stride = draw(st.integers(1, 6)), draw(st.sampled_from([3, 4])), 2
    options = {"stride": stride, "padding": 1, "output_padding": draw(st.integers(0, 1))}
    return [nn.ConvTranspose2d(c, out, kernel, **options)], out


def residual(draw, c):
    norm = NORMS[draw(st.sampled_from(sorted(set(NORMS) - {"none"})))]
    act = draw(st.sampled_from(["relu in place", "leaky", "tanh"]))
    padding = draw(st.sampled_from(["reflect", "replicate", "zero"]))
    blocks = [
        ResnetBlock(c, padding, lambda c: norm(c)[0], ACTS[act]()[0], draw(st.booleans()))
        for _ in range(draw(st.integers(1, 3)))
    ]
    return blocks, c


@st.composite
def sequences(draw):
    """A sequence, in training or in eval mode, and the shape of a picture that it can take."""
    torch.manual_seed(draw(st.integers(0, 999)))
    n, channels, *sides = (draw(st.integers(*r)) for r in ((1, 3), (1, 5), (6, 14), (6, 14)))
    c = 4
    layers: list[nn.Module] = [nn.Conv2d(channels, c, 3)]
    training = draw(st.booleans())
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "conv", "transposed", "residual", "nested"]))
        make = {"transposed": transposed, "residual": residual}.get(kind, conv)
        unit, out = make(draw, c)
        if kind != "residual":
            unit += NORMS[draw(st.sampled_from(sorted(NORMS)))](out)
            unit += ACTS[draw(st.sampled_from(sorted(ACTS)))]()
        if draw(st.integers(0, 3)) == 0:
            unit += EXTRAS[draw(st.sampled_from(sorted(EXTRAS)))](out)
        unit = [Sequence(*unit)] if kind == "nested" else unit
        if fits(layers + unit, (n, channels, *sides)):
            layers, c = layers + unit, out
    net = Sequence(*layers).train(training)
    for m in net.modules():
        if isinstance(m, nn.Dropout) and training:
            m.eval()  # two runs would drop differently
    return net.apply(far_from_start), (n, channels, *sides)


def fits(layers, shape):
    """Whether the layers run, and end with a picture of more than a few pixels."""
    try:
        with torch.no_grad(), backend("eager"):
            out = copy.deepcopy(Sequence(*layers))(torch.zeros(shape))
    except (RuntimeError, ValueError):
        return False
    return out.shape[2] * out.shape[3] >= 16 and out.shape[2] * out.shape[3] < 2000


def far_from_start(m):
    """Affine parameters and running statistics that are not 0 and 1."""
    if isinstance(m, nn.InstanceNorm2d | nn.BatchNorm2d):
        for tensor in (m.weight, m.running_var):
            if tensor is not None:
                nn.init.uniform_(tensor.detach(), 0.5, 2)
        for tensor in (m.bias, m.running_mean):
            if tensor is not None:
                nn.init.normal_(tensor.detach())


def outcome(net, shape, dtype, choice, disturbed=0.0):
    """Output, gradients and buffers of a copy of the net, in float64, as name -> tensor.

    Gradients that are 0 but for rounding are left out; `disturbed`: relative noise on the input.
    """
    net = copy.deepcopy(net).to(dtype)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x + disturbed * torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x.to(dtype).requires_grad_()
    with backend(choice):
        y = net(x)
    y.backward(torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype))
    weights = [p.grad.flatten() for key, p in net.named_parameters() if not cancelled(net, key)]
    found = {"output": y, "input": x.grad, "weights": torch.cat(weights)}
    found |= {f"buffer {key}": buffer for key, buffer in net.named_buffers()}
    return {key: value.detach().double() for key, value in found.items()}


def cancelled(net, key):
    """Whether a norm by what it normalises takes this bias away again."""
    parent, _, leaf = key.rpartition(".")
    sequence, _, index = parent.rpartition(".")
    behind = dict(net.named_modules()).get(f"{sequence}.{int(index) + 1}".removeprefix("."))
    fixed = isinstance(behind, nn.BatchNorm2d) and not by_batch(behind)
    return leaf == "bias" and cancelled_bias(net, key) and not fixed


def distances(actual, expected):
    """Relative L2 errors, by name."""
    assert actual.keys() == expected.keys()
    return {
        key: ((actual[key] - e).norm() / e.norm().clamp_min(1e-30)).item()
        for key, e in expected.items()
    }


@settings(max_examples=300, phases=AS_DRAWN)
@given(sequences())
def test_drawn_in_float64(drawn):
    """Nothing but the order of sums differs: what is wrong by design shows here."""
    expected = outcome(*drawn, torch.float64, "eager")
    actual = outcome(*drawn, torch.float64, "fused")
    for key, error in distances(actual, expected).items():
        assert error <= 1e-8, f"{key}: {error:.3g}"


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@settings(max_examples=70, phases=AS_DRAWN)
@given(drawn=sequences())
def test_drawn(dtype, tol, drawn):
    """Within the tolerance, or within what rounding does to PyTorch's own layers.

    A norm over pixels that hardly differ, and a ReLU whose input is next to 0, make errors of the
    inputs larger without end: then PyTorch's layers in this dtype are as far from float64, or
    float64 is from itself when the input moves by a rounding. In bfloat16 of a few hundred pixels
    in front of a ReLU one is on its other side after rounding, and moves the gradient by several
    percent: gradients are compared of smooth activations only.
    """
    expected = outcome(*drawn, torch.float64, "eager")
    by_layers = distances(outcome(*drawn, dtype, "eager"), expected)
    moved = outcome(*drawn, torch.float64, "eager", torch.finfo(dtype).eps)
    moved = distances(moved, expected)
    actual = outcome(*drawn, dtype, "fused")
    bent = any(isinstance(m, nn.ReLU | nn.LeakyReLU) for m in drawn[0].modules())
    for key, error in distances(actual, expected).items():
        if dtype == torch.bfloat16 and bent and key in ("input", "weights"):
            continue
        allowed = max(tol, 2 * by_layers[key], 4 * moved[key])
        assert error <= allowed, f"{key}: {error:.3g}, allowed {allowed:.3g}"
