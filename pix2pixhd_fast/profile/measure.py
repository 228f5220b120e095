"""The same step with real tensors, to set beside what was traced."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from pix2pixhd_fast import _resident
from pix2pixhd_fast.model import resolve_device
from pix2pixhd_fast.profile.subject import Subject, build, make_batch, stepper


@dataclass(frozen=True)
class Measured:
    """What a step took. `peak`, bytes: on the CPU the growth of the resident memory since before
    the model was built, on a GPU what PyTorch's allocator had given out. `reserved` (by the
    allocator) and `process` (by NVML, with the CUDA context) are of GPUs only. `seconds` is the
    time of the last step.
    """

    device: str
    peak: int
    seconds: float
    reserved: int | None = None
    process: int | None = None


def measure(subject: Subject, device: str = "auto", steps: int = 2) -> Measured:
    """Build the model and run `steps` steps on `device`; with one step Adam has no state before it.

    A small convolution runs first, so that what libraries load for themselves does not count. The
    path for GPUs is not yet run on a GPU.
    """
    chosen = resolve_device(subject.options, None if device == "auto" else device)
    _random_convolution(chosen)
    run = _run_on_gpu if chosen.type == "cuda" else _run_on_cpu
    return run(subject, chosen, steps)


def _run_on_cpu(subject: Subject, device: torch.device, steps: int) -> Measured:
    before = _resident.present_bytes()
    _resident.reset_peak()
    seconds = _run(subject, device, steps, lambda: None)
    return Measured("cpu", _resident.peak_bytes() - before, seconds)


def _run_on_gpu(subject: Subject, device: torch.device, steps: int) -> Measured:
    torch.cuda.reset_peak_memory_stats(device)
    seconds = _run(subject, device, steps, lambda: torch.cuda.synchronize(device))
    return Measured(
        torch.cuda.get_device_name(device),
        torch.cuda.max_memory_allocated(device),
        seconds,
        torch.cuda.max_memory_reserved(device),
        _process_bytes(device),
    )


def _run(
    subject: Subject, device: torch.device, steps: int, synchronize: Callable[[], None]
) -> float:
    model = build(subject, str(device))
    step = stepper(model, _random_batch(subject), subject.weights)
    for _ in range(steps):
        synchronize()
        start = time.perf_counter()
        step()
        synchronize()
    return time.perf_counter() - start


def _random_batch(subject: Subject) -> dict[str, Tensor]:
    batch = make_batch(subject)
    generator = torch.Generator().manual_seed(0)
    for key, value in batch.items():
        if value.is_floating_point():
            value.uniform_(-1, 1, generator=generator)
        else:
            end = subject.options.label_nc if key == "label" else 100
            value.random_(0, end, generator=generator)
    return batch


def _random_convolution(device: torch.device) -> None:
    x = torch.rand(1, 8, 32, 32, device=device, requires_grad=True)
    torch.conv2d(x, torch.rand(8, 8, 3, 3, device=device)).sum().backward()


def _process_bytes(device: torch.device) -> int | None:
    """What this process holds on the GPU, by NVML; None where that is not to be had."""
    with suppress(Exception):  # pynvml is optional and has errors of its own for every driver
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid():
                return process.usedGpuMemory
    return None
