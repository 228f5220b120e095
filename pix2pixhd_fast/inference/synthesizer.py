"""The loop of `pix2pixhd-fast test`: checkpoint in, results page out."""

import time
from pathlib import Path

from torch import Tensor

from pix2pixhd_fast.checkpoints import CheckpointFolder
from pix2pixhd_fast.data import AlignedDataset, make_loader
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.model import Pix2PixHD
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.report import ResultsPage, image_to_rgb, label_to_rgb
from pix2pixhd_fast.training.progress import progress_bar


class Synthesizer:
    """Synthesises the pictures of `<phase>_label` with the checkpoint `which_epoch`.

    The constructor finds data and checkpoint, and fails for bad input; `run` writes
    `<results_dir>/<name>/<phase>_<which_epoch>/index.html`, one row per picture: input, synthesised
    and, with `use_encoded_image`, real. As in the original, one picture at a time, in order.
    """

    def __init__(self, options: Options):
        o = self.options = options
        if o.isTrain:
            raise InputError("options must be made with isTrain=False, got isTrain=True")
        if o.gen_features and not o.use_encoded_image:
            raise InputError(
                "instance features need a source: add use_encoded_image (from the real pictures) "
                "or load_features"
            )
        self.dataset = AlignedDataset(o)
        self.model = Pix2PixHD(o)
        folder = CheckpointFolder(Path(o.checkpoints_dir) / o.name)
        folder.load(o.which_epoch, self.model.networks(), o)
        self.folder = Path(o.results_dir) / o.name / f"{o.phase}_{o.which_epoch}"

    def run(self) -> Path:
        """Synthesise up to `how_many` pictures; return the path of the page."""
        o = self.options
        count = min(o.how_many, len(self.dataset))
        title = f"Results of {o.name}: {o.phase}, checkpoint {o.which_epoch}"
        page = ResultsPage(self.folder, title, o.display_winsize, o.aspect_ratio)
        seconds = 0.0
        with progress_bar(count, description="synthesise") as bar:
            for batch, _ in zip(make_loader(self.dataset, o), range(count), strict=False):
                start = time.perf_counter()
                fake = self._synthesize(batch)
                seconds += time.perf_counter() - start
                page.add(Path(batch["path"][0]).stem, self._pictures(batch, fake))
                page.save()
                bar.update()
        print(
            f"{count} pictures, {seconds / max(count, 1):.3f} s each: {self.folder / 'index.html'}"
        )
        return self.folder / "index.html"

    def _synthesize(self, batch: dict[str, Tensor]) -> Tensor:
        maps = {key: batch.get(key) for key in ("label", "inst", "image", "feat")}
        return self.model.synthesize(**maps).cpu()

    def _pictures(self, batch: dict[str, Tensor], fake: Tensor) -> dict:
        label_nc = self.options.label_nc
        label = batch["label"][0]
        pictures = {
            "input_label": label_to_rgb(label, label_nc) if label_nc else image_to_rgb(label),
            "synthesized_image": image_to_rgb(fake[0]),
        }
        if "image" in batch:
            pictures["real_image"] = image_to_rgb(batch["image"][0])
        return pictures
