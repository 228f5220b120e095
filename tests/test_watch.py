"""Memory limits and the watch over numbers that are not finite, in the loop and alone."""

import pytest
import torch

from pix2pixhd_fast import InputError, backend
from pix2pixhd_fast.cli.main import main
from pix2pixhd_fast.errors import NotFiniteError
from pix2pixhd_fast.training import levers, watch
from pix2pixhd_fast.training.trainer import Trainer
from tests import test_training as loop
from tests.test_step import make_batch, make_model

GIB = 2**30
dataroot, options = loop.dataroot, loop.options  # fixtures
PEAKS = {"none": 9.0, "blocks": 7.0, "all": 4.5}


@pytest.fixture
def predicted(monkeypatch):
    """Peaks by mode instead of traces; the subjects that were asked for."""
    asked = []

    def peak(subject):
        asked.append(subject)
        return int(PEAKS[subject.options.checkpoint] * GIB)

    monkeypatch.setattr(levers, "peak_bytes", peak)
    return asked


@pytest.mark.parametrize(
    "limit, given, picked, tries",
    [(0, "none", "none", 0), (10.1, "none", "none", 1), (9.9, "none", "blocks", 2),
     (6, "none", "all", 3), (20, "blocks", "blocks", 1)],
)  # fmt: skip
def test_the_cheapest_that_fits_is_picked(options, predicted, capsys, limit, given, picked, tries):
    trainer = Trainer(options(memory_limit=limit, checkpoint=given))
    assert trainer.options.checkpoint == trainer.model.options.checkpoint == picked
    assert len(predicted) == tries
    assert (f"--checkpoint {picked}, which takes" in capsys.readouterr().out) == (limit > 0)
    assert all(subject.size == (32, 24) for subject in predicted)


def test_a_limit_that_nothing_meets_is_refused_with_the_least(options, predicted):
    with pytest.raises(InputError, match="memory_limit is 5 GiB, .* at least 5.5 GiB at 32x24"):
        Trainer(options(memory_limit=5.0))


def test_advice_for_bf16(options, monkeypatch):
    sizes = {"off": 4 * GIB, "bf16": 3 * GIB}
    monkeypatch.setattr(levers, "peak_bytes", lambda subject: sizes[subject.options.amp])
    o = options()
    text = levers.bf16_advice(o, Trainer(o).dataset)
    assert "4.0 GiB at 32x24" in text and "instead of 5.0" in text


def named(change, kept="fused"):
    model = make_model()
    change(model)
    with backend(kept):
        return watch.first_not_finite(model, make_batch())


def set_weight(net, layer, value):
    def change(model):
        sequence = getattr(getattr(model, net), layer)
        sequence[0 if net == "netD" else 1].weight.data.fill_(value)

    return change


def test_the_first_module_is_named():
    nan, huge = float("nan"), 3e38
    assert "netG.model1_1.1 is the first module whose weight" in named(
        set_weight("netG", "model1_1", nan)
    )
    assert "netD.scale1_layer0.0 is the first module whose weight" in named(
        set_weight("netD", "scale1_layer0", nan)
    )
    assert "netG.model.1 is the first module that makes finite" in named(
        set_weight("netG", "model", huge)
    )
    assert "all modules give finite numbers" in named(lambda model: None)


def test_finite_losses_cost_no_forward():
    watch.check_losses({"G_GAN": 1.0}, None, None)
    model = make_model()
    set_weight("netG", "model1_1", float("inf"))(model)
    with pytest.raises(NotFiniteError, match=r"\(G_GAN nan\): netG.model1_1.1 .*--lr"):
        watch.check_losses({"G_GAN": float("nan"), "D_real": 1.0}, model, make_batch())


def test_training_ends_before_bad_weights_are_saved(options, monkeypatch, capsys):
    o = options(name="bad", save_latest_freq=2, print_freq=1000)
    trainer = Trainer(o)
    train = trainer.model.training_step

    def broken(batch):
        if trainer.total_images == 2:
            trainer.model.netG.model[1].weight.data[0] = float("nan")
        return train(batch)

    trainer.model.training_step = broken
    with pytest.raises(NotFiniteError, match="netG.model.1"):
        trainer.run()
    saved = torch.load(trainer.folder / "latest_net_G.pth", weights_only=True)
    assert all(value.isfinite().all() for value in saved.values())
    monkeypatch.setattr("pix2pixhd_fast.cli.train.Trainer", lambda *_: trainer)
    bad = {"D": float("inf")}, make_model(), make_batch()
    monkeypatch.setattr(trainer, "run", lambda: watch.check_losses(*bad))
    assert main(["train"]) == 1
    assert "pix2pixhd-fast: the losses are not finite any more (D inf)" in capsys.readouterr().err
