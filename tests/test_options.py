"""`Options`: the original's defaults, derived values, refusals."""

import math
from dataclasses import fields

import pytest

from pix2pixhd_fast import InputError, Options

# the original's options/base_options.py, train_options.py and test_options.py
ORIGINAL_DEFAULTS = dict(
    name="label2city",
    gpu_ids="0",
    checkpoints_dir="./checkpoints",
    model="pix2pixHD",
    norm="instance",
    use_dropout=False,
    data_type=32,
    batchSize=1,
    loadSize=1024,
    fineSize=512,
    label_nc=35,
    input_nc=3,
    output_nc=3,
    dataroot="./datasets/cityscapes/",
    resize_or_crop="scale_width",
    nThreads=2,
    display_winsize=512,
    netG="global",
    ngf=64,
    n_downsample_global=4,
    n_blocks_global=9,
    n_blocks_local=3,
    n_local_enhancers=1,
    niter_fix_global=0,
    feat_num=3,
    n_downsample_E=4,
    nef=16,
    n_clusters=10,
    display_freq=100,
    print_freq=100,
    save_latest_freq=1000,
    save_epoch_freq=10,
    load_pretrain="",
    which_epoch="latest",
    phase="train",
    niter=100,
    niter_decay=100,
    beta1=0.5,
    lr=0.0002,
    num_D=2,
    n_layers_D=3,
    ndf=64,
    lambda_feat=10.0,
    pool_size=0,
    results_dir="./results/",
    aspect_ratio=1.0,
    how_many=50,
    cluster_path="features_clustered_010.npy",
)


def test_defaults_are_the_originals():
    options = Options()
    assert {name: getattr(options, name) for name in ORIGINAL_DEFAULTS} == ORIGINAL_DEFAULTS
    switches = [o.name for o in fields(Options) if o.type is bool and o.name != "isTrain"]
    assert not any(getattr(options, name) for name in switches)
    assert Options(isTrain=False).phase == "test"


@pytest.mark.parametrize(
    ("changes", "g", "d", "multiple"),
    [
        ({}, 36, 39, 16),
        (dict(netG="local"), 36, 39, 32),
        (dict(netG="local", n_local_enhancers=2), 36, 39, 64),
        (dict(no_instance=True), 35, 38, 16),
        (dict(instance_feat=True), 39, 39, 16),
        (dict(label_feat=True, feat_num=5, n_downsample_E=6), 41, 39, 64),
        (dict(label_nc=0, input_nc=4), 5, 8, 16),
    ],
)
def test_channels_and_multiple(changes, g, d, multiple):
    options = Options(**changes)
    assert (options.netG_input_nc, options.netD_input_nc) == (g, d)
    assert options.size_multiple == multiple


def test_short_forms():
    assert Options(fp16=True).amp == "fp16" and Options(data_type=16).amp == "fp16"
    debug = Options(debug=True)
    assert (debug.niter, debug.niter_decay, debug.max_dataset_size) == (1, 0, 10)
    assert Options(max_dataset_size=math.inf).max_dataset_size > 2**60
    assert Options(lr=1).lr == 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(netG="unet"), "netG must be one of global, local, got 'unet'"),
        (dict(amp="fp8"), "amp must be one of"),
        (dict(resize_or_crop="stretch"), "resize_or_crop must be one of"),
        (dict(ngf=0), "ngf must be at least 1, got 0"),
        (dict(ngf=True), "ngf must be of type int"),
        (dict(lr="fast"), "lr must be of type float"),
        (dict(lr=0.0), "lr must be a positive number"),
        (dict(lr=math.nan), "lr must be a positive number"),
        (dict(beta1=1.0), "beta1 must be in"),
        (dict(niter=0, niter_decay=0), "at least 1 epoch"),
        (dict(niter_fix_global=1), "needs netG local"),
        (dict(load_features=True), "load_features needs"),
        (dict(instance_feat=True, no_instance=True), "instance_feat needs instance maps"),
        (dict(label_feat=True, label_nc=0), "label_feat needs labels"),
        (dict(output_nc=1), "VGG loss needs output_nc 3"),
        (dict(name="../up"), "name must be"),
        (dict(amp="bf16", fp16=True), "contradict"),
        (dict(data_type=12), "data_type must be 8, 16 or 32"),
    ],
)
def test_refuses(changes, words):
    with pytest.raises(InputError, match=words):
        Options(**changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2**63),
        ("num_D", 11),
        ("n_downsample_global", 62),
        ("ignore_label", 2**31),
        ("phase", "../train"),
        ("which_epoch", "../other/latest"),
        ("which_epoch", ""),
    ],
)
def test_refuses_what_can_only_be_a_mistake(name, value):
    with pytest.raises(InputError, match=f"^{name} must be"):
        Options(**{name: value})
