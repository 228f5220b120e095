"""The resident memory of this process, where the operating system tells it (Linux; peak: Unix)."""

import resource
from contextlib import suppress


def reset_peak() -> None:
    """Let the peak start again from the present size; without effect where that is not possible."""
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_bytes() -> int:
    """The peak since `reset_peak`, else since the start of the process."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def present_bytes() -> int:
    """The present size; where it is not told, the peak."""
    return _status("VmRSS") or peak_bytes()


def _status(name: str) -> int:
    with suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0
