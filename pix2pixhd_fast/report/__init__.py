"""What a run shows: pictures, HTML pages, the loss log, loss curves, TensorBoard."""

from pix2pixhd_fast.report.colors import image_to_rgb, instances_to_rgb, label_to_rgb
from pix2pixhd_fast.report.curves import draw_loss_curves
from pix2pixhd_fast.report.galleries import ResultsPage, TrainingPage
from pix2pixhd_fast.report.loss_log import LossLog, LossRow, read_loss_log
from pix2pixhd_fast.report.page import Page
from pix2pixhd_fast.report.pictures import save_picture
from pix2pixhd_fast.report.tensorboard import TensorBoardLog

__all__ = [
    "LossLog",
    "LossRow",
    "Page",
    "ResultsPage",
    "TensorBoardLog",
    "TrainingPage",
    "draw_loss_curves",
    "image_to_rgb",
    "instances_to_rgb",
    "label_to_rgb",
    "read_loss_log",
    "save_picture",
]
