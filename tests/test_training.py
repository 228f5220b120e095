"""The training and test loops on small data: resuming to the bit, files, interrupts, pages."""

import os
import signal

import pytest
import torch

from pix2pixhd_fast import InputError, Options
from pix2pixhd_fast.inference.synthesizer import Synthesizer
from pix2pixhd_fast.report import read_loss_log
from pix2pixhd_fast.training.trainer import Trainer
from tests import small_training

SMALL = dict(small_training.SMALL, niter=2, niter_decay=2, print_freq=1)
PICTURES = 4


@pytest.fixture
def dataroot(tmp_path):
    small_training.write_pictures(tmp_path, PICTURES)
    return tmp_path


@pytest.fixture
def options(dataroot):
    def make(**changes):
        common = dict(dataroot=str(dataroot), checkpoints_dir=str(dataroot / "checkpoints"))
        return Options(**{**SMALL, **common, **changes})

    return make


def losses_of(folder):
    return [(r.epoch, r.iters, r.losses) for r in read_loss_log(folder / "loss_log.txt")]


def stop_after(trainer, images):
    """Interrupt as Ctrl-C does, once so many images are done."""
    step = trainer.model.training_step

    def counted(batch):
        if trainer.total_images + 1 == images:
            os.kill(os.getpid(), signal.SIGINT)
        return step(batch)

    trainer.model.training_step = counted


CONTINUED = {
    "features, pool, crops": dict(instance_feat=True, pool_size=2, resize_or_crop="crop"),
    "frozen G1": dict(netG="local", niter_fix_global=2),
    "batch norm, bf16": dict(norm="batch", amp="bf16"),
}


@pytest.mark.parametrize("name", CONTINUED)
@pytest.mark.parametrize("images", [3, 4, 11])
def test_continued_training_equals_uninterrupted_to_the_bit(options, name, images):
    whole = Trainer(options(name="whole", **CONTINUED[name]))
    whole.run()
    first = Trainer(options(name="parts", **CONTINUED[name]))
    stop_after(first, images)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = Trainer(options(name="parts", continue_train=True, **CONTINUED[name]))
    assert second.total_images == images
    torch.manual_seed(99)
    second.run()
    for letter, net in whole.model.networks().items():
        other = second.model.networks()[letter].state_dict()
        for key, value in net.state_dict().items():
            assert torch.equal(value, other[key]), f"{letter} {key}"
    assert losses_of(first.folder) == losses_of(whole.folder)
    assert len(losses_of(first.folder)) == 4 * PICTURES


def test_log_rows_behind_the_checkpoint_are_repeated_not_doubled(options):
    o = dict(name="killed", save_latest_freq=3, niter=1, niter_decay=0)
    killed = Trainer(options(**o))
    killed._end_epoch = lambda epoch: None  # the last rows have no checkpoint
    killed.run()
    assert len(losses_of(killed.folder)) == 4
    again = Trainer(options(**o, continue_train=True))
    assert again.total_images == 3
    again.run()
    assert [row[:2] for row in losses_of(again.folder)] == [(1, i) for i in (1, 2, 3, 4)]


def test_time_is_up(options):
    first = Trainer(options(name="time"))
    first.run(minutes=0)
    assert first.total_images == 1
    again = Trainer(options(name="time", continue_train=True))
    assert again.total_images == 1
    again.run()
    assert again.total_images == 4 * PICTURES


def test_files_of_a_run(options):
    trainer = Trainer(options(name="files", save_epoch_freq=3, display_freq=4, instance_feat=True))
    trainer.run()
    names = {p.name for p in trainer.folder.iterdir()}
    expected = {f"{label}_net_{n}.pth" for label in ("latest", "3") for n in "GDE"}
    expected |= {"latest_state.pth", "3_state.pth", "opt.txt", "loss_log.txt", "loss_curves.png"}
    assert expected <= names and (trainer.folder / "web/index.html").is_file()
    assert not any(name.startswith(".") for name in names)
    assert "ngf: 4\n" in (trainer.folder / "opt.txt").read_text()
    assert len(list((trainer.folder / "web/images").glob("epoch*_synthesized_image.jpg"))) == 4
    assert Trainer(options(name="files", instance_feat=True, continue_train=True)).run() is None


def test_tensorboard(options):
    trainer = Trainer(options(name="tb", tf_log=True, display_freq=2, niter=1, niter_decay=0))
    trainer.run()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trainer.folder / "logs"))
    events.Reload()
    assert len(events.Scalars("G_GAN")) == PICTURES
    assert events.Tags()["images"]


def test_coarse_to_fine(options):
    coarse = Trainer(options(name="G1", ngf=8, niter=1, niter_decay=0))
    coarse.run()
    fine = Trainer(
        options(
            name="G2", netG="local", num_D=3, load_pretrain=str(coarse.folder), niter_fix_global=1
        )
    )
    kept = coarse.model.netG.state_dict()
    for key, value in fine.model.netG.model.state_dict().items():
        assert torch.equal(value, kept[f"model.{key}"])
    fine.run()


