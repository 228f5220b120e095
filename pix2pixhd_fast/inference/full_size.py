"""The generator of the paper, once, at 2048x1024: what it takes here."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from pix2pixhd_fast import _resident
from pix2pixhd_fast.model import Pix2PixHD
from pix2pixhd_fast.options import Options

# the 1024p generator of the paper and of the original's scripts/test_1024p.sh
PAPER_SIZE = dict(netG="local", ngf=32)


@dataclass(frozen=True)
class Measurement:
    """What one synthesis took: seconds, and the peak memory in GiB while it ran.

    `memory` is what was allocated on a GPU, or the resident memory of the process on the CPU.
    """

    seconds: float
    memory: float
    device: torch.device


def measure_paper_size(label: Tensor, inst: Tensor, device: str = "auto") -> Measurement:
    """Synthesise one picture with the paper's G1+G2 and random weights; time excludes the building.

    `label` and `inst`: integer ids [1, 1, H, W] with Cityscapes labels.
    """
    model = Pix2PixHD(Options(isTrain=False, device=device, **PAPER_SIZE))
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        model.synthesize(label, inst)  # the first run also loads cuDNN and chooses its kernels
        torch.cuda.reset_peak_memory_stats(model.device)
    else:
        _resident.reset_peak()
    start = time.perf_counter()
    model.synthesize(label, inst).cpu()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(model.device) if on_gpu else _resident.peak_bytes()
    return Measurement(seconds, peak / 2**30, model.device)
