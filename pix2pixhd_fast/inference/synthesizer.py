"""The loop of `pix2pixhd-fast test`: checkpoint in, results page out."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from torch import Tensor

from pix2pixhd_fast.checkpoints import CheckpointFolder
from pix2pixhd_fast.data import AlignedDataset, make_loader
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.model import Pix2PixHD
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.report import ResultsPage, image_to_rgb, label_to_rgb
from pix2pixhd_fast.training.distributed import ALONE, World
from pix2pixhd_fast.training.progress import progress_bar

Pictures = dict[str, np.ndarray]


class Synthesizer:
    """Synthesises the pictures of `<phase>_label` with the checkpoint `which_epoch`.

    The constructor finds data and checkpoint, and fails for bad input. As in the original, one
    picture at a time (whatever `batchSize`), in order, at most `how_many`. In a `world` of several
    processes picture i is made by process i modulo their number.
    """

    def __init__(self, options: Options, world: World = ALONE):
        self.world = world
        o = self.options = replace(options, batchSize=1)
        if o.isTrain:
            raise InputError("options must be made with isTrain=False, got isTrain=True")
        if o.gen_features and not o.use_encoded_image:
            raise InputError(
                "instance features need a source: add use_encoded_image (from the real pictures) "
                "or load_features"
            )
        self.dataset = AlignedDataset(o)
        self.count = min(o.how_many, len(self.dataset))
        self.own = range(world.rank, self.count, world.size)
        self.model = Pix2PixHD(o, world.device)
        folder = CheckpointFolder(Path(o.checkpoints_dir) / o.name)
        folder.load(o.which_epoch, self.model.networks(), o)
        self.folder = Path(o.results_dir) / o.name / f"{o.phase}_{o.which_epoch}"

    def run(self) -> Path:
        """Write `<results_dir>/<name>/<phase>_<which_epoch>/index.html`; return its path.

        One row per picture: input, synthesised and, with `use_encoded_image`, real. The page is
        there from the first picture on.
        """
        o, world = self.options, self.world
        title = f"Results of {o.name}: {o.phase}, checkpoint {o.which_epoch}"
        page = ResultsPage(self.folder, title, o.display_winsize, o.aspect_ratio)
        stems = [Path(path).stem for path in self.dataset.paths[: self.count]]
        names = [page.name(stem) for stem in stems]  # the same in all processes
        rounds = range(0, self.count, world.size)
        for first, made in zip_longest(rounds, self.pictures()):  # the last one may be without own
            row = made and page.write(names[first + world.rank], made[1])
            for found in world.gather(row):
                if found:
                    page.show(found)
            if world.main:
                page.save()
        if world.main:
            each = self.seconds / len(self.own)
            print(f"{self.count} pictures, {each:.3f} s each: {self.folder / 'index.html'}")
        return self.folder / "index.html"

    def pictures(self) -> Iterator[tuple[str, Pictures]]:
        """Synthesise one after another; yields the stem of the label file and its pictures.

        `seconds` adds up the time spent in the networks. Of several processes, each yields its own.
        """
        self.seconds = 0.0
        rank, processes = self.world.rank, self.world.size
        loader = make_loader(self.dataset, self.options, rank=rank, processes=processes)
        bar = progress_bar(len(self.own), description="synthesise", shown=self.world.main)
        with bar:
            for batch, _ in zip(loader, self.own, strict=False):
                start = time.perf_counter()
                maps = {key: batch.get(key) for key in ("label", "inst", "image", "feat")}
                fake = self.model.synthesize(**maps).cpu()
                self.seconds += time.perf_counter() - start
                yield Path(batch["path"][0]).stem, self._pictures(batch, fake)
                bar.update()

    def _pictures(self, batch: dict[str, Tensor], fake: Tensor) -> Pictures:
        label_nc = self.options.label_nc
        label = batch["label"][0]
        pictures = {
            "input_label": label_to_rgb(label, label_nc) if label_nc else image_to_rgb(label),
            "synthesized_image": image_to_rgb(fake[0]),
        }
        if "image" in batch:
            pictures["real_image"] = image_to_rgb(batch["image"][0])
        return pictures
