"""The CUDA kernels: each translation unit of the build, compiled by nvcc for one architecture."""

import functools
import logging
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pix2pixhd_fast import _toolchain
from pix2pixhd_fast.compile_matrix.units import Binary, digest_of

INCLUDE = re.compile(rb'^\s*#\s*include\s+"([^"]+)"', re.M)


@dataclass(frozen=True)
class CudaUnit:
    path: Path
    capability: int
    digest: str
    kernel: str  # of the op, until the binary says which kernels it has
    variant: str = ""

    @property
    def source(self) -> str:
        return f"csrc/{self.path.name}"

    @property
    def family(self) -> str:
        return self.source

    def name(self, symbol: str) -> tuple[str, str]:
        """mark_boundaries and <true, int> of pix2pixhd_fast::mark_boundaries<true, int>(...)."""
        name = _demangled(symbol)
        template = _template(name)
        head = name[: name.index(template)] if template else name.partition("(")[0]
        return head.split()[-1].rpartition("::")[2], template

    def compile(self) -> Binary:
        """Only the device's half: 3 s here, most of it for reading PyTorch's headers."""
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder, "kernels.cubin")
            command = [*_command(), f"-arch=sm_{self.capability}", "-cubin", self.path]
            result = subprocess.run(
                [*map(str, command), "-o", str(cubin)], capture_output=True, text=True
            )
            if result.returncode != 0:
                raise RuntimeError(result.stderr + result.stdout)
            return Binary(cubin.read_bytes())


def cuda_units(capabilities: tuple[int, ...], csrc: Path) -> list[CudaUnit]:
    """A unit for each csrc/<op>_cuda.cu and architecture; none where nvcc is missing."""
    if _toolchain.cuda_home() is None:
        return []
    units = []
    for path in sorted(csrc.glob("*_cuda.cu")):
        files = sorted(_included(path))
        contents = [(file.name, file.read_bytes()) for file in files]
        parts = (contents, _command(), _compiler_version())
        for capability in capabilities:
            digest = digest_of(*parts, capability)
            units.append(CudaUnit(path, capability, digest, path.stem.removesuffix("_cuda")))
    return units


def _included(path: Path) -> set[Path]:
    """`path` and the files beside it that it includes, those that they include, and so on."""
    found, waiting = {path}, [path]
    while waiting:
        file = waiting.pop()
        for name in INCLUDE.findall(file.read_bytes()):
            other = file.parent / name.decode()
            if other.is_file() and other not in found:
                found.add(other)
                waiting.append(other)
    return found


@functools.cache
def _command() -> list[str]:
    """nvcc with the flags of the build: ours, and those that PyTorch's build adds."""
    import torch

    # It warns of a missing GPU when it is imported.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils import cpp_extension

    home = _toolchain.cuda_home()
    torch_include = Path(torch.__file__).parent / "include"
    includes = [torch_include, torch_include / "torch/csrc/api/include"]
    flags = [*cpp_extension.COMMON_NVCC_FLAGS, "-std=c++20", *_toolchain.NVCC_FLAGS]
    return [str(home / "bin/nvcc"), *flags, *(f"-isystem={folder}" for folder in includes)]


@functools.cache
def _compiler_version() -> str:
    import torch

    nvcc = _toolchain.cuda_home() / "bin/nvcc"
    result = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    return f"{result.stdout} PyTorch {torch.__version__}"


@functools.cache
def _demangled(symbol: str) -> str:
    """By c++filt of binutils, which nvcc needs too."""
    result = subprocess.run(["c++filt", symbol], capture_output=True, text=True)
    return (result.stdout.strip() or symbol).replace("(anonymous namespace)::", "")


def _template(name: str) -> str:
    """The arguments of the template in a demangled name, up to the bracket that closes them."""
    start = name.find("<")
    if start < 0 or "(" in name[:start]:
        return ""
    depth = 0
    for at in range(start, len(name)):
        depth += {"<": 1, ">": -1}.get(name[at], 0)
        if depth == 0:
            return name[start : at + 1]
    return ""
