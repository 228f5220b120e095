"""Processes work as one: two with gloo, on the CPU, and one that only seems to be two."""

import multiprocessing
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
from tests.small_training import SMALL, write_pictures


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where two processes have done all of `two_processes.run_together`."""
    root = tmp_path_factory.mktemp("two")
    write_pictures(root, two.PICTURES)
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    # forked from a process that has imported all they need: that takes longer than what they do
    multiprocessing.set_forkserver_preload([two.__name__, "torch._dynamo"])
    start = torch.multiprocessing.start_processes
    start(two.run_together, (port, root), nprocs=2, start_method="forkserver")
    return root


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path, two.PICTURES)
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
    states = [
        torch.load(folder / "latest_state.pth", weights_only=True) for folder in (whole, parts)
    ]
    for one, other in zip(states[0]["pools"], states[1]["pools"], strict=True):
        assert len(one["images"]) == 2
        for image, same in zip(one["images"], other["images"], strict=True):
            assert image["num_labels"] == same["num_labels"]
            for part in ("labels", "edges", "dense"):
                assert torch.equal(image[part], same[part])
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
    for option, value in {**SMALL, **places, **options}.items():
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


@dataclass(frozen=True)
class Mirrored(World):
    """Seems to be two processes that have the same gradients; `main_order` is of the other one."""

    size: int = 2
    main_order: tuple[int, ...] | None = None

    def of_main(self, value):
        return value if self.main_order is None else list(self.main_order)

    def start_sum(self, tensor):
        return tensor.mul_(2)

    def finish_sum(self, work):
        assert work is not None


class Mixed(nn.Module):
    """Three layers, of which the middle one has weights in channels_last and the last is unused."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = (nn.Conv2d(2, 2, 3) for _ in range(3))
        self.second.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.second(self.first(x)).square().mean()


def gradients_of(net):
    return {key: None if p.grad is None else p.grad.clone() for key, p in net.named_parameters()}


def step_by_buckets(net, x, gradients):
    """A step of two backward passes; how many buckets had begun when the second ended."""
    net.zero_grad()
    net(x[:1]).backward()
    with gradients.overlapping():
        net(x[1:]).backward()
        begun = gradients._started
    gradients.reduce()
    return begun


def test_buckets_hold_the_gradients_and_begin_during_backward():
    net, plain, x = Mixed(), Mixed(), torch.rand(2, 2, 8, 8)
    plain.load_state_dict(net.state_dict())
    gradients = SharedGradients(net.parameters(), Mirrored(), bucket_bytes=1)
    (plain(x[:1]) + plain(x[1:])).backward()
    for step in range(3):
        assert step_by_buckets(net, x, gradients) == (
            4 if step else 0
        )  # the first learns the order
        for key, expected in gradients_of(plain).items():
            found = gradients_of(net)[key]
            assert (found is None and expected is None) or torch.equal(found, expected), key
        assert net.second.weight.grad.stride() == net.second.weight.stride()


def test_large_buckets_hold_several_gradients():
    net = Mixed()
    gradients = SharedGradients(net.parameters(), Mirrored())
    step_by_buckets(net, torch.rand(2, 2, 8, 8), gradients)
    used = [*net.first.parameters(), *net.second.parameters()]
    assert len({p.grad.untyped_storage().data_ptr() for p in used}) == 1


def test_frozen_parameters_take_no_part():
    net, x = Mixed(), torch.rand(2, 2, 8, 8)
    gradients = SharedGradients(net.parameters(), Mirrored(), bucket_bytes=1)
    for trained, buckets in ((False, 2), (True, 4), (False, 2)):
        net.first.requires_grad_(trained)
        for expected in (0, buckets):
            assert step_by_buckets(net, x, gradients) == expected
        assert (net.first.weight.grad is not None) == trained


