"""CUDA C++ device code, compiled by g++ as it is and run on the CPU: docs/proving.md.

`DeviceProgram(source)` compiles a C++ file that includes kernels (`.cuh`) and has `extern "C"`
functions that launch them and return the cudaError_t; `run` calls one under a seed.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from tests.helpers import ROOT

HERE = Path(__file__).parent
CACHE = ROOT / "build/cuda_on_cpu"
# Seeds that every kernel is run under: each draws another order of threads and blocks.
SEEDS = range(3)

MODEL_FLAGS = "-std=c++20 -O2 -g1 -fPIC -Wall -Wextra -Werror".split()
DEVICE_FLAGS = (
    "-std=c++20 -O1 -gdwarf-4 -g1 -fPIC -Wall -Wextra -Werror -Wno-unknown-pragmas "
    "-fno-strict-aliasing -fno-gnu-unique "
    "-fsanitize=thread,bounds,alignment,shift,signed-integer-overflow,integer-divide-by-zero"
).split()
# Copies that the compiler leaves to the C library are checked too.
RENAMES = [f"--redefine-sym={name}=cuda_on_cpu_{name}" for name in ("memcpy", "memmove", "memset")]


class DeviceError(Exception):
    """What a kernel did wrong."""


@dataclass(frozen=True)
class Output:
    """A tensor that a launch writes whole, and reads only what it has written; with `updated`, one
    that held something before; without `whole`, scratch that may stay unwritten in part.
    """

    tensor: Tensor
    updated: bool = False
    whole: bool = True


class DeviceProgram:
    def __init__(self, source: Path) -> None:
        self.path = _build(source)
        self.library = ctypes.CDLL(str(self.path))
        self.library.cuda_on_cpu_error.restype = ctypes.c_char_p
        self.library.cuda_on_cpu_unwritten.restype = ctypes.c_uint64
        self.shared = _shared_variables(self.path)

    def run(self, function: str, *arguments: Tensor | Output | int | float, seed: int) -> None:
        """Call `function`: tensors (contiguous, CPU) as pointers, integers as int64_t, floats as
        double.

        Tensors are inputs, which nobody may write, unless they are an `Output`. Raises
        `DeviceError` for the first error of a kernel, and where an output has unwritten bytes.
        """
        self.library.cuda_on_cpu_begin(ctypes.c_uint64(seed))
        given, outputs, buffer = [], {}, 0
        for position, argument in enumerate(arguments):
            if isinstance(argument, Tensor | Output):
                if isinstance(argument, Output) and argument.whole:
                    outputs[position] = buffer
                given.append(self._add_buffer(position, argument))
                buffer += 1
            else:
                kind = ctypes.c_double if isinstance(argument, float) else ctypes.c_int64
                given.append(kind(argument))
        for name, distance, size in self.shared:
            self.library.cuda_on_cpu_shared(
                name.encode(), ctypes.c_int64(distance), ctypes.c_uint64(size)
            )
        code = getattr(self.library, function)(*given)
        error = self.library.cuda_on_cpu_error().decode()
        if error or code:
            raise DeviceError(_with_source(self.path, error or f"cudaError_t {code}"))
        for position, buffer in outputs.items():
            if missing := self.library.cuda_on_cpu_unwritten(ctypes.c_uint64(buffer)):
                raise DeviceError(f"{missing} bytes of argument {position} were never written")

    def _add_buffer(self, position: int, argument: Tensor | Output) -> ctypes.c_void_p:
        is_output = isinstance(argument, Output)
        tensor = argument.tensor if is_output else argument
        assert tensor.is_contiguous() and tensor.device.type == "cpu"
        address = ctypes.c_void_p(tensor.data_ptr())
        self.library.cuda_on_cpu_buffer(
            f"argument {position}".encode(),
            address,
            ctypes.c_uint64(tensor.nbytes),
            is_output,
            not is_output or argument.updated,
        )
        return address


@functools.cache
def device_program(source: Path) -> DeviceProgram:
    """The program of `source`; skips the test where no compiler or no CUDA header is found."""
    if not (shutil.which("g++") and shutil.which("objcopy") and _cuda_include()):
        pytest.skip("needs g++, binutils and the CUDA headers (docs/proving.md)")
    return DeviceProgram(source)


@functools.cache
def _cuda_include() -> Path | None:
    """The folder with the CUDA headers: of a toolkit, or of NVIDIA's wheels.

    The wheel that PyTorch brings lacks some: nvidia-cuda-crt and nvidia-cuda-cccl have them.
    """
    candidates = [Path(os.getenv("CUDA_HOME", "/usr/local/cuda")) / "include"]
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        candidates += sorted(Path(folder).glob("*/include"))
    needed = ("cuda_fp16.h", "cuda_bf16.h", "crt/host_defines.h", "nv/target")
    for folder in candidates:
        if all((folder / name).is_file() for name in needed):
            return folder
    return None


def _run(*command: str | Path) -> str:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stderr}"
    return result.stdout


def _digest(flags: list[str], paths: list[Path]) -> str:
    digest = hashlib.sha256(f"{flags} {_cuda_include()} {_run('g++', '--version')}".encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _build_model() -> Path:
    """The object file of the model itself, compiled unless the cache has it."""
    parts = [HERE / f"{name}.cpp" for name in ("model", "threads", "memory", "hooks")]
    model = CACHE / f"model-{_digest(MODEL_FLAGS, [*parts, *sorted(HERE.glob('*.h'))])}.o"
    if not model.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = model.with_suffix(f".{os.getpid()}.o")
        _run("g++", *MODEL_FLAGS, "-isystem", _cuda_include(), "-r", *parts, "-o", new)
        os.replace(new, model)
    return model


def _build(source: Path) -> Path:
    """The library of `source`, compiled unless the cache has it."""
    headers = [*HERE.glob("*.h"), *(ROOT / "csrc").glob("*.cuh"), *source.parent.glob("*.cuh")]
    model = _build_model()
    library = CACHE / f"{source.stem}-{_digest(DEVICE_FLAGS, [source, model, *sorted(headers)])}.so"
    if library.is_file():
        return library
    assembly, device, new = (
        library.with_suffix(f".{os.getpid()}.{end}") for end in ("s", "o", "so")
    )
    includes = [f"-I{HERE}", f"-I{ROOT / 'csrc'}", "-isystem", _cuda_include()]
    _run("g++", *DEVICE_FLAGS, *includes, "-S", source, "-o", assembly)
    assembly.write_text(_pad_shared_variables(assembly.read_text()))
    _run("g++", "-c", assembly, "-o", device)
    _run("objcopy", *RENAMES, device)
    _run("g++", "-shared", "-Wl,-Bsymbolic", model, device, "-o", new)
    assembly.unlink()
    device.unlink()
    os.replace(new, library)
    return library


def _pad_shared_variables(assembly: str) -> str:
    """The assembly with 64 bytes that belong to nobody after each static shared variable."""
    return re.sub(
        r"(\.section\t\.tbss(?:(?!\.section).)*?\t\.zero\t\d+\n)",
        r"\1\t.zero\t64\n",
        assembly,
        flags=re.S,
    )


def _shared_variables(library: Path) -> list[tuple[str, int, int]]:
    """Name, distance from `shared_anchor` and size of each static shared variable."""
    found = []
    anchor = None
    for line in _run("readelf", "--syms", "--wide", library).splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[3] == "TLS":
            offset, size, name = int(fields[1], 16), int(fields[2], 0), fields[7]
            if "shared_anchor" in name:
                anchor = offset
            elif name.startswith("_ZZ") and (name, offset, size) not in found:
                found.append((name, offset, size))
    return [(_run("c++filt", name).strip(), offset - anchor, size) for name, offset, size in found]


def _with_source(library: Path, error: str) -> str:
    """`error` with the line of the kernel instead of the address of the code."""

    def line(match: re.Match) -> str:
        # The call returns to the instruction after it.
        address = hex(int(match[1], 16) - 1)
        frames = _run("addr2line", "-ie", library, address).split("\n")
        kernel = [
            frame for frame in frames if frame and not frame.startswith(str(HERE / "cuda_on"))
        ]
        return f"({(kernel or frames)[0]})"

    return re.sub(r"\[code \+0x([0-9a-f]+)\]", line, error)
