"""The plan of a sequence: its steps, when it is made anew, what it leaves alone."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import pix2pixhd_fast.networks as networks
from pix2pixhd_fast import backend, describe_plan
from pix2pixhd_fast.nn.norms import keep_running_statistics
from pix2pixhd_fast.nn.pending import Pending, materialise
from pix2pixhd_fast.nn.plan import compile_plan
from pix2pixhd_fast.nn.sequence import Sequence
from tests.helpers import assert_close_l2
from tests.plans import (
    BATCH,
    INSTANCE,
    NETWORKS,
    assert_same,
    call,
    flat,
    picture,
    unit,
)


class Ops(TorchDispatchMode):
    """The names of our ops that were called, with their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "pix2pixhd_fast":
            self.calls.append((op.overloadpacket.__name__, args))
        return op(*args, **(kwargs or {}))

    @property
    def names(self):
        return [name for name, _ in self.calls]


@pytest.mark.parametrize("norm", [INSTANCE, BATCH], ids=["instance", "batch"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("frozen", ["nothing", "input", "weights", "some"])
def test_networks_and_what_is_frozen(name, norm, frozen):
    net, x = NETWORKS[name](norm).double(), picture(2, 5, 16, 24)
    for n, p in enumerate(net.parameters()):
        p.requires_grad_(frozen != "weights" and (frozen != "some" or n % 3 > 0))
    x.requires_grad_(frozen != "input")
    assert_same(net, x)
    taped = flat(call(net, x))
    with torch.no_grad():
        for untaped, y in zip(flat(call(net, x)), taped, strict=True):
            assert torch.equal(untaped, y) and not untaped.requires_grad


@pytest.mark.parametrize("n", [1, 2])
def test_bias_in_front_of_an_instance_norm_has_a_zero_gradient(n):
    net = Sequence(*unit(), nn.Conv2d(4, 2, 1), nn.InstanceNorm2d(2, affine=True))
    with torch.no_grad():
        net[1].bias.fill_(1e6)  # far beyond what float32 could take away again
    net(picture(n, 3, 6, 6, dtype=torch.float32)).square().sum().backward()
    assert all(not net[i].bias.grad.any() for i in (1, 4))
    assert net[5].bias.grad.any()
    assert_close_l2(net(torch.ones(1, 3, 6, 6))[0, 0].mean(), net[5].bias[0], 1e-4, "mean")


def test_the_steps():
    net = Sequence(*unit(), nn.Sigmoid(), nn.ConvTranspose2d(4, 2, 3), nn.BatchNorm2d(2))
    with Ops() as ops:
        net(torch.ones(1, 3, 4, 4))
    # statistics of both; the sigmoid needs its input written, the end its output
    assert ops.names == ["norm_act_conv", "norm_act_pad"] * 2
    assert [args[-1] for name, args in ops.calls if name == "norm_act_conv"] == [1e-5, 1e-30]
    with Ops() as ops:
        net.eval()(torch.ones(1, 3, 4, 4))
    assert [args[-1] for name, args in ops.calls if name == "norm_act_conv"] == [1e-5, None]


def test_a_chain_writes_nothing_between():
    net = networks.GlobalGenerator(5, 3, 4, 2, 3, INSTANCE)
    with Ops() as ops:
        net(torch.ones(1, 5, 16, 16))
    down = ["norm_act_conv"] * 3
    up = ["norm_act_conv"] * 3
    assert ops.names == [*down, "norm_act_pad", *["residual_block"] * 3, *up, "norm_act_pad"]
    borders = [args[8:10] for name, args in ops.calls if name == "residual_block"]
    assert borders == [(1, 1), (1, 1), (1, 0)]  # found written, written for the next


def test_enhancers_add_in_one_step():
    net = networks.LocalEnhancer(5, 3, 4, 1, 1, 1, 2, INSTANCE)
    with Ops() as ops:
        net(torch.ones(1, 5, 16, 16))
    own = ops.calls[-7 - 2 :]
    sums = [args for name, args in ops.calls if name == "norm_act_pad" and args[5] is not None]
    assert len(sums) == 1 and sums[0][-2:] == ("reflect", 1)
    assert [name for name, _ in own].count("residual_block") == 2
    assert ops.names.count("norm_act_pad") == 4  # before G1's block, of G1, the sum, the tanh


def test_features_raw_are_the_features():
    for net in (NETWORKS["features"](INSTANCE), NETWORKS["patch"](BATCH)):
        x = torch.randn(2, 5, 24, 24)
        raw, features = net.features_raw(x), net(x)
        nested = isinstance(features[0], list)
        raw, features = (sum(r, []) if nested else r for r in (raw, features))
        assert raw[0].act == "leaky_relu" and raw[1].norm.kind in ("instance", "batch")
        for r, f in zip(raw, features, strict=True):
            assert_close_l2(materialise(r), f, 1e-5, "feature")
        with backend("eager"):
            eager = net.features_raw(x)
            assert all(p.done for p in (sum(eager, []) if nested else eager))


def test_changed_children_change_the_plan():
    net, x = Sequence(*unit()).double(), picture(1, 3, 8, 8)

    def steps():
        assert_same(net, x)
        return len(net.plan().steps)

    assert steps() == 1 and net.plan() is net.plan()
    net.append(nn.Conv2d(4, 4, 3).double())
    assert steps() == 2
    net.insert(0, nn.Identity())
    assert steps() == 3
    del net[0]
    net[3] = nn.Sigmoid()
    assert steps() == 3
    net[0] = nn.ReplicationPad2d(2)
    net[1].stride = (2, 2)
    assert steps() == 3 and net.plan().steps[0].pad == 2
    net[1].padding_mode = "circular"
    assert net.plan().steps[1].reason == "its padding mode is circular"
    assert len(net[1:].plan().steps) == len(net.plan().steps) - 1


def test_hooks_run_the_child_as_it_is():
    net, x = Sequence(*unit(), *unit(4, 4)).double(), picture(1, 3, 8, 8)
    assert_same(net, x)
    seen = []
    handles = [
        net[1].register_forward_hook(lambda m, args, out: seen.append(out)),
        net[5].register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    assert_same(net, x)
    assert len(seen) == 4  # twice under each backend
    assert "forward hooks" in describe_plan(net) and "backward hooks" in describe_plan(net)
    for handle in handles:
        handle.remove()
    assert len(net.plan().steps) == 2
    net[2].register_forward_pre_hook(lambda m, args: (args[0] * 2 + 1,))
    net[7].forward = torch.tanh
    assert_same(net, x)


def test_hooks_on_a_sequence_inside_a_network():
    net, seen = NETWORKS["local"](INSTANCE), []
    for sequence in (net.model, net.model1_2, net.model[7].conv_block):
        sequence.register_forward_hook(lambda m, args, out: seen.append(out))
    x = picture(1, 5, 16, 16, dtype=torch.float32)
    with_hooks = net(x)
    assert len(seen) == 3 and all(isinstance(y, torch.Tensor) for y in seen)
    with backend("eager"):
        assert_close_l2(with_hooks, net(x), 1e-5, "output")


def test_global_hooks_and_counters():
    net, x, names = NETWORKS["local"](INSTANCE), torch.randn(1, 5, 16, 16), []
    handle = register_module_forward_hook(lambda m, *_: names.append(type(m).__name__))
    try:
        with FlopCounterMode(display=False):
            net(x).sum().backward()
    finally:
        handle.remove()
    assert "LocalEnhancer" in names


def test_subclasses_are_their_own_affair():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    class Twice(Sequence):
        def forward(self, input):
            return super().forward(super().forward(input))

    class Scaled(networks.ResnetBlock):
        def forward(self, x):
            return x + 0.1 * self.conv_block(x)

    inner = [Twice(*unit(4)), Scaled(4, "zero", INSTANCE), Sequence(*unit(4))]
    net = Sequence(Doubled(3, 4, 3), nn.InstanceNorm2d(4), *inner).double()
    assert_same(net, picture(1, 3, 8, 8))
    assert "a subclass with a forward of its own" in describe_plan(net)


@pytest.mark.parametrize("training", [True, False])
def test_parametrised_weights_are_read_once(training):
    net = Sequence(*unit(), nn.Conv2d(4, 2, 3)).double().train(training)
    parametrizations.spectral_norm(net[1])
    nn.utils.spectral_norm(net[4])
    assert_same(net, picture(1, 3, 8, 8))
    assert [len(s.layers) for s in net.plan().steps] == [4, 1]


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": lambda net: torch.load(saved(net), weights_only=False),
    "half and back": lambda net: copy.deepcopy(net).half().float(),
}


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("name", COPIES)
def test_copies_run_their_own_layers(name):
    net, x = NETWORKS["local"](INSTANCE), torch.randn(1, 5, 16, 16)
    before = net(x)
    assert not any("_plan" in key for key in net.state_dict())
    other = COPIES[name](net)
    assert_close_l2(other(x), before, 5e-3 if "half" in name else 0, name)
    for p in net.parameters():
        p.data.zero_()
    assert other(x).abs().sum() > 0


def test_replicas_of_data_parallel_use_their_own_tensors():
    net, x = Sequence(*unit()), torch.randn(1, 3, 6, 6)
    net(x)
    replica = net._replicate_for_data_parallel()
    conv = net[1]._replicate_for_data_parallel()
    conv.weight, conv.bias = torch.zeros_like(net[1].weight), torch.zeros_like(net[1].bias)
    replica._modules["1"] = conv
    assert net(x).any() and not replica(x).any() and net(x).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_compiles_in_one_graph(name):
    net = NETWORKS[name](INSTANCE if name != "patch" else BATCH)
    x = torch.randn(1, 5, 16, 16).requires_grad_()
    outputs = flat(torch.compile(lambda x: call(net, x), fullgraph=True, backend="aot_eager")(x))
    expected = flat(call(net, x))
    for y, e in zip(outputs, expected, strict=True):
        assert_close_l2(y, e, 1e-5, name)
    (dx,) = torch.autograd.grad(sum(y.sum() for y in outputs), x)
    (want,) = torch.autograd.grad(sum(y.sum() for y in expected), x)
    assert (dx - want).norm() <= 1e-4 * want.norm() + 1e-4


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"encoder"}))  # its ids are data
def test_fake_tensors(name):
    with FakeTensorMode():
        outputs = flat(NETWORKS[name](BATCH)(torch.randn(1, 5, 16, 16).requires_grad_()))
        sum(y.sum() for y in outputs).backward()
    real = flat(NETWORKS[name](BATCH)(torch.randn(1, 5, 16, 16)))
    assert [y.shape for y in outputs] == [y.shape for y in real]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_dtypes_of_eager(name, dtype):
    net, x = NETWORKS[name](INSTANCE), torch.randn(1, 5, 16, 16)
    found = {}
    for choice in ("eager", "fused"):
        with backend(choice), torch.autocast("cpu", dtype):
            found[choice] = flat(call(net, x))
    assert [y.dtype for y in found["fused"]] == [y.dtype for y in found["eager"]]
    for y, e in zip(found["fused"], found["eager"], strict=True):
        assert_close_l2(y, e, 0.1, name)  # two roundings of 2**-9 in a row of up to 12 layers


