"""say what is installed, built and visible"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil

import torch

import pix2pixhd_fast
from pix2pixhd_fast._library import library_status
from pix2pixhd_fast.nn.vgg import cached_weights

OPTIONAL = {
    "triton": "kernels for the GPU",
    "tensorboard": "train --tf_log",
    "pynvml": "power and clocks of the GPU (package nvidia-ml-py)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    for title, lines in (("installed", _installed()), ("built", _built()), ("visible", _visible())):
        print(title)
        for name, value in lines:
            print(f"  {name:<16} {value}")
    return 0


def _installed() -> list[tuple[str, str]]:
    lines = [
        ("pix2pixhd_fast", pix2pixhd_fast.__version__),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})"),
    ]
    lines += [(name, importlib.metadata.version(name)) for name in ("numpy", "pillow")]
    for name, use in OPTIONAL.items():
        found = importlib.util.find_spec(name) is not None
        lines.append((name, "yes" if found else f"no: {use}"))
    vgg = cached_weights()
    lines.append(("VGG19 weights", str(vgg) if vgg.is_file() else f"not at {vgg} (--vgg_weights)"))
    return lines


def _built() -> list[tuple[str, str]]:
    status = library_status()
    kernels = ", ".join(status["kernels"]) or "none: the PyTorch references run"
    return [
        ("binary", str(status["path"] or "not built (a compiler and pip install build it)")),
        ("CPU kernels", kernels),
        ("GPU kernels", ", ".join(status["gpu_kernels"]) or "none: the PyTorch references run"),
        ("backend", status["backend"]),
    ]


def _visible() -> list[tuple[str, str]]:
    lines = [
        ("CPU", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"),
        ("compiler", shutil.which(os.environ.get("CXX", "g++")) or "none"),
        ("nvcc", shutil.which("nvcc") or "none"),
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        capability = f"sm_{properties.major}{properties.minor}"
        lines.append((f"cuda:{index}", f"{properties.name}, {memory:.1f} GiB, {capability}"))
    if not torch.cuda.is_available():
        lines.append(("GPU", "none: everything runs on the CPU"))
    return lines
