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

from pix2pixhd_fast import _launches
from pix2pixhd_fast._launches import Launch, described_ops, launches_of, register_launches
from pix2pixhd_fast.ops import instance_boundaries, norm_act_pad
from pix2pixhd_fast.profile.cards import CARDS, LAUNCH_SECONDS, modelled_seconds
from pix2pixhd_fast.profile.counting import costs_of, register_flop_formulas
from pix2pixhd_fast.profile.summary import live_bytes, peak_change
from pix2pixhd_fast.profile.tracer import Tracer
from tests.helpers import ROOT
from tests.launch_recorder import CASES, arguments_of

OPS = torch.ops.pix2pixhd_fast


def test_every_op_describes_its_launches():
    names = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names()
             if name.startswith("pix2pixhd_fast::")}  # fmt: skip
    assert names == set(described_ops())


@pytest.fixture(scope="module")
def launched():
    """What Triton's launchers launch in the interpreter, by case and direction."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PIX2PIXHD_FAST_BACKEND": "triton"}
    command = [sys.executable, "-m", "tests.launch_recorder"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


@pytest.mark.parametrize("case", CASES)
def test_triton_launches_what_is_described(case, launched):
    with FakeTensorMode():
        forward, (dy, x, *rest) = arguments_of(case)
        result = OPS.norm_act_pad(*forward)
        ahead = launches_of(OPS.norm_act_pad.default, forward, {}, result)
        backward = (dy, x, *result[1:], *rest)
        gradient = OPS.norm_act_pad_backward(*backward)
        back = launches_of(OPS.norm_act_pad_backward.default, backward, {}, gradient)
    found = launched[case]
    assert [(x.name, x.read, x.written, x.scratch) for x in ahead] == [
        *map(tuple, found["forward"])
    ]
    assert [(x.name, x.read, x.written, x.scratch) for x in back] == [
        *map(tuple, found["backward"])
    ]
    copies = sum(x.name == "aten::clone" for x in (*ahead, *back))
    assert (len(ahead) + len(back), copies) == {"empty": (0, 0), "copied": (9, 3)}.get(case, (6, 0))


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


def traced(step, shape=(2, 8, 16, 16)):
    """The recording of `step(x)` on a fake x that needs a gradient, and what lives after it."""
    with FakeTensorMode(), Tracer(torch.nn.Identity()) as tracer:
        x = torch.empty(shape, requires_grad=True)
        tracer.restart()
        kept = step(x)
        tracer.stop()
    return tracer.recording, kept


def test_op_is_counted_once_with_what_autograd_keeps():
    x, y, statistics = 2 * 8 * 256 * 4, 2 * 8 * 18 * 18 * 4, 2 * 8 * 4
    recording, _ = traced(lambda x: norm_act_pad(x, "relu", padding="reflect", pad=1))
    assert [launch.op.partition(".")[0] for launch in recording.launches] == ["norm_act_pad"] * 3
    live = live_bytes(recording)
    assert live[-1] - recording.start == y + 2 * statistics
    scratch = recording.launches[0].cost.scratch
    assert scratch > 0 and live.max() == live[-1] + scratch
    moved = [launch.cost.traffic for launch in recording.launches]
    assert sum(moved) == 2 * x + y + 2 * scratch + 4 * statistics
    # The sum keeps nothing: y goes, and x, mean and rstd stay for the backward.
    recording, _ = traced(lambda x: norm_act_pad(x, padding="reflect", pad=1)[0].sum())
    assert live_bytes(recording)[-1] - recording.start == 2 * statistics + 4


def test_backward_is_its_three_kernels_and_nothing_more():
    def step(x):
        y, _, _ = norm_act_pad(x, "relu")
        y.backward(torch.empty_like(y))

    names = [launch.op for launch in traced(step)[0].launches if launch.phase == "backward"]
    kernels = ["reduce_backward", "combine_backward", "apply_backward"]
    assert names == [f"norm_act_pad_backward.{kernel}" for kernel in kernels]


@pytest.fixture
def convolving(monkeypatch):
    """norm_act_pad as if it convolved: two temporaries, of which the second one goes early."""

    def describe(x, act, slope, padding, pad, eps, result):
        return [
            Launch("norm_act_pad.statistics", 100, 20, scratch=40),
            Launch("norm_act_pad.apply", 100, 3000, scratch=40 + 3000),
            Launch("aten::convolution", 3500, 100, flops=10**12, scratch=3000),
        ]

    monkeypatch.setattr(_launches, "_descriptions", dict(_launches._descriptions))
    register_launches("norm_act_pad", describe)


def test_library_calls_and_several_temporaries(convolving):
    shape = (1, 4, 8, 8)
    recording, _ = traced(lambda x: norm_act_pad(x), shape)
    assert [launch.cost.scratch for launch in recording.launches] == [40, 3040, 3000]
    live = live_bytes(recording)
    assert live.max() == live[-1] + 3040
    peak = recording.launches[recording.launch_at[peak_change(recording)] - 1]
    assert peak.op == "norm_act_pad.apply"
    assert {b.kind for b in recording.blocks if b.bytes in (40, 3000, 3040)} == {"workspace"}
    card = CARDS[0]
    moved = (120 + 3100) / card.bandwidth
    seconds = 3 * LAUNCH_SECONDS + moved + 10**12 / card.tf32
    assert modelled_seconds(recording.launches, card) == pytest.approx(seconds)


@pytest.mark.filterwarnings("ignore")
def test_pytorchs_own_counter_sees_the_arithmetic(convolving):
    register_flop_formulas()  # a second time: nothing is registered twice
    x = torch.zeros(1, 4, 8, 8)
    with FlopCounterMode(display=False) as counter:
        OPS.norm_act_pad(x, "none", 0.2, "none", 0, 1e-5)
    assert counter.get_total_flops() == 10**12


def test_op_without_description_is_one_launch(monkeypatch):
    monkeypatch.setattr(_launches, "_descriptions", {})
    recording, _ = traced(lambda x: norm_act_pad(x)[0])
    assert [launch.op for launch in recording.launches] == ["norm_act_pad"]
    ids = torch.zeros(1, 1, 4, 4, dtype=torch.int32)
    ((name, cost),) = costs_of(
        OPS.instance_boundaries.default, (ids,), {}, instance_boundaries(ids)
    )
    assert (name, cost.traffic, cost.scratch) == ("instance_boundaries", 64 + 16, 0)


def test_low_precision_is_that_of_the_arguments():
    x = torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16)
    op = OPS.norm_act_pad.default
    arguments = (x, "none", 0.2, "none", 0, 1e-5)
    assert all(cost.low for _, cost in costs_of(op, arguments, {}, op(*arguments)))
