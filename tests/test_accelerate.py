"""`accelerate` on models of others: what it replaces, what it leaves, what stays the same."""

import copy
import io
import logging
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pix2pixhd_fast import InputError, accelerate, backend, describe_plan, examine
from pix2pixhd_fast.nn.residual import ResidualBlock
from pix2pixhd_fast.nn.sequence import Sequence
from tests.helpers import assert_close_l2
from tests.plans import gradients

NORMS = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d}


class Block(nn.Module):
    """A residual block as image-to-image projects write them."""

    def __init__(self, dim, norm, padding="reflect", dropout=False):
        super().__init__()
        self.dim = dim
        pad = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}.get(padding)
        layers = []
        for last in (False, True):
            layers += [pad(1)] if pad else []
            layers += [nn.Conv2d(dim, dim, 3, padding=0 if pad else 1), norm(dim)]
            if not last:
                layers += [nn.ReLU(True)] + [nn.Dropout(0.5)] * dropout
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x):
        out = x + self.conv_block(x)
        return out

    def width(self):
        return self.dim


class Generator(nn.Module):
    """Stem, two levels down, residual blocks, two levels up, head: one long sequence."""

    def __init__(self, norm=nn.InstanceNorm2d, padding="reflect", dropout=False, ngf=4, blocks=2):
        super().__init__()
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, ngf, 7), norm(ngf), nn.ReLU(True)]
        for c in (ngf, 2 * ngf):
            layers += [nn.Conv2d(c, 2 * c, 3, 2, 1), norm(2 * c), nn.ReLU(True)]
        layers += [Block(4 * ngf, norm, padding, dropout) for _ in range(blocks)]
        for c in (4 * ngf, 2 * ngf):
            up = nn.ConvTranspose2d(c, c // 2, 3, 2, 1, output_padding=1)
            layers += [up, norm(c // 2), nn.ReLU(True)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, input):
        return self.model(input)


class Parts(nn.Module):
    """Several sequences, blocks called one by one, a norm and a convolution of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4))
        self.norm = nn.InstanceNorm2d(4)
        self.blocks = nn.ModuleList(Block(4, nn.InstanceNorm2d) for _ in range(2))
        self.skip = nn.Sequential(nn.Conv2d(4, 4, 1), nn.LeakyReLU(0.1))
        self.last = nn.Conv2d(4, 2, 3)

    def forward(self, x):
        x = self.norm(self.first(x))
        for block in self.blocks:
            x = block(x)
        return self.last(F.relu(x + self.skip(x))).view(x.shape[0], -1)


def assert_unchanged(make, x, tol=1e-5):
    """The same model, accelerated: same keys, objects, outputs, gradients, buffers."""
    before = make()
    after = copy.deepcopy(before)
    parameters, modules = list(after.parameters()), list(after.modules())
    assert accelerate(after) is after
    assert list(after.state_dict()) == list(before.state_dict())
    for kept, now in ((parameters, after.parameters()), (modules, after.modules())):
        assert all(a is b for a, b in zip(kept, now, strict=True))
    with backend("eager"):
        expected = gradients(before, x, "eager")
        by_layers = gradients(after, x, "eager")
    found = gradients(after, x, "fused")
    for part, e, layers in zip(found, expected, by_layers, strict=True):
        scale = max(t.norm() for t in e if t is not None)
        for actual, wanted, layered in zip(part, e, layers, strict=True):
            assert (actual - wanted).norm() <= tol * scale
            assert torch.equal(layered, wanted)
    before(x), after(x)
    for (key, a), b in zip(after.named_buffers(), before.buffers(), strict=True):
        assert_close_l2(a, b, 1e-5, key)
    return after


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padding", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("norm", NORMS)
def test_generators(norm, padding, training):
    x = torch.randn(1, 3, 16, 24, dtype=torch.float64).requires_grad_()
    after = assert_unchanged(
        lambda: Generator(NORMS[norm], padding).double().train(training), x, 1e-9
    )
    assert type(after.model) is Sequence
    assert isinstance(after.model[10], ResidualBlock) and isinstance(after.model[10], Block)
    assert after.model[10].width() == 16 and type(after.model[10]).__name__ == "Block"


def test_output_and_gradients_in_float32():
    # 1e-5 of the largest; the gradients of the stem pass through two ReLUs and all norms
    assert_unchanged(Generator, torch.randn(2, 3, 32, 32).requires_grad_(), 2e-5)


def test_dropout():
    make = lambda: Generator(nn.BatchNorm2d, dropout=True).double()  # noqa: E731
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64).requires_grad_()
    after = assert_unchanged(lambda: make().eval(), x, 1e-9)
    assert "Dropout: nothing to do" in describe_plan(after)
    assert after.train()(x).shape == x.shape and "it drops now" in describe_plan(after)
    instance = accelerate(Generator(dropout=True).eval())
    assert "residual block: reflect 1" in describe_plan(instance)


@pytest.mark.parametrize("n", [1, 2])
def test_parts_called_one_by_one(n):
    x = torch.randn(n, 3, 9, 8, dtype=torch.float64).requires_grad_()
    assert_unchanged(lambda: Parts().double(), x, 1e-9)


def test_report(capsys, caplog):
    net = Parts()
    before = [type(m) for m in net.modules()]
    findings = {finding.name: finding for finding in examine(net)}
    assert [type(m) for m in net.modules()] == before
    assert findings["first"].action == findings["blocks.1.conv_block"].action == "sequence"
    assert findings["blocks.0"].action == "residual block"
    assert findings[""] == ("", "Parts", "left", "its forward calls norm, last one by one")
    with caplog.at_level(logging.INFO, "pix2pixhd_fast"):
        accelerate(net, verbose=True)
    assert "blocks.0 [Block] now a fused residual block" in capsys.readouterr().out
    assert "blocks.0 [Block] now a fused residual block" in caplog.text
    assert [finding.action for finding in examine(net)] == ["left"]  # nothing more to do
    accelerate(net)
    assert capsys.readouterr().out == ""


def test_the_model_itself_is_a_sequence_and_shared_modules_stay_shared():
    shared = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
    net = accelerate(nn.Sequential(shared, nn.Sigmoid(), shared))
    assert type(net) is Sequence and net[0] is net[2] is shared and type(shared) is Sequence


class Scaled(Block):
    def forward(self, x):
        return x + 0.1 * self.conv_block(x)


class Rectified(Block):
    def forward(self, x):
        return F.relu(x + self.conv_block(x))


class Noisy(Block):
    def forward(self, x):
        y = self.conv_block(x)
        return x + (F.dropout(y) if self.training else y)


class Conditioned(Block):
    def forward(self, x, style=None):
        return x + self.conv_block(x)


class Extra(Block):
    def __init__(self, *args):
        super().__init__(*args)
        self.gamma = nn.Parameter(torch.ones(1))


class Broken(Block):
    def forward(self, x):
        raise KeyError("no such thing")


class Named(nn.Sequential):
    pass


REFUSED = {
    "it is not x + conv_block(x)": lambda: Scaled(4, nn.BatchNorm2d),
    "relative difference": lambda: Rectified(4, nn.InstanceNorm2d),
    "relative difference ": lambda: Noisy(4, nn.InstanceNorm2d),
    "its forward takes more than one argument": lambda: Conditioned(4, nn.InstanceNorm2d),
    "besides conv_block it has gamma": lambda: Extra(4, nn.InstanceNorm2d),
    "a trial of it failed: KeyError: 'no such thing'": lambda: Broken(4, nn.InstanceNorm2d),
    "a subclass of nn.Sequential": lambda: Named(nn.Conv2d(3, 3, 3)),
    "no values yet": lambda: Block(4, nn.InstanceNorm2d).to("meta"),
    "it has forward hooks": lambda: hooked(Block(4, nn.InstanceNorm2d)),
    "'plan' of a method": lambda: named_plan(),
    "its forward was replaced": lambda: patched(nn.Sequential(nn.Conv2d(3, 3, 3))),
}


def hooked(module):
    module.register_forward_hook(lambda *_: None)
    return module


def named_plan():
    net = nn.Sequential()
    net.add_module("plan", nn.Conv2d(3, 3, 3))
    return net


def patched(module):
    module.forward = torch.tanh
    return module


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_left_says_why(reason):
    net = nn.ModuleDict({"it": REFUSED[reason]()})
    # a branch that scales by zero at the start must not pass
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.zeros_(m.weight)
    (finding,) = [f for f in examine(net) if f.name == "it"]
    assert finding.action == "left" and reason.strip() in finding.reason
    kind = type(net["it"])
    assert type(accelerate(net)["it"]) is kind
    assert "left as it is" in str(finding)


def test_refuses_what_is_no_module():
    with pytest.raises(InputError, match="module must be an nn.Module, got dict"):
        accelerate({})


def test_random_state_is_left_alone():
    torch.manual_seed(4)
    expected = torch.rand(1)
    net = Generator()
    torch.manual_seed(4)
    accelerate(net)
    assert torch.equal(torch.rand(1), expected)


def test_copies_and_files(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or module_of_this())
    net, x = accelerate(Generator(blocks=1)), torch.randn(1, 3, 16, 16)
    expected = net(x)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    others = [
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.load(file, weights_only=False),
    ]
    for other in others:
        assert isinstance(other.model[10], ResidualBlock) and isinstance(other.model[10], Block)
        assert_close_l2(other(x), expected, 0, "copy")
    block = net.model[10]._replicate_for_data_parallel()
    assert type(block) is type(net.model[10])


def module_of_this():
    """This file as a module that pickle finds by name."""
    module = type(sys)(__name__)
    module.__dict__.update(globals())
    return module


def test_compiles_in_one_graph():
    net, x = accelerate(Generator(blocks=1)), torch.randn(1, 3, 16, 16)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert_close_l2(compiled(x), net(x), 1e-5, "output")