def test_memory_format_is_that_of_the_input():
    net, x = Sequence(*unit(), networks.ResnetBlock(4, "reflect", INSTANCE)), picture(2, 3, 6, 6)
    net = net.double()
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.detach().contiguous(memory_format=layout).requires_grad_()
        y = net(given)
        (dx,) = torch.autograd.grad(y.square().sum(), given)  # .grad would be laid out anew
        assert y.is_contiguous(memory_format=layout)
        assert dx.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm2d(4), nn.InstanceNorm2d(4, track_running_stats=True)]
)
def test_instance_norms_outside_get_no_gradient_that_misleads_them(norm):
    """PyTorch's own is wrong for one image and a gradient in channels_last."""
    assert_same(Sequence(norm, *unit(4)).double(), picture(1, 4, 6, 6))
    tracking = nn.InstanceNorm2d(4, track_running_stats=True)
    block = networks.ResnetBlock(4, "zero", lambda c: copy.deepcopy(tracking))
    assert_same(Sequence(*unit(), block, norm, *unit(4)).double(), picture(1, 3, 6, 6))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.body = norm, Sequence(*unit(4))

        def forward(self, x):
            x = self.norm(x)
            return x + self.body(x)

    assert_same(Model().double(), picture(1, 4, 6, 6))


def test_layers_in_place_leave_what_is_kept_alone():
    net = Sequence(*unit(), networks.ResnetBlock(4, "reflect", INSTANCE), nn.ELU(inplace=True))
    assert_same(net.double(), picture(1, 3, 6, 6))
    net = Sequence(networks.ResnetBlock(3, "zero", INSTANCE), nn.Dropout(0.5, inplace=True))
    assert_same(net.double().eval(), picture(1, 3, 6, 6))
    net.train()(picture(1, 3, 6, 6)).sum().backward()


def test_active_dropout(monkeypatch):
    """Its draws follow the memory, which is channels_last here: they are others than in eager."""

    def drop(x, p, training, inplace):
        kept = torch.arange(x.numel()).view(x.shape) % 3 > 0
        return x * kept / (1 - p) if training else x

    monkeypatch.setattr(nn.functional, "dropout", drop)
    net = networks.ResnetBlock(4, "reflect", INSTANCE, use_dropout=True).double()
    assert_same(Sequence(*unit(), net).double(), picture(1, 3, 6, 6))
    assert net.pair() is None and net.eval().pair() is not None


def test_running_statistics_are_kept_where_asked():
    net = networks.GlobalGenerator(5, 3, 4, 1, 1, BATCH)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with keep_running_statistics(net):
        net(torch.randn(1, 5, 16, 16))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    net(torch.randn(1, 5, 16, 16))
    assert int(net.model[2].num_batches_tracked) == 1


def test_compile_plan_holds_no_tensors():
    plan = compile_plan(Sequence(*unit(), networks.ResnetBlock(4, "zero", INSTANCE)))
    leaves = [leaf for step in plan.steps for leaf in step]
    assert not any(isinstance(leaf, torch.Tensor | Pending) for leaf in leaves)