def test_gradients_that_do_not_fit_the_buckets_are_errors():
    net, x = Mixed(), torch.rand(2, 2, 8, 8)
    gradients = SharedGradients(net.parameters(), Mirrored())
    step_by_buckets(net, x, gradients)
    with pytest.raises(RuntimeError, match="second gradient"), gradients.overlapping():
        net(x).backward()
        net(x).backward()
    gradients = SharedGradients(net.parameters(), Mirrored())
    step_by_buckets(net, x, gradients)
    net.unused.weight.grad = torch.zeros_like(net.unused.weight)
    with pytest.raises(RuntimeError, match="had none in the first step"):
        gradients.reduce()
    other = SharedGradients(net.parameters(), Mirrored(main_order=(0, 1)))
    with pytest.raises(RuntimeError, match="in some processes only"):
        other.reduce()


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
@pytest.mark.parametrize("pool_size", [0, 2])
def test_micro_batches_add_up_to_the_batch(micro_batch, pool_size):
    o = dict(SMALL, instance_feat=True, pool_size=pool_size)
    whole = Pix2PixHD(Options(**o), "cpu")
    parts = Pix2PixHD(Options(**o, micro_batch=micro_batch), "cpu")
    for step in range(2):
        expected = whole.training_step(two.make_batch(step))
        losses = parts.training_step(two.make_batch(step))
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name
        for key, parameter in whole.named_parameters():
            if parameter.grad is not None:
                found = parts.get_parameter(key).grad
                assert_close_l2(found, parameter.grad, 1e-3, f"gradient of {key}")
    assert_close_l2(parts.last_fake, whole.last_fake, 1e-4, "pictures")


@pytest.mark.parametrize("start", [0, 2, 3])
def test_shares_make_up_the_batches(pictures, start):
    o = two.run_options(pictures, "shares", batchSize=2)
    dataset = AlignedDataset(o)
    whole = [batch["path"] for batch in make_loader(dataset, o, 2, start)]
    shares = [
        [batch["path"] for batch in make_loader(dataset, o, 2, start, rank, 2)] for rank in range(2)
    ]
    assert [first + second for first, second in zip(*shares, strict=True)] == whole


def test_a_batch_that_cannot_be_shared_is_refused(pictures):
    with pytest.raises(InputError, match="batchSize .* divisible .* got 3 for 2 processes"):
        Trainer(two.run_options(pictures, "odd", batchSize=3), Mirrored())


def test_every_process_has_a_device(monkeypatch):
    assert devices(Options(device="cpu"), 3) == ["cpu"] * 3
    assert devices(Options(gpu_ids="-1"), 2) == ["cpu"] * 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert devices(Options(), 3) == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices(Options(device="cuda"), 2) == ["cuda:0", "cuda:1"]
    assert devices(Options(gpu_ids="3,1,0"), 2) == ["cuda:3", "cuda:1"]
    for wrong, count in (
        (dict(device="cuda:1"), 2),
        (dict(), 5),
        (dict(gpu_ids="0,7"), 2),
        (dict(gpu_ids="0,1"), 3),
        (dict(gpu_ids="1,1"), 2),
    ):
        with pytest.raises(InputError, match="device must be|need a GPU each|gpu_ids must name"):
            devices(Options(**wrong), count)


def test_a_run_that_may_be_restarted_never_goes_on_from_an_older_one(pictures):
    older = Trainer(two.run_options(pictures, "again", **two.RUN))
    older.run()
    fresh = Trainer(two.run_options(pictures, "again", **two.RUN), World(may_restart=True))
    fresh._epoch = lambda epoch, bar: False  # fails before its first checkpoint
    fresh.run()
    restarted = Trainer(two.run_options(pictures, "again", **two.RUN), World(restarted=True))
    assert restarted.total_images == 0
    assert restarted.options.continue_train
    restarted.run()
    assert len(log_of(restarted.folder)) == 6
    networks = {letter: net.state_dict() for letter, net in older.model.networks().items()}
    assert_same_networks(saved(restarted.folder), networks, 0)
