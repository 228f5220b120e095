"""The launches that ops describe: against the launchers, and in the tracer."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pix2pixhd_fast import _launches, backend, networks
from pix2pixhd_fast._launches import Launch, described_ops, launches_of, register_launches
from pix2pixhd_fast.ops import Conv, Norm, instance_boundaries, norm_act_conv, norm_act_pad
from pix2pixhd_fast.ops.feature_matching_loss import MOST_FEATURES
from pix2pixhd_fast.ops.multiscale_gan_loss import MOST_PREDICTIONS
from pix2pixhd_fast.profile.cards import CARDS, LAUNCH_SECONDS, modelled_seconds
from pix2pixhd_fast.profile.counting import COMPOSED, costs_of, register_flop_formulas
from pix2pixhd_fast.profile.summary import live_bytes, peak_change
from pix2pixhd_fast.profile.tracer import Tracer
from tests.helpers import ROOT
from tests.launch_recorder import CASES, LAUNCHERS, arguments_of

OPS = torch.ops.pix2pixhd_fast


def test_every_op_describes_its_launches():
    """Or is composed of ops that do."""
    names = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names()
             if name.startswith("pix2pixhd_fast::")}  # fmt: skip
    composed = {op._opname for op in COMPOSED if op.namespace == "pix2pixhd_fast"}
    assert composed <= names and set(described_ops()) <= names
    cuda = {"instance_boundaries", "instance_mean_pool", "label_conv2d", "label_conv2d_backward"}
    library = {"conv3x3", "conv3x3_input_gradient", "to_channels_last", "to_default_format"}
    alone = {*LAUNCHERS, *cuda, *library}
    alone |= {"winograd_points_", "winograd_pixels_"}
    for loss in ("feature_matching_loss", "multiscale_gan_loss"):
        alone |= {f"{loss}_forward", f"{loss}_backward"}
    assert names - composed == set(described_ops()) - composed == alone


@pytest.fixture(scope="module")
def launched():
    """What Triton's launchers launch in the interpreter, by case and op."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PIX2PIXHD_FAST_BACKEND": "triton"}
    command = [sys.executable, "-m", "tests.launch_recorder"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


def described(name, arguments):
    op = getattr(OPS, name).default
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        arguments = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        found = launches_of(op, tuple(arguments), {}, op(*arguments))
    return [(x.name, x.read, x.written, x.scratch) for x in found]


@pytest.mark.parametrize("op", LAUNCHERS)
@pytest.mark.parametrize("case", CASES)
def test_triton_launches_what_is_described(case, op, launched):
    found = described(op, arguments_of(op, CASES[case]))
    assert found == [*map(tuple, launched[case][op])]


def test_cases_copy_and_split(launched):
    """What is compared has copies, and parts in memory of their own."""
    launches = {case: sum(map(len, ops.values())) for case, ops in launched.items()}
    assert launches["planes"] == launches["planes in parts"] == 16 and launches["empty"] == 2
    for op in ("channel_statistics", "norm_act_pad_reduce"):
        assert [launched[case][op][-1][3] > 0 for case in ("planes", "planes in parts")] == [0, 1]
    names = [launch[0] for ops in launched["copied"].values() for launch in ops]
    clones = 1 + 6 + 7 + 9 + 11 + 1 + 2
    assert (names.count("aten::clone"), names.count("aten::copy_")) == (clones, 1)


def test_instance_boundaries_launches_its_cuda_kernel():
    """One launch of the one kernel, which reads every id and writes a byte for each."""
    code = (ROOT / "csrc/instance_boundaries.cuh").read_text()
    kernels = re.findall(r"__global__.*?(\w+)\(const", code, re.DOTALL)
    assert len(re.findall(r"\blaunch\(", code)) == len(kernels) == 1
    ids = torch.zeros(2, 1, 6, 8, dtype=torch.int32)
    name = f"instance_boundaries.{kernels[0]}"
    op = OPS.instance_boundaries.default
    assert launches_of(op, (ids,), {}, op(ids)) == [Launch(name, 4 * 96, 96)]
    wide = ids[..., ::2]
    copied = launches_of(op, (wide,), {}, op(wide))
    assert copied == [Launch("aten::clone", 192, 192, 0, 192), Launch(name, 192, 48, 0, 192)]
    none = ids[:0]
    assert launches_of(op, (none,), {}, op(none)) == []


def launches_of_loss(loss, *given):
    """Of the forward, and of the backward after it."""
    forward, backward = (getattr(OPS, f"{loss}_{way}") for way in ("forward", "backward"))
    result = forward(*given)
    first = launches_of(forward.default, given, {}, result)
    sums = [result[1]] if isinstance(result, tuple) else []
    given = (torch.tensor(1.0), *given[: 4 * len(sums)], *sums, *given[4 * len(sums) :])
    return first, launches_of(backward.default, given, {}, backward(*given))


def kernels_of_loss(loss):
    """What the launch functions of its CUDA code launch, in their order: the gradient's is last."""
    code = (ROOT / f"csrc/{loss}.cuh").read_text()
    names = re.findall(r"\blaunch\(\s*(\w+)", code)
    assert len(names) == len(re.findall("__global__", code))
    return [f"{loss}.{name}" for name in names]


def test_feature_matching_loss_launches_its_cuda_kernels():
    """One feature is a block, whose distance and 2 sums of 8 channels are combined."""

    def features(fake, real, n=1):
        norm = [torch.ones(fake.shape[:2])] * 2 + [torch.empty(0)] * 2
        sides = ([fake] * n, [real] * n, norm * n, norm * n)
        given = (*sides, ["relu"] * n, [0.0] * n, [1.0] * n)
        return launches_of_loss("feature_matching_loss", *given)

    x = torch.zeros(1, 8, 4, 4).to(memory_format=torch.channels_last)
    measure, combine, differentiate = kernels_of_loss("feature_matching_loss")
    read, parts, found = 2 * 512 + 2 * 64, 4 * (1 + 2 * 8), 4 * (1 + 2 * 8)
    gradient = Launch(differentiate, read + 4 + 64, 512)
    assert features(x, x) == (
        [Launch(measure, read, parts, 0, parts), Launch(combine, parts, found, 0, parts)],
        [gradient],
    )
    first, second = features(x, x.contiguous())
    copy = Launch("aten::clone", 512, 512, 0, 512)
    assert first[0] == second[0] == copy and [a.scratch for a in first[1:]] == [512 + parts] * 2
    assert second[1:] == [gradient._replace(scratch=512)]
    first, second = features(x[:0], x[:0])
    assert ([a.name for a in first], second) == ([combine], [])
    assert features(x, x, MOST_FEATURES + 1) == (None, None)


def test_multiscale_gan_loss_launches_its_cuda_kernels():
    """Predictions of 2 blocks and of one."""

    def predictions(*given):
        return launches_of_loss("multiscale_gan_loss", [*given], 1.0, True)

    large, small = torch.zeros(1, 1, 40, 60), torch.zeros(10)
    measure, combine, differentiate = kernels_of_loss("multiscale_gan_loss")
    size = 4 * 2410
    gradient = Launch(differentiate, 4 + size, size)
    assert predictions(large, small) == (
        [Launch(measure, size, 12, 0, 12), Launch(combine, 12, 4, 0, 12)],
        [gradient],
    )
    first, second = predictions(large, torch.zeros(20)[::2])
    copy = Launch("aten::clone", 40, 40, 0, 40)
    assert first[0] == second[0] == copy and [a.scratch for a in first[1:]] == [52] * 2
    assert second[1:] == [gradient._replace(scratch=40)]
    first, second = predictions(small[:0])
    assert ([a.name for a in first], second) == ([combine], [])
    assert predictions(*[small] * (MOST_PREDICTIONS + 1)) == (None, None)


def traced(step, shape=(2, 8, 16, 16)):
    """The recording of `step(x)` on a fake x that needs a gradient, and what lives after it."""
    with FakeTensorMode(), Tracer(torch.nn.Identity()) as tracer:
        x = torch.empty(shape, requires_grad=True)
        tracer.restart()
        kept = step(x)
        tracer.stop()
    return tracer.recording, kept


def test_ops_are_counted_by_their_kernels_with_what_autograd_keeps():
    x, y, statistics = 2 * 8 * 72**2 * 4, 2 * 8 * 74**2 * 4, 2 * 8 * 4
    shape = (2, 8, 72, 72)
    recording, _ = traced(lambda x: norm_act_pad(x, "relu", padding="reflect", pad=1), shape)
    first, second = recording.launches
    assert (first.op, second.op) == ("channel_statistics.statistics", "norm_act_pad.apply")
    live = live_bytes(recording)
    assert live[-1] - recording.start == y + 2 * statistics
    scratch = first.cost.scratch
    assert scratch > 0
    moved = [launch.cost.traffic for launch in recording.launches]
    assert sum(moved) == 2 * x + y + scratch + 4 * statistics
    # The sum keeps nothing: y goes, and x, mean and rstd stay for the backward.
    recording, _ = traced(lambda x: norm_act_pad(x, padding="reflect", pad=1)[0].sum(), shape)
    assert live_bytes(recording)[-1] - recording.start == 2 * statistics + 4


def test_backward_is_its_kernels_and_nothing_more():
    def step(x):
        y, _, _ = norm_act_pad(x, "relu")
        y.backward(torch.empty_like(y))

    launches = [x for x in traced(step)[0].launches if not x.cost.allocates]
    names = [launch.op for launch in launches if launch.phase == "backward"]
    assert names == [f"norm_act_pad_backward.{kernel}" for kernel in ("reduce", "backward")]


def convolution(x, eps=1e-5):
    """norm_act_conv with a weight of its own."""
    conv = Conv(torch.empty(4, x.shape[1], 3, 3, dtype=x.dtype))
    return norm_act_conv(x, Norm(), conv, "relu", padding="reflect", pad=1, eps=eps)


@pytest.fixture
def own_engine(monkeypatch):
    """norm_act_conv as if kernels of ours convolved where there are statistics.

    With two temporaries, of which the second one goes early.
    """

    def describe(*arguments, eps, result):
        if eps is None:
            return None
        return [
            Launch("norm_act_conv.pack", 100, 20, scratch=40),
            Launch("norm_act_conv.convolution", 100, 3000, flops=10**12, scratch=40 + 3000),
            Launch("norm_act_conv.combine", 3500, 100, scratch=3000),
        ]

    monkeypatch.setattr(_launches, "_descriptions", dict(_launches._descriptions))
    register_launches("norm_act_conv", lambda *a, result: describe(*a, eps=a[-1], result=result))


def test_composed_op_that_describes_its_call_is_not_looked_into(own_engine):
    recording, _ = traced(convolution, (1, 4, 8, 8))
    launches = [x for x in recording.launches if not x.cost.allocates]
    names = [launch.op for launch in launches]
    assert names == [f"norm_act_conv.{name}" for name in ("pack", "convolution", "combine")]
    assert [launch.cost.scratch for launch in launches] == [40, 3040, 3000]
    live = live_bytes(recording)
    assert live.max() == live[-1] + 3040
    peak = recording.launches[recording.launch_at[peak_change(recording)] - 1]
    assert peak.op == "norm_act_conv.convolution"
    assert {b.kind for b in recording.blocks if b.bytes in (40, 3000, 3040)} == {"workspace"}
    card = CARDS[0]
    moved = (120 + 3100 + 3600) / card.bandwidth
    seconds = 3 * LAUNCH_SECONDS + moved + 10**12 / card.tf32 - 3100 / card.bandwidth
    assert modelled_seconds(launches, card) == pytest.approx(seconds)


def test_composed_op_without_a_description_of_its_call_is_looked_into(own_engine):
    recording, _ = traced(lambda x: convolution(x, None), (1, 4, 8, 8))
    names = [launch.op for launch in recording.launches if not launch.cost.allocates]
    assert names == ["aten::clone", "norm_act_pad.apply", "convolution"]
    (flops,) = {x.cost.flops for x in recording.launches} - {0}
    assert flops == 2 * 9 * 4 * 4 * 64


def test_described_op_inside_a_composed_one(own_engine):
    """A residual block is looked into, its convolutions are not."""

    def block(x):
        weights = torch.empty(8, 8, 3, 3), torch.empty(8, 8, 3, 3)
        none = (None, None)
        rest = ("relu", 0.2, "reflect", 0, 0, 1e-5, 1e-5)
        return OPS.residual_block(x.contiguous(memory_format=torch.channels_last), *weights,
                                  *none, *rest)  # fmt: skip

    names = [x.op for x in traced(block)[0].launches if not x.cost.allocates]
    engine = [f"norm_act_conv.{name}" for name in ("pack", "convolution", "combine")]
    assert names == ["clone", *engine, *engine, "norm_act_pad.apply"]


@pytest.mark.filterwarnings("ignore")
def test_pytorchs_own_counter_sees_the_arithmetic_once():
    register_flop_formulas()  # a second time: nothing is registered twice
    net = networks.define_G(3, 3, 4, "local", 2, 2, 1, 1)
    x = torch.zeros(1, 3, 32, 32)
    counted = {}
    for name in ("eager", "fused"):
        with backend(name), FlopCounterMode(display=False) as counter:
            net(x).sum().backward()
        ahead = counter.get_flop_counts()["Global"]
        counted[name] = counter.get_total_flops()
    ops = {packet.__name__ for packet in ahead}
    assert {"norm_act_conv", "residual_block", "residual_block_backward"} <= ops
    assert not {"convolution", "convolution_backward"} & ops
    assert counted["fused"] == counted["eager"] > 0


def test_op_without_description_is_one_launch(monkeypatch):
    monkeypatch.setattr(_launches, "_descriptions", {})
    recording, _ = traced(lambda x: norm_act_pad(x)[0])
    names = [launch.op for launch in recording.launches]
    assert names == ["channel_statistics", "norm_act_pad_apply"]
    ids = torch.zeros(1, 1, 4, 4, dtype=torch.int32)
    ((name, cost),) = costs_of(
        OPS.instance_boundaries.default, (ids,), {}, instance_boundaries(ids)
    )
    assert (name, cost.traffic, cost.scratch) == ("instance_boundaries", 64 + 16, 0)


def test_low_precision_is_that_of_the_arguments():
    x = torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16)
    op = OPS.fold.default
    arguments = (x, "reflect", 1)
    assert all(cost.low for _, cost in costs_of(op, arguments, {}, op(*arguments)))
