"""Scalars and pictures for TensorBoard."""

from pathlib import Path

import numpy as np

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.report.files import explain_failure, make_folder


class TensorBoardLog:
    """Writer of TensorBoard events into `folder` (created where it is missing).

    The tags are the names that are given, as in the original. TensorBoard is imported here, not
    with the package; raises `InputError` when it is not installed or the folder cannot be written.
    """

    def __init__(self, folder: Path | str):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "tf_log needs the package tensorboard, which is not installed: "
                "run `pip install tensorboard` or leave tf_log out"
            ) from error
        make_folder(Path(folder))
        with explain_failure(Path(folder)):
            self._writer = SummaryWriter(str(folder), flush_secs=30)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one number per name at `step`, zeros included."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def images(self, step: int, pictures: dict[str, np.ndarray]) -> None:
        """Write one picture, uint8 [H, W, 3], per name at `step`."""
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still in memory and end the file; nothing can be written afterwards."""
        self._writer.close()
