"""What two processes do together in tests/test_distributed.py; run by `torch.multiprocessing`."""

import os
import signal
import sys
from pathlib import Path

import torch

from pix2pixhd_fast import Options, Pix2PixHD
from pix2pixhd_fast.cli import main
from pix2pixhd_fast.inference.synthesizer import Synthesizer
from pix2pixhd_fast.training.distributed import ALONE, World, joined
from pix2pixhd_fast.training.trainer import Trainer
from tests.small_training import SMALL

BATCH, STEPS = 4, 3
MODELS = {
    "features": dict(instance_feat=True),
    "released G1": dict(netG="local", niter_fix_global=1),
    "micro-batches": dict(netG="local", micro_batch=1),
    "fp16, an overflow": dict(amp="fp16"),
}
RUN = dict(batchSize=2, niter=2, niter_decay=1, print_freq=2, pool_size=2, resize_or_crop="crop")
INTERRUPTED_AT = 6  # images, in the middle of the second epoch
PICTURES = 5


def make_batch(step: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(step)
    label = torch.randint(0, 5, (BATCH, 1, 32, 32), generator=random)
    image = torch.rand(BATCH, 3, 32, 32, generator=random) * 2 - 1
    return {"label": label, "inst": label * 1000, "image": image}


def run_options(root: Path, name: str, **changes) -> Options:
    places = dict(dataroot=str(root), checkpoints_dir=str(root / "checkpoints"), name=name)
    return Options(**{**SMALL, **places, **changes})


def train_steps(name: str, world: World = ALONE) -> dict:
    """Three steps, one an epoch, on this process's share: losses, networks, loss scales.

    Of "an overflow", a picture of the last share makes the gradients of the second step NaN.
    """
    model = Pix2PixHD(Options(**SMALL, **MODELS[name]), "cpu", world)
    for gradients in model.optimizers.gradients.values():
        gradients.bucket_bytes = 4096
    share, losses = world.share(BATCH), []
    for step in range(STEPS):
        model.optimizers.start_epoch(step + 1)
        batch = make_batch(step)
        if "overflow" in name and step == 1:
            batch["image"][-1] = torch.nan
        mine = {key: t[world.rank * share : (world.rank + 1) * share] for key, t in batch.items()}
        losses.append(world.means(model.training_step(mine)))
    networks = {letter: net.state_dict() for letter, net in model.networks().items()}
    scales = {name: scaler.get_scale() for name, scaler in model.optimizers.scalers.items()}
    return {"losses": losses, "networks": networks, "scales": scales}


def interrupt(trainer: Trainer, images: int) -> None:
    """Interrupt as Ctrl-C does, in the step that makes so many images."""
    step = trainer.model.training_step

    def counted(batch):
        if trainer.total_images + trainer.options.batchSize == images:
            os.kill(os.getpid(), signal.SIGINT)
        return step(batch)

    trainer.model.training_step = counted


def run_together(rank: int, port: int, root: Path) -> None:
    """All that two processes do; what they found is in `root`."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    with joined(Options(device="cpu")) as world:
        torch.save({name: train_steps(name, world) for name in MODELS}, root / f"steps{rank}.pt")
        Trainer(run_options(root, "whole", **RUN), world).run()
        first = Trainer(run_options(root, "parts", **RUN), world)
        if not world.main:
            interrupt(first, INTERRUPTED_AT)
        try:
            first.run()
        except KeyboardInterrupt:
            second = Trainer(run_options(root, "parts", continue_train=True, **RUN), world)
            assert second.total_images == INTERRUPTED_AT
            second.run()
        Synthesizer(results_options(root, "together"), world).run()


def results_options(root: Path, where: str) -> Options:
    return run_options(root, "whole", isTrain=False, results_dir=str(root / where))


if __name__ == "__main__":  # a process of torchrun that is killed once, in its fourth step
    steps, real = [], Pix2PixHD.training_step

    def mortal(model, batch):
        steps.append(batch)
        fresh = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if fresh and os.environ["RANK"] == "1" and len(steps) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(model, batch)

    Pix2PixHD.training_step = mortal
    sys.exit(main(sys.argv[1:]))
