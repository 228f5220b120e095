"""Energy, clock and temperature of a GPU, by NVML. Not yet run on a GPU."""

from contextlib import suppress
from dataclasses import dataclass

import torch

from pix2pixhd_fast.benchmark.method import Call, Clock

SECONDS = 1.0  # NVML counts energy in steps of up to 0.1 s


@dataclass(frozen=True)
class GpuState:
    """Joules of one call; clock of the multiprocessors in MHz and degrees Celsius behind it."""

    joules: float
    sm_mhz: int
    temperature_c: int


def gpu_state(call: Call, clock: Clock, seconds_per_call: float, device: torch.device):
    """Call for about a second and read the counters; None without a GPU or without pynvml."""
    if device.type != "cuda":
        return None
    with suppress(Exception):  # pynvml is optional and has errors of its own for every driver
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        calls = max(1, round(SECONDS / seconds_per_call))
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        clock(call, calls)
        millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before
        return GpuState(
            millijoules / 1e3 / calls,
            pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        )
    return None