def test_original_checkpoint_without_state(options, capsys):
    first = Trainer(options(name="theirs", niter=1, niter_decay=0))
    first.run()
    (first.folder / "latest_state.pth").unlink()
    (first.folder / "iter.txt").write_text("3\n0\n")
    again = Trainer(options(name="theirs", continue_train=True))
    assert (again.position.epoch, again.position.images) == (3, 0)
    assert "no optimiser state" in capsys.readouterr().out


def test_changed_options_are_said(options, capsys):
    Trainer(options(name="changed", niter=1, niter_decay=0)).run()
    Trainer(options(name="changed", continue_train=True, lr=0.1, niter=1, niter_decay=3))
    assert "lr 0.0002 -> 0.1" in capsys.readouterr().out


CHANGES = {
    "released early": (dict(netG="local", niter_fix_global=4), dict(netG="local")),
    "fixed late": (dict(netG="local"), dict(netG="local", niter_fix_global=4)),
    "fp16 on": ({}, dict(amp="fp16")),
    "other momentum": ({}, dict(beta1=0.9)),
    "smaller pool": (dict(pool_size=3), dict(pool_size=1)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_goes_on_with_other_options(options, name):
    before, after = CHANGES[name]
    first = Trainer(options(name="c", **before))
    stop_after(first, 4)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = Trainer(options(name="c", continue_train=True, **after))
    assert {g["betas"][0] for g in second.model.optimizers.G.param_groups} == {
        after.get("beta1", 0.5)
    }
    assert len(second.model.pool.images) <= after.get("pool_size", 0)
    second.run()


@pytest.mark.parametrize("real", [False, True])
def test_results_page(options, dataroot, real):
    features = dict(instance_feat=True) if real else {}
    Trainer(options(name="t", niter=1, niter_decay=0, **features)).run()
    o = options(
        name="t",
        isTrain=False,
        results_dir=str(dataroot / "results"),
        how_many=3,
        batchSize=2,
        use_encoded_image=real,
        **features,
    )
    page = Synthesizer(o).run()
    assert page == dataroot / "results/t/test_latest/index.html"
    pictures = {p.name for p in (page.parent / "images").iterdir()}
    kinds = ["input_label", "synthesized_image"] + ["real_image"] * real
    assert pictures == {f"{i}_{kind}.jpg" for i in range(3) for kind in kinds}
    assert all(name in page.read_text() for name in pictures)


def test_picture_to_picture(options, dataroot):
    for kind, folder in (("A", "img"), ("B", "img")):
        (dataroot / f"train_{kind}").symlink_to(dataroot / f"train_{folder}")
    Trainer(
        options(name="rgb", label_nc=0, no_instance=True, niter=1, niter_decay=0, display_freq=1)
    ).run()


def test_refuses_before_any_work(options, dataroot):
    with pytest.raises(InputError, match="isTrain"):
        Synthesizer(options())
    with pytest.raises(InputError, match="need a source"):
        Synthesizer(options(isTrain=False, instance_feat=True))
    with pytest.raises(InputError, match="batchSize"):
        Trainer(options(batchSize=9))
    with pytest.raises(InputError, match="vgg_weights"):
        Trainer(options(no_vgg_loss=False, vgg_weights="/nowhere.pth"))
    with pytest.raises(InputError, match="there is no folder"):
        Trainer(options(name="none", continue_train=True))
    assert not (dataroot / "checkpoints").exists()


@pytest.mark.parametrize("wrong", [{}, {"epoch": "one"}, {"optimizers": {}}])
def test_a_foreign_state_is_named(options, wrong):
    trainer = Trainer(options(niter=1, niter_decay=0))
    trainer.run()
    path = trainer.folder / "latest_state.pth"
    state = torch.load(path, weights_only=True)
    torch.save({**state, **wrong} if wrong else {}, path)
    with pytest.raises(InputError, match="latest_state.pth (must hold|does not fit)"):
        Trainer(options(continue_train=True))


def test_a_folder_that_is_no_text_is_trained_on(options, dataroot):
    place = os.fsdecode(os.fsencode(dataroot) + b"/\xff")
    trainer = Trainer(options(niter=1, niter_decay=0, checkpoints_dir=place))
    trainer.run()
    assert os.fsencode(place) in (trainer.folder / "opt.txt").read_bytes()


@pytest.mark.parametrize("text", ["1 2 3", "-3 5", "0 0", "1 -5", "one two"])
def test_a_damaged_position_of_the_original_is_named(options, text):
    trainer = Trainer(options(niter=1, niter_decay=0))
    trainer.run()
    (trainer.folder / "latest_state.pth").unlink()
    (trainer.folder / "iter.txt").write_text(text)
    with pytest.raises(InputError, match="iter.txt must hold two numbers"):
        Trainer(options(continue_train=True))
