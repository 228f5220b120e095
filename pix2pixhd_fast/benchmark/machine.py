"""Where and with what was measured."""

import importlib.metadata
import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

import pix2pixhd_fast

_CODE = ("pix2pixhd_fast", "kernels", "csrc", "setup.py")


def checkout() -> Path | None:
    """The root of the checkout that this package runs from; None where it is installed."""
    root = Path(pix2pixhd_fast.__file__).resolve().parents[1]
    return root if (root / "bench").is_dir() and (root / ".git").exists() else None


def device_name(device: torch.device) -> str:
    """The model of the CPU or the name of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                return f"CPU: {name}, {torch.backends.cpu.get_cpu_capability()}"
    return f"CPU: {platform.processor() or platform.machine()}"


def versions(backend: str) -> str:
    """PyTorch, Triton, this package, and the peer that ran."""
    names = ["torch", "triton", "pix2pixhd_fast", backend]
    found = []
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    if not any(entry.startswith("pix2pixhd_fast") for entry in found):
        found.append(f"pix2pixhd_fast {pix2pixhd_fast.__version__}")
    return ", ".join(found)


def commit() -> str:
    """`git describe` of the checkout, with "-dirty" where its code differs; "" outside of one."""
    root = checkout()
    if root is None:
        return ""
    with suppress(OSError, subprocess.CalledProcessError):
        name = _git(root, "describe", "--always", "--tags", "--abbrev=10")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *_CODE)
        return f"{name}-dirty" if changed else name
    return ""


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()
