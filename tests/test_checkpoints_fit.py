"""How a checkpoint differs from a network, which option fits, and coarse-to-fine starts."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from pix2pixhd_fast.checkpoints import CheckpointFolder, load_pretrained
from pix2pixhd_fast.checkpoints.layout import INPUT_CHANNELS, input_changes, layout
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.networks import define_D, define_G
from pix2pixhd_fast.options import Options
from tests.helpers import GOLDEN

# local with ngf 2 continues global with ngf 4
GLOBAL = Options(ngf=4, n_downsample_global=2, n_blocks_global=2, ndf=4, nef=2, no_vgg_loss=True)
LOCAL = replace(GLOBAL, netG="local", ngf=2, n_blocks_local=1)
FINEST = replace(LOCAL, ngf=1, n_local_enhancers=2)
FEATURES = replace(GLOBAL, instance_feat=True)
PICTURES = replace(GLOBAL, label_nc=0, no_instance=True)


def network(letter: str, o: Options) -> nn.Module:
    depth = (o.n_downsample_global, o.n_blocks_global, o.n_local_enhancers, o.n_blocks_local)
    if letter == "G":
        return define_G(o.netG_input_nc, o.output_nc, o.ngf, o.netG, *depth, o.norm)
    if letter == "E":
        return define_G(o.output_nc, o.feat_num, o.nef, "encoder", o.n_downsample_E, norm=o.norm)
    interm = not o.no_ganFeat_loss
    return define_D(o.netD_input_nc, o.ndf, o.n_layers_D, o.norm, o.no_lsgan, o.num_D, interm)


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def refusal(load, module: nn.Module) -> str:
    """The text of the error; the module must be as before."""
    before = values(module)
    with pytest.raises(InputError) as error:
        load(module)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    return str(error.value)


@pytest.mark.parametrize(
    ("letter", "model", "change", "lines"),
    [
        ("G", LOCAL, {"netG": "global"}, ["netG: global fits the file, this generator has local"]),
        ("G", GLOBAL, {"netG": "local"}, ["netG: local fits", "n_local_enhancers: 1 fits"]),
        ("G", LOCAL, {"n_local_enhancers": 2}, ["n_local_enhancers: 2 fits the file"]),
        ("G", LOCAL, {"n_blocks_local": 3}, ["n_blocks_local: 3 fits the file"]),
        ("G", LOCAL, {"ngf": 4}, ["ngf: 4 fits the file, this generator has 2"]),
        ("G", GLOBAL, {"n_blocks_global": 0}, ["n_blocks_global: 0 fits the file"]),
        ("G", LOCAL, {"n_blocks_global": 5}, ["n_blocks_global: 5 fits the file"]),
        ("G", GLOBAL, {"n_downsample_global": 3}, ["n_downsample_global: 3 fits the file"]),
        ("G", GLOBAL, {"output_nc": 1}, ["output_nc: 1 fits the file, this generator has 3"]),
        ("G", GLOBAL, {"norm": "batch"}, ["norm: batch fits the file"]),
        ("G", replace(GLOBAL, norm="batch"), {"norm": "instance"}, ["norm: instance fits"]),
        (
            "G",
            GLOBAL,
            {"instance_feat": True},
            ["would fit: instance_feat and feat_num 3; or label"],
        ),
        ("G", FEATURES, {"instance_feat": False}, ["would fit: without instance_feat"]),
        ("G", FEATURES, {"feat_num": 6}, ["feat_num 6", "42 channels in the file, 39 here"]),
        ("G", GLOBAL, {"no_instance": True}, ["would fit: no_instance; or label_nc 34"]),
        ("G", GLOBAL, {"label_nc": 20}, ["would fit: label_nc 20"]),
        ("G", GLOBAL, {"label_nc": 0, "no_instance": True}, ["fit: label_nc 0 and no_instance"]),
        ("G", PICTURES, {"input_nc": 1}, ["input_nc 1"]),
        (
            "G",
            PICTURES,
            {"label_nc": 35, "no_instance": False},
            ["label_nc 35 and without no_inst"],
        ),
        ("D", GLOBAL, {"num_D": 3}, ["num_D: 3 fits the file, this discriminator has 2"]),
        ("D", GLOBAL, {"n_layers_D": 2}, ["n_layers_D: 2 fits the file"]),
        ("D", GLOBAL, {"ndf": 8}, ["ndf: 8 fits the file"]),
        ("D", GLOBAL, {"no_ganFeat_loss": True}, ["no_ganFeat_loss: True fits the file"]),
        ("D", GLOBAL, {"norm": "batch"}, ["norm: batch fits the file"]),
        (
            "D",
            GLOBAL,
            {"no_instance": True},
            ["38 channels in the file, 39 here", "fit: no_instance"],
        ),
        ("E", FEATURES, {"nef": 4}, ["nef: 4 fits the file, this encoder has 2"]),
        ("E", FEATURES, {"n_downsample_E": 2}, ["n_downsample_E: 2 fits the file"]),
        ("E", FEATURES, {"feat_num": 5}, ["feat_num: 5 fits the file"]),
    ],
)
def test_the_option_that_would_fit_is_named(tmp_path, letter, model, change, lines):
    folder = CheckpointFolder(tmp_path)
    folder.save("latest", {letter: network(letter, replace(model, **change))})
    load = partial(folder.load_network, "latest", letter, options=model)
    text = refusal(load, network(letter, model))
    path = tmp_path / f"latest_net_{letter}.pth"
    first, *details = text.split("\n")
    assert first.startswith(f"{path} does not fit this ") and all(x[:2] == "  " for x in details)
    assert all(line in text for line in lines)
    named = re.findall(r"^  (\w+): .* fits the file", text, re.MULTILINE)
    assert set(named) <= {*change, "n_local_enhancers"} and len(details) <= 6


def test_what_differs_is_counted_and_shown_in_part(tmp_path):
    folder = CheckpointFolder(tmp_path)
    saved = network("D", GLOBAL).state_dict()
    names = list(saved)
    for name in names[:6]:
        saved["other." + name] = saved.pop(name)
    saved[names[-1]] = torch.zeros(7)
    torch.save(saved, tmp_path / "latest_net_D.pth")
    load = partial(folder.load_network, "latest", "D")
    text = refusal(load, network("D", GLOBAL))
    assert "of 20 tensors: 1 of another shape, 6 missing, 6 not expected\n" in text
    assert "of another shape: scale1_layer4.0.bias [7] (here [1])" in text
    assert f"missing: {', '.join(names[:4])} and 2 more" in text
    assert "not expected: other.scale0_layer0.0.weight, " in text


def test_without_options_only_the_channels_are_named(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save("latest", {"G": network("G", FEATURES)})
    text = refusal(partial(folder.load_network, "latest", "G"), network("G", GLOBAL))
    assert "the first layer takes 39 channels in the file, 36 here\n" in text


def test_every_suggested_change_gives_the_channels_of_the_file():
    bases = [GLOBAL, FEATURES, PICTURES, replace(GLOBAL, label_feat=True, no_instance=True)]
    bases.append(replace(FEATURES, load_features=True, label_nc=2))
    for options in bases:
        for letter, size in (("G", "netG_input_nc"), ("D", "netD_input_nc")):
            for channels in range(1, 60):
                for change in input_changes(letter, options, channels):
                    changed = replace(options, isTrain=False, **change)
                    assert getattr(changed, size) == channels
            assert input_changes(letter, options, getattr(options, size) + 7)


def test_options_are_read_off_the_shapes_of_the_original_networks():
    path = GOLDEN / "state_dict_shapes.json"
    if not path.exists():
        pytest.skip("no recorded shapes")
    recorded = {
        name: {k: tuple(v) for k, v in s.items()}
        for name, s in json.loads(path.read_text()).items()
    }
    g1, g2, g3, batch, encoder, scales, plain, _ = recorded.values()
    common = {"n_downsample_global": 4, "n_blocks_global": 9, "output_nc": 3, "norm": "instance"}
    finest = common | {INPUT_CHANNELS: 36, "netG": "local", "n_blocks_local": 3}
    coarse = common | {"netG": "global", "n_local_enhancers": 0, "ngf": 64}
    assert layout(g1, "G") == coarse | {INPUT_CHANNELS: 36}
    assert layout(g2, "G") == finest | {"ngf": 32, "n_local_enhancers": 1}
    assert layout(g3, "G") == finest | {"ngf": 16, "n_local_enhancers": 2}
    assert layout(batch, "G") == coarse | {INPUT_CHANNELS: 3, "norm": "batch"}
    sizes = {"nef": 16, "n_downsample_E": 4, "output_nc": 3, "feat_num": 3}
    assert layout(encoder, "E") == sizes | {"norm": "instance"}
    sizes = {"n_layers_D": 3, "ndf": 64, INPUT_CHANNELS: 39, "norm": "instance"}
    assert layout(scales, "D") == sizes | {"num_D": 3, "no_ganFeat_loss": False}
    assert layout(plain, "D") == sizes | {"num_D": 2, "no_ganFeat_loss": True}
    assert layout(plain, "G") == layout(g1, "D") == layout({}, "E") == {}


def pretrained(tmp_path, letter: str, saved: nn.Module, module: nn.Module, options=None):
    CheckpointFolder(tmp_path).save("latest", {letter: saved})
    return load_pretrained(tmp_path, "latest", letter, module, options)


@pytest.mark.parametrize(
    ("letter", "coarse", "fine", "fresh", "dropped"),
    [
        ("G", GLOBAL, GLOBAL, (), ()),
        ("G", LOCAL, LOCAL, (), ()),
        ("G", GLOBAL, LOCAL, ("model1",), ("model.19",)),
        ("G", LOCAL, FINEST, ("model2",), ("model1_2.5",)),
        ("G", GLOBAL, FINEST, ("model1", "model2"), ("model.19",)),
        ("D", GLOBAL, GLOBAL, (), ()),
        ("D", GLOBAL, replace(GLOBAL, num_D=4), ("scale2", "scale3"), ()),
        ("E", FEATURES, FEATURES, (), ()),
    ],
)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_coarser_model_starts_a_finer_one(tmp_path, letter, coarse, fine, fresh, dropped, norm):
    torch.manual_seed(1)
    saved, module = (network(letter, replace(o, norm=norm)) for o in (coarse, fine))
    theirs, before = values(saved), values(module)
    report = pretrained(tmp_path, letter, saved, module)
    assert (report.fresh, report.dropped, report.found) == (fresh, dropped, True)
    for name, value in module.state_dict().items():
        is_fresh = name.startswith(fresh) if fresh else False
        assert torch.equal(value, before[name] if is_fresh else theirs[name]), name
    assert report.loaded == len(theirs) - 2 * len(dropped)
    text = str(report)
    assert f"{letter}: {report.loaded} tensors from {tmp_path}/latest_net_{letter}.pth" in text
    assert "\n" not in text and all(name in text for name in fresh + dropped)


def test_scales_without_feature_matching_start_fresh(tmp_path):
    options = replace(GLOBAL, no_ganFeat_loss=True)
    saved, module = network("D", options), network("D", replace(options, num_D=3))
    assert pretrained(tmp_path, "D", saved, module).fresh == ("layer2",)


@pytest.mark.parametrize(
    ("letter", "coarse", "fine", "text"),
    [
        ("G", replace(GLOBAL, ngf=8), LOCAL, "  ngf: 4 fits the file, this generator has 2"),
        ("G", LOCAL, replace(FINEST, ngf=2), "  ngf: 1 fits the file, this generator has 2"),
        ("G", replace(GLOBAL, n_blocks_global=1), LOCAL, "n_blocks_global: 1 fits the file"),
        ("G", replace(GLOBAL, n_downsample_global=1), LOCAL, "n_downsample_global: 1 fits"),
        ("G", replace(LOCAL, n_blocks_local=2), FINEST, "n_blocks_local: 2 fits the file"),
        ("G", FEATURES, LOCAL, "would fit: instance_feat"),
        ("G", LOCAL, GLOBAL, "netG: local fits the file"),
        ("G", FINEST, LOCAL, "n_local_enhancers: 2 fits the file"),
        ("G", replace(GLOBAL, norm="batch"), LOCAL, "norm: batch fits the file"),
        ("D", replace(GLOBAL, num_D=3), GLOBAL, "num_D: 3 fits the file"),
        ("D", replace(GLOBAL, n_layers_D=2), replace(GLOBAL, num_D=3), "n_layers_D: 2 fits"),
        ("D", replace(GLOBAL, no_ganFeat_loss=True), GLOBAL, "no_ganFeat_loss: True fits"),
        ("E", replace(FEATURES, n_downsample_E=3), FEATURES, "n_downsample_E: 3 fits the file"),
    ],
)
def test_other_differences_are_refused_and_change_nothing(tmp_path, letter, coarse, fine, text):
    load = partial(pretrained, tmp_path, letter, network(letter, coarse), options=fine)
    found = refusal(load, network(letter, fine))
    assert text in found and found.count("fits the file") <= 3
    assert "model1_1" not in found or coarse.netG == "local"  # what may start fresh is not listed


def test_only_the_output_layer_of_a_coarser_generator_is_dropped(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save("latest", {"G": network("G", GLOBAL)})
    content = torch.load(tmp_path / "latest_net_G.pth", weights_only=True)
    load = partial(load_pretrained, tmp_path, "latest", "G")
    for change in (
        {"extra.weight": torch.zeros(1)},
        {"model1_1.1.weight": torch.zeros(2, 36, 7, 7)},
    ):
        torch.save({**content, **change}, tmp_path / "latest_net_G.pth")
        assert "does not fit this generator" in refusal(load, network("G", LOCAL))
    del content["model.4.bias"]
    torch.save(content, tmp_path / "latest_net_G.pth")
    assert "missing: model.4.bias" in refusal(load, network("G", LOCAL))
    torch.save({}, tmp_path / "latest_net_D.pth")
    load = partial(load_pretrained, tmp_path, "latest", "D")
    assert "20 missing" in refusal(load, network("D", GLOBAL))


def test_only_the_generator_is_required(tmp_path):
    CheckpointFolder(tmp_path).save("10", {"D": network("D", GLOBAL)})
    module = network("D", GLOBAL)
    before = values(module)
    report = load_pretrained(tmp_path, "latest", "D", module)
    assert not report.found and report.loaded == 0
    assert str(report) == f"D: starts fresh, there is no {tmp_path}/latest_net_D.pth"
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    with pytest.raises(InputError, match="latest_net_G.pth does not exist; .*: none"):
        load_pretrained(tmp_path, "latest", "G", network("G", GLOBAL))
    for letter in "GDE":
        with pytest.raises(InputError, match=f"latest_net_{letter}.pth .* there is no folder"):
            load_pretrained(tmp_path / "typo", "latest", letter, module)
