"""The loop of `pix2pixhd-fast train`: data, updates, pictures, checkpoints."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from pix2pixhd_fast.checkpoints import CheckpointFolder, load_pretrained
from pix2pixhd_fast.data import AlignedDataset, make_loader
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.model import Pix2PixHD
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.report.files import make_folder, replace_file
from pix2pixhd_fast.training.levers import bf16_advice, within_limit
from pix2pixhd_fast.training.monitor import Monitor
from pix2pixhd_fast.training.progress import Position, losses_text, progress_bar
from pix2pixhd_fast.training.watch import check_losses


class Trainer:
    """Trains by `options` in `<checkpoints_dir>/<name>`; `run` returns when all epochs are done.

    The constructor does all that can fail for bad input: it finds the data, builds the model, loads
    what is to be loaded. A run that goes on (`continue_train`) repeats what the uninterrupted run
    would have done, to the bit on the CPU. The first interrupt (Ctrl-C, SIGTERM) ends the run after
    the present step, with a checkpoint; the second at once.
    """

    def __init__(self, options: Options):
        self.folder = Path(options.checkpoints_dir) / options.name
        self.dataset = AlignedDataset(options)
        make_loader(self.dataset, options)
        self.options = options = within_limit(options, self.dataset)
        self.images_per_epoch = len(self.dataset) // options.batchSize * options.batchSize
        self.checkpoints = CheckpointFolder(self.folder)
        self.model = Pix2PixHD(options)
        self.position = Position()
        self.interrupted = False
        if options.continue_train:
            self._resume()
        elif options.load_pretrain:
            for letter, net in self.model.networks().items():
                print(
                    load_pretrained(
                        options.load_pretrain, options.which_epoch, letter, net, options
                    )
                )

    @property
    def total_images(self) -> int:
        """Images seen since the start of the training."""
        return (self.position.epoch - 1) * self.images_per_epoch + self.position.images

    def run(self, minutes: float = math.inf) -> None:
        """Train from the present position to the end of the last epoch.

        When `minutes` are over, the run ends after the present step, with a checkpoint.
        """
        self.deadline = time.monotonic() + 60 * minutes
        o = self.options
        last = o.niter + o.niter_decay
        if self.position.epoch > last:
            print(f"{o.name} is trained: all {last} epochs are done")
            return
        self._announce()
        self.monitor = Monitor(o, self.folder, self.images_per_epoch, self.position)
        bar = progress_bar(last * self.images_per_epoch, self.total_images)
        with closing(self.monitor), self._stopping_on_signals(), bar:
            for epoch in range(self.position.epoch, last + 1):
                if not self._epoch(epoch, bar):
                    break
        print(f"done: {self.folder}")

    def save(self, labels: tuple[str, ...]) -> None:
        """Write the networks and all that is needed to go on, under each label."""
        self.checkpoints.save(labels, self.model.networks(), self._state())

    def _announce(self) -> None:
        o = self.options
        if not o.continue_train:
            write_options(o, self.folder / "opt.txt")
        print(
            f"training {o.name} on {self.model.device}: {len(self.dataset)} pictures from "
            f"{o.dataroot}, epochs {self.position.epoch} to {o.niter + o.niter_decay}, "
            f"into {self.folder}",
            flush=True,
        )
        if self.model.device.type == "cuda" and o.amp == "off" and torch.cuda.is_bf16_supported():
            print(bf16_advice(o, self.dataset), flush=True)
        if "," in o.gpu_ids and self.model.device.type == "cuda":
            print(f"--gpu_ids {o.gpu_ids}: this version trains on one GPU, {self.model.device}")

    def _epoch(self, epoch: int, bar: tqdm) -> bool:
        """Train the rest of an epoch; return whether there was time for all of it."""
        self.position.epoch = epoch
        self.model.optimizers.start_epoch(epoch)
        bar.set_description(f"epoch {epoch}/{self.options.niter + self.options.niter_decay}")
        start = time.perf_counter()
        for batch in make_loader(self.dataset, self.options, epoch, self.position.images):
            losses = self.model.training_step(batch)
            count = batch["label"].shape[0]
            self.position.images += count
            seconds = (time.perf_counter() - start) / count
            self._after_step(batch, losses, seconds, bar)
            bar.update(count)
            if time.monotonic() > self.deadline:
                self.save(("latest",))
                return False
            start = time.perf_counter()
        self._end_epoch(epoch)
        return True

    def _after_step(self, batch: dict, losses: dict, seconds: float, bar: tqdm) -> None:
        o, now = self.options, self.total_images
        shown = self.monitor.due(now, o.print_freq)
        saved = self.monitor.due(now, o.save_latest_freq) or self.interrupted
        if shown or saved or self.monitor.bar_is_old():
            values = {name: loss.item() for name, loss in losses.items()}
            check_losses(values, self.model, batch)
            bar.set_postfix_str(losses_text(values, self.model.loss_names), refresh=False)
            if shown:
                self.monitor.log(self.position, now, seconds, values)
        if self.monitor.due(now, o.display_freq):
            self.monitor.show(self.position, now, batch, self.model.last_fake)
        if self.monitor.due(now, o.save_latest_freq):
            self.save(("latest",))
        if self.interrupted:
            self.save(("latest",))
            raise KeyboardInterrupt

    def _end_epoch(self, epoch: int) -> None:
        o = self.options
        self.position = Position(epoch + 1, 0)
        if epoch % o.save_epoch_freq == 0:
            self.save(("latest", str(epoch)))
        elif epoch == o.niter + o.niter_decay:
            self.save(("latest",))

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        self.interrupted = False
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return
        before = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self, number: int, frame: object) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        tqdm.write("stopping after this step; once more to stop at once")

    def _state(self) -> dict:
        return {
            "epoch": self.position.epoch,
            "images": self.position.images,
            "optimizers": self.model.optimizers.state_dict(),
            "pool": self.model.pool.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "options": asdict(self.options),
        }

    def _resume(self) -> None:
        o = self.options
        state = self.checkpoints.load(o.which_epoch, self.model.networks(), o, with_state=True)
        if state is None:
            self.position = _original_position(self.folder / "iter.txt")
            print(
                f"{o.which_epoch} has no optimiser state (a checkpoint of the original): Adam "
                f"starts afresh in epoch {self.position.epoch}"
            )
            return
        path = self.folder / f"{o.which_epoch}_state.pth"
        _check_state(state, path)
        try:
            self.model.optimizers.load_state_dict(state["optimizers"])
        except (KeyError, ValueError) as e:
            raise InputError(
                f"{path} does not fit these networks: it must be the state saved with them"
            ) from e
        self.model.pool.load_state_dict(state["pool"], self.model.device)
        torch.set_rng_state(state["rng"])
        if len(state["rng_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["rng_cuda"])
        self.position = Position(state["epoch"], state["images"])
        changed = changed_options(o, state["options"])
        if changed:
            print(f"going on with other options than before: {', '.join(changed)}")
        print(f"going on from epoch {self.position.epoch}, image {self.position.images}")


_STATE = dict(
    epoch=int, images=int, optimizers=dict, pool=dict, rng=torch.Tensor, rng_cuda=list, options=dict
)


def _check_state(state: dict, path: Path) -> None:
    wrong = [name for name, kind in _STATE.items() if not isinstance(state.get(name), kind)]
    if wrong:
        raise InputError(
            f"{path} must hold the state of a training saved by this package, "
            f"its {', '.join(wrong)} is missing or of another type"
        )


# where a run is kept and shown, not what it computes
_WITHOUT_EFFECT = """
    continue_train which_epoch checkpoints_dir dataroot nThreads verbose display_freq print_freq
    save_latest_freq save_epoch_freq no_html display_winsize tf_log gpu_ids device load_pretrain
    checkpoint memory_limit
""".split()


def changed_options(options: Options, before: dict) -> list[str]:
    """Name the options that change the result of a training and differ from `before`."""
    return [
        f"{name} {before[name]} -> {value}"
        for name, value in asdict(options).items()
        if name in before and value != before[name] and name not in _WITHOUT_EFFECT
    ]


def write_options(options: Options, path: Path) -> None:
    """Write `opt.txt` in the original's layout: one `name: value` line per option, sorted."""
    lines = [f"{name}: {value}" for name, value in sorted(asdict(options).items())]
    text = "\n".join(
        ["------------ Options -------------", *lines, "-------------- End ----------------"]
    )
    make_folder(path.parent)
    with replace_file(path) as file:
        file.write(os.fsencode(f"{text}\n"))


def _original_position(path: Path) -> Position:
    """The position in the original's iter.txt (epoch and images, a line each), else the start."""
    if not path.is_file():
        return Position()
    try:
        epoch, images = (int(word) for word in path.read_text().split())
        if epoch < 1 or images < 0:
            raise ValueError
    except ValueError as e:
        raise InputError(
            f"{path} must hold two numbers, the epoch (from 1) and the images of it done"
        ) from e
    return Position(epoch, images)
