"""What a training shows: loss log, curves, pictures on the page, TensorBoard."""

from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from pix2pixhd_fast.options import Options
from pix2pixhd_fast.report import (
    LossLog,
    TensorBoardLog,
    TrainingPage,
    draw_loss_curves,
    image_to_rgb,
    label_to_rgb,
    read_loss_log,
)
from pix2pixhd_fast.training.progress import Position


class Monitor:
    """Writes loss_log.txt, loss_curves.png, web/ and, with `tf_log`, logs/ into `folder`.

    With `goes_on`, rows of the loss log behind `position`, where this run begins, are removed: an
    earlier run wrote them after its last checkpoint, and this one repeats them.
    """

    def __init__(
        self,
        options: Options,
        folder: Path,
        images_per_epoch: int,
        position: Position,
        goes_on: bool,
    ):
        self.options = options
        self.images_per_epoch = images_per_epoch
        self.curves = folder / "loss_curves.png"
        self.loss_log = LossLog(folder / "loss_log.txt")
        if goes_on:
            self.loss_log.truncate_after(position.epoch, position.images)
        self.loss_log.start()
        winsize = options.display_winsize
        self.page = None if options.no_html else TrainingPage(folder / "web", options.name, winsize)
        self.tensorboard = TensorBoardLog(folder / "logs") if options.tf_log else None

    def log(
        self, position: Position, images: int, seconds: float, losses: dict[str, float]
    ) -> None:
        """Add one row of losses; `images` since the start, `seconds` per image."""
        tqdm.write(self.loss_log.append(position.epoch, position.images, seconds, losses))
        if self.tensorboard:
            self.tensorboard.scalars(images, losses)

    def show(self, position: Position, images: int, batch: dict[str, Tensor], fake: Tensor) -> None:
        """Show the first picture of the batch, its input and what was made of it."""
        label_nc = self.options.label_nc
        label = batch["label"][0]
        pictures = {
            "input_label": label_to_rgb(label, label_nc) if label_nc else image_to_rgb(label),
            "synthesized_image": image_to_rgb(fake[0].float().cpu()),
            "real_image": image_to_rgb(batch["image"][0]),
        }
        if self.tensorboard:
            self.tensorboard.images(images, pictures)
        if self.page:
            self.page.update(position.epoch, pictures, self.draw_curves())

    def draw_curves(self) -> Path | None:
        """Draw the loss curves of the log so far; None while it is empty."""
        rows = read_loss_log(self.loss_log.path)
        if not rows:
            return None
        draw_loss_curves(rows, self.curves, self.images_per_epoch)
        return self.curves

    def close(self) -> None:
        """Draw the curves a last time and end the TensorBoard log."""
        self.draw_curves()
        if self.tensorboard:
            self.tensorboard.close()
