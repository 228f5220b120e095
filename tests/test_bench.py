"""The method of bench: order, percentiles, red comparisons, memory; layers; targets that run."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from pix2pixhd_fast import InputError, Options
from pix2pixhd_fast.benchmark import TARGETS, Request, Runner, cases
from pix2pixhd_fast.benchmark.agreement import relative_error
from pix2pixhd_fast.benchmark.case import FORWARD, PASSES, PEERS, Case, Unavailable
from pix2pixhd_fast.benchmark.layers import (
    NETWORKS,
    build_network,
    network_layers,
    norm_shapes,
    padded_size,
)
from pix2pixhd_fast.benchmark.memory import in_own_process
from pix2pixhd_fast.benchmark.method import (
    calls_per_sample,
    interleave,
    number_of_repeats,
    speed_up,
    spread,
    warm_up,
)
from pix2pixhd_fast.benchmark.op_case import OpCase, op_passes
from pix2pixhd_fast.benchmark.request import GENERATORS

TOY = Request(("norm_act_pad",), backends=("eager", "fused"), repeats=3)
SMALL = {"ngf": 2, "ndf": 2, "nef": 2, "no_vgg_loss": True}


class FakeCeilings:
    def copy(self):
        return 1e9

    def product(self, dtype):
        return 1e10


def toy_case(**functions) -> Case:
    """Steps by backend; each returns one number."""

    def prepare(backend, dtype):
        if backend not in functions:
            raise Unavailable("not installed")
        return lambda: {"output": [torch.tensor([functions[backend]()])]}

    return Case("toy", "one", FORWARD, (8, 4), 2, "fp32", prepare, tuple(functions), 1e-3, 1000, 0)


def run(case: Case, seconds=lambda: 0.25, request=TOY):
    def clock(call, calls):
        for _ in range(calls):
            call()
        return seconds() * calls

    lines = []
    (found,) = Runner(request, lines.append, clock, FakeCeilings()).run(iter([case]))
    return found[1], lines


def test_backends_take_turns_and_the_baseline_comes_first():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "AB"}

    def clock(call, count):
        for _ in range(count):
            call()
        return len(order)

    told = []
    samples = interleave(calls, {"A": 1, "B": 2}, 2, clock, lambda n, s: told.append((n, dict(s))))
    assert order == ["A", "B", "B"] * 2
    assert samples == {"A": [1, 4], "B": [1.5, 3.0]}
    assert told == [(1, {"A": 1, "B": 1.5}), (2, {"A": 4, "B": 3.0})]


def test_median_percentiles_and_ratios_of_pairs():
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0, 6.0]) == spread([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    found = spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert (found.median, found.p20, found.p80) == (3.5, 2.0, 5.0)
    # the machine was twice as slow in the second repeat: no matter
    assert speed_up([2.0, 4.0], [1.0, 2.0]) == replace(found, median=2.0, p20=2.0, p80=2.0)


def test_short_calls_are_timed_together_and_long_ones_seldom():
    assert calls_per_sample(1.0) == 1 and calls_per_sample(0.001) == 5
    assert number_of_repeats(30.0) == 3 and number_of_repeats(1.0) == 10
    assert number_of_repeats(1e-3) == 25
    seconds = iter([9.0, 1.0])
    assert warm_up(lambda: None, lambda call, n: next(seconds), 4) == 9.0


def test_a_row_holds_the_figures_and_says_to_what_they_relate():
    times = iter([0.3, 0.1] + [0.4, 0.1, 0.2, 0.1, 0.6, 0.2])
    rows, lines = run(toy_case(eager=lambda: 1.0, fused=lambda: 1.0001), lambda: next(times))
    eager, fused = rows
    assert [row["backend"] for row in rows] == ["eager", "fused"]
    assert (fused["median_ms"], fused["ratio"], fused["ratio_to"]) == ("100", "3", "eager")
    assert (eager["median_ms"], eager["ratio"], eager["status"]) == ("400", "1", "ok")
    # two pictures and 1000 bytes in 0.1 s
    assert (fused["images_per_s"], fused["gb_per_s"]) == ("20", "1e-05")
    assert (fused["copy_gb_per_s"], fused["matmul_gflop_per_s"]) == ("1", "10")
    assert float(fused["error"]) == pytest.approx(1e-4, rel=0.1)
    assert sum("repeat" in line for line in lines) == 3


@pytest.mark.parametrize("value", [1.1, math.nan])
def test_a_wrong_backend_has_its_error_and_no_speed(value):
    calls = []
    rows, _ = run(toy_case(eager=lambda: 1.0, fused=lambda: calls.append(1) or value))
    assert rows[1]["status"] == "wrong" and rows[1]["error"]
    assert not any(rows[1][name] for name in rows[1] if "_ms" in name or "per_s" in name)
    assert len(calls) == 1 and rows[0]["median_ms"]


def test_what_is_not_installed_is_said_and_no_failure():
    case = replace(toy_case(eager=lambda: 1.0), backends=("eager", "openvino"))
    rows, _ = run(case, request=replace(TOY, backends=("eager", "openvino", "fused")))
    assert [row["status"] for row in rows] == ["ok", "not installed", "not for toy"]


def test_a_peer_that_breaks_does_not_end_the_run_but_our_own_does():
    def broken():
        raise ValueError("broken")

    rows, _ = run(
        toy_case(eager=lambda: 1.0, onnxruntime=broken),
        request=replace(TOY, backends=("eager", "onnxruntime")),
    )
    assert rows[1]["status"] == "failed: ValueError"
    with pytest.raises(ValueError, match="broken"):
        run(toy_case(eager=lambda: 1.0, fused=broken))


def test_the_error_is_that_of_a_group_taken_together():
    reference = {"gradient": [torch.tensor([3.0]), torch.tensor([4.0])]}
    assert relative_error({"gradient": [torch.tensor([3.0]), torch.tensor([4.5])]}, reference) == (
        pytest.approx(0.1)
    )
    assert relative_error({"gradient": [torch.zeros(2), torch.zeros(1)]}, reference) == math.inf
    assert relative_error({"output": reference["gradient"]}, reference) == math.inf


def test_an_op_with_wrong_gradients_is_red():
    op = OpCase(
        "square", lambda: (torch.arange(4.0),), lambda x: x * x, lambda x: x * x.detach(),
        (32, 64), 1e-5,
    )  # fmt: skip
    forward, backward = op_passes("toy", op, TOY, (4, 1), "fp32")
    assert [row["status"] for row in run(forward)[0]] == ["ok", "ok"]
    assert [row["status"] for row in run(backward)[0]] == ["ok", "wrong"]


@pytest.mark.parametrize(
    "generator", [{}, {"netG": "local"}, {"netG": "local", "n_local_enhancers": 2}]
)
def test_layers_are_the_convolutions_of_the_networks(generator):
    options = Options(**SMALL, **generator, instance_feat=True)
    for network in NETWORKS:
        layers = network_layers(network, options, (200, 100))
        convolutions = {
            name: m
            for name, m in build_network(network, options).named_modules()
            if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
        }
        assert {layer.name for layer in layers} == convolutions.keys()
        for layer in layers:
            conv = convolutions[layer.name]
            assert (layer.in_channels, layer.out_channels) == (conv.in_channels, conv.out_channels)
            assert layer.weights == conv.weight.numel()
        norms = [m for m in build_network(network, options).modules()
                 if isinstance(m, nn.InstanceNorm2d)]  # fmt: skip
        assert sum(layer.norm == "instance" for layer in layers) == len(norms)


def test_layers_know_sizes_padding_and_what_they_follow():
    options = Options(
        netG="local", n_downsample_global=1, n_blocks_global=1, n_blocks_local=1, ngf=4
    )
    assert padded_size("G", options, (62, 31)) == (64, 32)
    layers = network_layers("G", options, (62, 31))
    first, last = layers[0], layers[-1]
    assert (first.in_channels, first.in_height, first.in_width) == (36, 16, 32)
    assert (first.padding_mode, first.padding, first.kernel, first.follows) == (
        "reflect",
        3,
        7,
        False,
    )
    assert (last.name, last.height, last.width, last.activation) == ("model1_2.5", 32, 64, "tanh")
    assert last.follows and last.norm == "none"
    assert first.flops == 2 * 49 * 36 * 8 * 16 * 32
    layer, padding, pad = norm_shapes(layers)[-1]
    assert (layer.name, layer.out_channels, padding, pad) == ("model1_2.1", 4, "reflect", 3)


def test_the_default_shape_is_the_enhancers_last():
    request = Request(("norm_act_pad",))
    names = [case.name for case in cases(request)]
    assert names[0] == "32x1024x2048 relu reflect 3 nchw"
    assert {name.split()[-1] for name in names} == {"nchw", "channels_last"}
    wide = request.options((4096, 2048))
    assert (wide.netG, wide.n_local_enhancers, wide.ngf) == ("local", 2, 16)
    assert len(GENERATORS) == 3


def test_every_target_agrees_with_itself_at_a_tiny_size():
    request = Request(TARGETS, sizes=((64, 32),), flags=SMALL, passes=PASSES, repeats=1)
    seen = set()
    for case in cases(replace(request, flags={**SMALL, "netG": "global"})):
        reference = case.prepare("eager", "fp32")()
        assert relative_error(case.prepare("fused", case.dtype)(), reference) <= case.tolerance
        assert case.flops is None or case.flops > 0
        seen.add(case.target)
    assert seen == set(TARGETS)


def test_fused_on_channels_is_compared_only_where_a_label_map_is_read():
    backends = ("fused_one_hot", "fused_channels", "fused")
    request = Request(("G",), sizes=((64, 32),), flags=SMALL, backends=backends)
    (case,) = cases(request)
    assert case.name.endswith("label map")
    rows, _ = run(case, request=replace(request, repeats=1))
    assert [(row["status"], row["ratio_to"]) for row in rows] == [("ok", "fused_one_hot")] * 3


def test_peers_say_what_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    case, on_maps = cases(Request(("G",), sizes=((64, 32),), flags=SMALL))
    assert on_maps.name == f"{case.name}, label map"
    for peer in PEERS:
        with pytest.raises(Unavailable, match="not installed"):
            case.prepare(peer, "fp32")


def test_a_backend_in_its_own_process_says_what_it_took():
    request = Request(("G",), sizes=((64, 32),), flags={**SMALL, "ngf": 16})
    case, _ = cases(request)
    weights = sum(p.numel() * 4 for p in build_network("G", request.options((64, 32))).parameters())
    assert in_own_process(request, case, "eager").peak > weights
    assert in_own_process(request, replace(case, name="no such"), "eager") is None


BAD = {
    "dtype": ({"dtypes": ("fp16",)}, "dtype fp16 needs a GPU"),
    "backend": ({"backends": ("fast",)}, "backend must be one of"),
    "batch": ({"batch": 5}, "batch must be 1 to 4"),
    "repeats": ({"repeats": -1}, "repeats must be at least 0"),
    "amp": ({"flags": {"amp": "bf16"}}, "use dtype"),
    "pass": ({"passes": ("back",)}, "pass must be one of"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_before_any_work(name):
    changes, words = BAD[name]
    with pytest.raises(InputError, match=words):
        replace(TOY, **changes)
