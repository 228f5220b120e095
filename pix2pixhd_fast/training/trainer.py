"""The loop of `pix2pixhd-fast train`: data, updates, pictures, checkpoints."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from pix2pixhd_fast.checkpoints import CheckpointFolder, load_pretrained
from pix2pixhd_fast.data import AlignedDataset, make_loader
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.model import Batch, Pix2PixHD
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.report.files import make_folder, replace_file
from pix2pixhd_fast.training.distributed import ALONE, World
from pix2pixhd_fast.training.levers import bf16_advice, within_limit
from pix2pixhd_fast.training.monitor import Monitor
from pix2pixhd_fast.training.progress import Position, losses_text, progress_bar
from pix2pixhd_fast.training.watch import check_losses

BAR_SECONDS = 1.0


class Trainer:
    """Trains by `options` in `<checkpoints_dir>/<name>`; `run` returns when all epochs are done.

    The constructor does all that can fail for bad input: it finds the data, builds the model, loads
    what is to be loaded. A run that goes on (`continue_train`) repeats what the uninterrupted run
    would have done, to the bit on the CPU. The first interrupt (Ctrl-C, SIGTERM) ends the run after
    the present step, with a checkpoint; the second at once.

    In a `world` of several processes each has a trainer and takes its share of every batch; the
    main one prints and writes. Processes that torchrun has restarted go on from `latest`.
    """

    def __init__(self, options: Options, world: World = ALONE):
        self.world = world
        self.folder = Path(options.checkpoints_dir) / options.name
        self.checkpoints = CheckpointFolder(self.folder)
        self.had_latest = world.of_main("latest" in self.checkpoints.labels())
        if world.restarted and self.had_latest:
            options = replace(options, continue_train=True, which_epoch="latest")
        self.options = options
        world.share(options.batchSize)
        self.dataset = AlignedDataset(options)
        self._batches(1, 0)
        self.options = options = within_limit(options, self.dataset, self._say)
        self.images_per_epoch = len(self.dataset) // options.batchSize * options.batchSize
        self.model = Pix2PixHD(options, world.device, world)
        self.position = Position()
        self.interrupted = False
        self.bar_time = 0.0
        if options.continue_train:
            self._resume()
        elif options.load_pretrain:
            self._load_pretrained()
        for net in self.model.networks().values():
            world.copy_from_main((*net.parameters(), *net.buffers()))

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
            self._say(f"{o.name} is trained: all {last} epochs are done")
            return
        self._announce()
        self._replace_latest_of_another_run()
        bar = progress_bar(last * self.images_per_epoch, self.total_images, shown=self.world.main)
        with self._monitoring(), self._stopping_on_signals(), bar:
            for epoch in range(self.position.epoch, last + 1):
                if not self._epoch(epoch, bar):
                    break
        self._say(f"done: {self.folder}")

    def save(self, labels: tuple[str, ...]) -> None:
        """Write the networks and all that is needed to go on, under each label.

        All processes return once everything is written.
        """
        pools = self.world.gather(self.model.pool.state_dict())
        if self.world.main:
            self.checkpoints.save(labels, self.model.networks(), self._state(pools))
        self.world.agree()

    def _say(self, text: str) -> None:
        if self.world.main:
            print(text, flush=True)

    def _announce(self) -> None:
        o, processes = self.options, self.world.size
        if self.world.main and not o.continue_train:
            write_options(o, self.folder / "opt.txt")
        others = f" and {processes - 1} more, {o.batchSize // processes} images each"
        self._say(
            f"training {o.name} on {self.model.device}{others if processes > 1 else ''}: "
            f"{len(self.dataset)} pictures from {o.dataroot}, epochs {self.position.epoch} to "
            f"{o.niter + o.niter_decay}, into {self.folder}"
        )
        cuda = self.model.device.type == "cuda"
        if self.world.main and cuda and o.amp == "off" and torch.cuda.is_bf16_supported():
            print(bf16_advice(o, self.dataset), flush=True)
        if "," in o.gpu_ids and cuda and processes == 1:
            self._say(
                f"--gpu_ids {o.gpu_ids}: one process trains on one GPU, {self.model.device}; "
                f"torchrun --nproc_per_node {len(o.gpus)} -m pix2pixhd_fast train ... uses all"
            )

    def _replace_latest_of_another_run(self) -> None:
        """Where torchrun may restart this run, `latest` must be of this run from the start."""
        o, world = self.options, self.world
        from_latest = o.continue_train and o.which_epoch == "latest"
        if world.may_restart and self.had_latest and not from_latest:
            self.save(("latest",))

    @contextmanager
    def _monitoring(self) -> Iterator[None]:
        """Set `monitor`, in the main process only: None in the others."""
        self.monitor = None
        if not self.world.main:
            yield
            return
        goes_on = self.options.continue_train or self.world.restarted
        self.monitor = Monitor(
            self.options, self.folder, self.images_per_epoch, self.position, goes_on
        )
        with closing(self.monitor):
            yield

    def _batches(self, epoch: int, start: int) -> Iterable[Batch]:
        """This process's share of the batches of an epoch after the first `start` images."""
        rank, processes = self.world.rank, self.world.size
        return make_loader(self.dataset, self.options, epoch, start, rank, processes)

    def _epoch(self, epoch: int, bar: tqdm) -> bool:
        """Train the rest of an epoch; return whether there was time for all of it."""
        self.position.epoch = epoch
        self.model.optimizers.start_epoch(epoch)
        bar.set_description(f"epoch {epoch}/{self.options.niter + self.options.niter_decay}")
        start = time.perf_counter()
        for batch in self._batches(epoch, self.position.images):
            losses = self.model.training_step(batch)
            count = self.options.batchSize
            self.position.images += count
            seconds = (time.perf_counter() - start) / count
            in_time = self._after_step(batch, losses, seconds, bar)
            bar.update(count)
            if not in_time:
                return False
            start = time.perf_counter()
        self._end_epoch(epoch)
        return True

    def _after_step(self, batch: Batch, losses: dict, seconds: float, bar: tqdm) -> bool:
        """Log, show, save what is due; return whether there is time for more."""
        o, now = self.options, self.total_images
        stop, late, bar_is_old = self.world.agree(
            self.interrupted, time.monotonic() > self.deadline, self._bar_is_old()
        )
        shown = self._due(o.print_freq)
        saved = stop or late or self._due(o.save_latest_freq)
        if shown or saved or bar_is_old:
            values = self.world.means(losses)
            check_losses(values, self.model, batch)
            bar.set_postfix_str(losses_text(values, self.model.loss_names), refresh=False)
            if shown and self.monitor:
                self.monitor.log(self.position, now, seconds, values)
        if self.monitor and self._due(o.display_freq):
            self.monitor.show(self.position, now, batch, self.model.last_fake)
        if saved:
            self.save(("latest",))
        if stop:
            raise KeyboardInterrupt
        return not late

    def _due(self, frequency: int) -> bool:
        """Whether the last batch crossed a multiple of `frequency` images."""
        now = self.total_images
        return now // frequency > (now - self.options.batchSize) // frequency

    def _bar_is_old(self) -> bool:
        """Whether the bar's losses are older than a second (reading them waits for the GPU)."""
        now = time.monotonic()
        if not self.world.main or now - self.bar_time < BAR_SECONDS:
            return False
        self.bar_time = now
        return True

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
        if self.world.main:
            tqdm.write("stopping after this step; once more to stop at once")

    def _state(self, pools: list[dict]) -> dict:
        return {
            "epoch": self.position.epoch,
            "images": self.position.images,
            "optimizers": self.model.optimizers.state_dict(),
            "pools": pools,
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "options": asdict(self.options),
        }

    def _resume(self) -> None:
        o = self.options
        state = self.checkpoints.load(o.which_epoch, self.model.networks(), o, with_state=True)
        if state is None:
            self.position = _original_position(self.folder / "iter.txt")
            self._say(
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
        self._take_pool(state["pools"])
        torch.set_rng_state(state["rng"])
        if len(state["rng_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["rng_cuda"])
        self.position = Position(state["epoch"], state["images"])
        changed = changed_options(o, state["options"])
        if changed:
            self._say(f"going on with other options than before: {', '.join(changed)}")
        self._say(f"going on from epoch {self.position.epoch}, image {self.position.images}")

    def _take_pool(self, pools: list[dict]) -> None:
        """The pool that the process of this rank had; a process more than before starts afresh."""
        if self.world.rank < len(pools):
            self.model.pool.load_state_dict(pools[self.world.rank], self.model.device)
        if self.options.pool_size and len(pools) != self.world.size:
            self._say(f"{len(pools)} processes had a picture pool, now {self.world.size} have one")

    def _load_pretrained(self) -> None:
        o = self.options
        for letter, net in self.model.networks().items():
            report = load_pretrained(o.load_pretrain, o.which_epoch, letter, net, o)
            self._say(str(report))


_STATE = dict(
    epoch=int,
    images=int,
    optimizers=dict,
    pools=list,
    rng=torch.Tensor,
    rng_cuda=list,
    options=dict,
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
