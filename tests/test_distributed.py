"""Several processes are as one: two with gloo, on the CPU, and processes that only seem to be two."""

import socket
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
import torch.multiprocessing
from torch import nn

from pix2pixhd_fast import InputError, Options, Pix2PixHD
from pix2pixhd_fast.data import AlignedDataset, make_loader
from pix2pixhd_fast.inference.synthesizer import Synthesizer
from pix2pixhd_fast.report import read_loss_log
from pix2pixhd_fast.training.distributed import World, devices
from pix2pixhd_fast.training.gradients import SharedGradients
from pix2pixhd_fast.training.trainer import Trainer
from tests import two_processes as two
from tests.helpers import ROOT, assert_close_l2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where two processes have done all of `two_processes.run_together`."""
    root = tmp_path_factory.mktemp("two")
    two.write_pictures(root)
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    torch.multiprocessing.spawn(two.run_together, (port, root), nprocs=2)
    return root


@pytest.fixture
def pictures(tmp_path):
    two.write_pictures(tmp_path)
    return tmp_path


def saved(folder, label="latest"):
    return {
        letter: torch.load(folder / f"{label}_net_{letter}.pth", weights_only=True)
        for letter in "GD"
    }


def log_of(folder):
    return [(row.epoch, row.iters, row.losses) for row in read_loss_log(folder / "loss_log.txt")]


def assert_same_networks(found, expected, tol):
    for letter, tensors in expected.items():
        for key, value in tensors.items():
            if tol:
                assert_close_l2(found[letter][key], value, tol, f"{letter} {key}")
            else:
                assert torch.equal(found[letter][key], value), f"{letter} {key}"


@pytest.mark.parametrize("name", two.MODELS)
def test_two_processes_train_as_one(root, name):
    both = [torch.load(root / f"steps{rank}.pt", weights_only=True)[name] for rank in range(2)]
    assert_same_networks(both[1]["networks"], both[0]["networks"], 0)
    assert both[0]["scales"] == both[1]["scales"]
    one = two.train_steps(name)
    assert both[0]["scales"] == one["scales"]
    assert_same_networks(both[0]["networks"], one["networks"], 1e-3)
    for got, expected in zip(both[0]["losses"], one["losses"], strict=True):
        assert got == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_a_run_of_two_processes_is_that_of_one(root, pictures):
    one = Trainer(two.run_options(pictures, "one", **{**two.RUN, "pool_size": 0}))
    one.run()
    assert log_of(root / "checkpoints/whole")[0] == log_of(one.folder)[0]
    assert len(log_of(one.folder)) == 6


def test_a_resumed_run_of_two_processes_is_the_uninterrupted_one_to_the_bit(root):
    whole, parts = root / "checkpoints/whole", root / "checkpoints/parts"
    assert_same_networks(saved(parts), saved(whole), 0)
    states = [torch.load(folder / "latest_state.pth", weights_only=True) for folder in (whole, parts)]
    for one, other in zip(states[0]["pools"], states[1]["pools"], strict=True):
        assert len(one["images"]) == 2
        assert all(map(torch.equal, one["images"], other["images"]))
        assert torch.equal(one["rng"], other["rng"])
    assert log_of(parts) == log_of(whole)


def test_a_killed_process_costs_the_steps_since_the_last_checkpoint(root):
    run = torchrun(root, "killed", "--max_restarts", "1", **two.RUN, save_latest_freq=4)
    assert run.returncode == 0, run.stderr
    assert "going on from epoch 1, image 4" in run.stdout
    killed, whole = root / "checkpoints/killed", root / "checkpoints/whole"
    assert_same_networks(saved(killed), saved(whole), 0)
    assert log_of(killed) == log_of(whole)


def test_an_error_of_one_process_ends_all_with_its_sentence(pictures):
    (pictures / "train_img/1.png").write_bytes(b"no picture")
    run = torchrun(pictures, "broken", **two.RUN, serial_batches=True)
    assert run.returncode != 0
    sentences = run.stderr.split("pix2pixhd-fast: ")[1:]
    assert len(sentences) == 1 and "train_img/1.png" in sentences[0], run.stderr


def torchrun(root, name, *launcher, **options):
    """`train` by two processes, in the words of a user; `two_processes` is the module."""
    flags = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags += [*launcher, "-m", "tests.two_processes", "train"]
    places = dict(dataroot=root, checkpoints_dir=root / "checkpoints", name=name)
    for option, value in {**two.SMALL, **places, **options}.items():
        flags += [f"--{option}"] if value is True else [f"--{option}", str(value)]
    return subprocess.run(flags, cwd=ROOT, capture_output=True, text=True)


def test_results_of_two_processes_are_those_of_one(root):
    alone = Synthesizer(two.results_options(root, "alone")).run().parent
    together = root / "together/whole/test_latest"
    files = sorted(path.relative_to(alone) for path in alone.rglob("*.*"))
    assert files == sorted(path.relative_to(together) for path in together.rglob("*.*"))
    assert len(files) == 1 + 2 * two.PICTURES
    for file in files:
        assert (alone / file).read_bytes() == (together / file).read_bytes(), file
