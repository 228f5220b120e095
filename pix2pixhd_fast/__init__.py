"""pix2pixHD, fast and lean: drop-in networks, training and inference at 2048x1024."""

from pix2pixhd_fast._backend import backend, current_backend, set_backend
from pix2pixhd_fast.accelerate import accelerate, examine
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.model import Pix2PixHD
from pix2pixhd_fast.nn.description import describe_plan
from pix2pixhd_fast.options import Options

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "Options",
    "Pix2PixHD",
    "accelerate",
    "backend",
    "current_backend",
    "describe_plan",
    "examine",
    "set_backend",
]
