"""Where nvcc is and how our CUDA is compiled: for the build (setup.py) and for the compile matrix.

setup.py loads this file by itself, before PyTorch is there: only the standard library is imported.
"""

import os
import shutil
from pathlib import Path

# The binary uses only the stable ABI of PyTorch 2.11: it runs on every later PyTorch, any Python.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
CXX_FLAGS = ("-O3", "-g0", STABLE_ABI)
NVCC_FLAGS = ("-O3", STABLE_ABI, "-DUSE_CUDA")
CAPABILITIES = (80, 86, 89, 90, 100, 120)
# 8.0;8.6;...;12.0+PTX, in the words of TORCH_CUDA_ARCH_LIST.
ARCHITECTURES = ";".join(f"{number // 10}.{number % 10}" for number in CAPABILITIES) + "+PTX"


def cuda_home() -> Path | None:
    """The folder of the CUDA toolkit; an nvcc on PATH may be a wrapper that lies outside it."""
    nvcc = shutil.which("nvcc")
    candidates = [os.getenv("CUDA_HOME"), os.getenv("CUDA_PATH")]
    candidates += [nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda"]
    for home in (Path(candidate) for candidate in candidates if candidate):
        if (home / "bin/nvcc").is_file() and (home / "include/cuda_runtime.h").is_file():
            return home
    return None
