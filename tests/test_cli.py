"""The command line: the original's command lines, exit statuses, one sentence for bad input."""

import subprocess
import sys
from dataclasses import fields

import pytest

from pix2pixhd_fast import InputError, Options
from pix2pixhd_fast.cli.flags import options_from
from pix2pixhd_fast.cli.main import _parser, main

# flags of the original's scripts/*.sh
ORIGINAL_SCRIPTS = [
    "train --name label2city_512p",
    "train --name label2city_512p_feat --instance_feat",
    "train --label_nc 35 --name label2city_512p --batchSize 8 --gpu_ids 0,1,2,3,4,5,6,7",
    "train --name label2city_512p --fp16",
    "train --name label2city_1024p --netG local --ngf 32 --num_D 3 "
    "--load_pretrain checkpoints/label2city_512p/ --niter 50 --niter_decay 50 "
    "--niter_fix_global 10 --resize_or_crop crop --fineSize 1024",
    "train --name label2city_1024p --netG local --ngf 32 --num_D 3 --load_pretrain "
    "checkpoints/label2city_512p/ --niter_fix_global 10 --resize_or_crop none",
    "train --name label2city_1024p_feat --netG local --ngf 32 --num_D 3 --load_pretrain "
    "checkpoints/label2city_512p_feat/ --niter 50 --niter_decay 50 --niter_fix_global 10 "
    "--resize_or_crop crop --fineSize 896 --instance_feat --load_features",
    "test --name label2city_512p",
    "test --name label2city_1024p --netG local --ngf 32 --resize_or_crop none",
    "test --name label2city_1024p_feat --netG local --ngf 32 --resize_or_crop none --instance_feat",
]


@pytest.mark.parametrize("line", ORIGINAL_SCRIPTS)
def test_accepts_the_originals_command_lines(line):
    command, *flags = line.split()
    options = options_from(_parser().parse_args([command, *flags]), command)
    assert options.isTrain == (command == "train")
    for flag, value in zip(flags, [*flags[1:], "--"], strict=True):
        if flag.startswith("--"):
            expected = True if value.startswith("--") else value
            assert str(getattr(options, flag[2:])) == str(expected)


@pytest.mark.parametrize("command", ["train", "test"])
def test_every_option_is_a_flag(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    for option in fields(Options):
        assert (f"--{option.name} " in shown or f"[--{option.name}]" in shown) == (
            option.metadata["phase"] in ("both", command)
        ), option.name


BAD = {
    "choice": ("train --netG unet", "netG must be one of"),
    "range": ("train --ngf 0", "ngf must be at least 1"),
    "no data": ("train --dataroot /nowhere --no_vgg_loss", "/nowhere"),
    "no checkpoint": ("test --dataroot {data} --checkpoints_dir {data}/none", "latest_net_G.pth"),
    "onnx": ("test --onnx model.onnx", "--onnx is not available"),
    "features": ("test --instance_feat", "use_encoded_image"),
    "gpu ids": ("train --gpu_ids all --no_vgg_loss --dataroot {data}", "gpu_ids"),
    "demo minutes": ("demo --minutes 0", "minutes must be positive"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_status_2(name, tmp_path, capsys):
    line, words = BAD[name]
    from PIL import Image

    for folder in ("train_label", "train_inst", "train_img", "test_label", "test_inst"):
        (tmp_path / folder).mkdir()
        mode = "RGB" if folder == "train_img" else "L"
        Image.new(mode, (32, 32)).save(tmp_path / folder / "0.png")
    assert main(line.format(data=tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert error.startswith("pix2pixhd-fast: ")


def test_unknown_flags_and_abbreviations_are_refused(capsys):
    for line in ("train --ngff 3", "train --load 3", "fly"):
        with pytest.raises(SystemExit) as exit:
            main(line.split())
        assert exit.value.code == 2


def test_a_refused_option_names_itself():
    with pytest.raises(InputError, match="engine"):
        options_from(_parser().parse_args(["test", "--engine", "x"]), "test")


def test_doctor_and_module_entry():
    run = subprocess.run(
        [sys.executable, "-m", "pix2pixhd_fast", "doctor"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    for word in ("torch", "binary", "CPU kernels", "VGG19 weights", "GPU"):
        assert word in run.stdout


def test_import_loads_neither_triton_nor_cuda():
    code = (
        "import sys, pix2pixhd_fast, pix2pixhd_fast.networks, torch; "
        "assert 'triton' not in sys.modules and not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_wrong_flag_is_one_line(capsys):
    for line in ("train --ngf abc", "train --name", "test --unknown 3"):
        with pytest.raises(SystemExit):
            main(line.split())
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 1 TB")])
def test_no_memory_is_one_sentence_and_status_1(error, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr("pix2pixhd_fast.cli.train.run", fail)
    assert main(["train"]) == 1
    assert "out of memory" in capsys.readouterr().err
