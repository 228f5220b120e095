"""How times are taken: warm-up, then repeats of all backends in turn; medians and ratios."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

Call = Callable[[], object]
# Seconds of the given number of calls.
Clock = Callable[[Call, int], float]

LEAST_SAMPLE = 0.005  # seconds: shorter calls are timed together
PATIENCE = 5.0  # seconds: after a call that takes longer, no more warming up
BUDGET = 10.0  # seconds of all repeats, as far as FEWEST allows
FEWEST, MOST = 3, 25


@dataclass(frozen=True)
class Spread:
    """Median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def clock_of(device: torch.device) -> Clock:
    """The clock of a device; both wait for what was started before."""
    return _gpu_clock if device.type == "cuda" else cpu_clock


def cpu_clock(call: Call, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def _gpu_clock(call: Call, calls: int) -> float:
    """By events of the device, from the first kernel's start to the last one's end."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def warm_up(call: Call, clock: Clock, most: int) -> float:
    """Call up to `most` times, at least once, until one takes longer than `PATIENCE`; return the
    seconds of the last call.
    """
    for _ in range(max(most, 1)):
        seconds = clock(call, 1)
        if seconds > PATIENCE:
            break
    return seconds


def calls_per_sample(seconds: float) -> int:
    """How many calls are timed together, for a call of so many seconds."""
    return max(1, math.ceil(LEAST_SAMPLE / max(seconds, 1e-7)))


def number_of_repeats(seconds: float) -> int:
    """How often all backends are repeated that together take so many seconds."""
    return min(max(round(BUDGET / max(seconds, 1e-7)), FEWEST), MOST)


def interleave(
    calls: Mapping[str, Call],
    per_sample: Mapping[str, int],
    repeats: int,
    clock: Clock,
    tell: Callable[[int, Mapping[str, float]], None],
) -> dict[str, list[float]]:
    """Time A, B, ..., A, B, ...: `repeats` samples of seconds per call for each name.

    What the machine does meanwhile thus meets all names alike. After each repeat `tell` gets its
    number, from 1, and its samples.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(1, repeats + 1):
        for name, call in calls.items():
            n = per_sample[name]
            samples[name].append(clock(call, n) / n)
        tell(repeat, {name: values[-1] for name, values in samples.items()})
    return samples


def spread(values: list[float]) -> Spread:
    """Percentiles with linear interpolation between samples."""
    low, middle, high = np.percentile(values, (20, 50, 80))
    return Spread(float(middle), float(low), float(high))


def speed_up(baseline: list[float], other: list[float]) -> Spread:
    """Of the ratios baseline / other of each repeat: how many times faster the other is."""
    return spread([b / o for b, o in zip(baseline, other, strict=True)])
