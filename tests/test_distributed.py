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
