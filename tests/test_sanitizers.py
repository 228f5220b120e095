"""The C++ kernels for the CPU under AddressSanitizer and UndefinedBehaviorSanitizer.

The kernels are compiled again, with both, and loaded into a child python that runs the tests of
their ops. AddressSanitizer must be there before anything allocates, hence LD_PRELOAD.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from tests.helpers import ROOT

CACHE = ROOT / "build/sanitizers"
FLAGS = (
    "-std=c++20 -O1 -g1 -fPIC -fno-omit-frame-pointer -fsanitize=address,undefined "
    "-fno-sanitize-recover=all -DTORCH_TARGET_VERSION=0x020b000000000000"
).split()
KERNELS = sorted((ROOT / "csrc").glob("*_cpu.cpp"))
# The tests of an op that run kernels; test_<op>.py has them.
TESTS = [ROOT / f"tests/test_{path.stem.removesuffix('_cpu')}.py" for path in KERNELS]


@functools.cache
def runtime() -> str | None:
    """What LD_PRELOAD must name: AddressSanitizer wraps the throw of a libstdc++ that is there."""
    paths = []
    for name in ("libasan.so", "libstdc++.so"):
        if shutil.which("g++"):
            command = ["g++", f"-print-file-name={name}"]
            paths.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    # Where there is none, g++ answers with the bare name.
    return " ".join(paths) if paths and all(Path(path).is_absolute() for path in paths) else None


pytestmark = pytest.mark.skipif(not runtime(), reason="needs g++ and its libasan")


@functools.cache
def build(*sources: Path) -> Path:
    """The sanitized library of `sources`, compiled unless the cache has it."""
    folders = [f"-I{folder}" for folder in cpp_extension.include_paths()]
    folders += [f"-L{folder}" for folder in cpp_extension.library_paths()]
    libraries = ["-Wl,--as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
    command = ["g++", *FLAGS, "-shared", *map(str, sources), *folders, *libraries]
    digest = hashlib.sha256(str(command).encode())
    for path in (*sources, *sorted((ROOT / "csrc").glob("*.h"))):
        digest.update(path.read_bytes())
    library = CACHE / f"{sources[0].stem}-{digest.hexdigest()[:16]}.so"
    if not library.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = library.with_suffix(f".{os.getpid()}.so")
        result = subprocess.run([*command, "-o", str(new)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        os.replace(new, library)
    return library


def child(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    """A python with the runtime of AddressSanitizer in it; python itself leaks a little."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"LD_PRELOAD": runtime(), "ASAN_OPTIONS": "detect_leaks=0"} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(not KERNELS, reason="there is no C++ kernel")
def test_kernels_are_clean():
    result = child(
        *("-m", "pytest", "-s", "-p", "tests.sanitized_binary", "-p", "no:cacheprovider"),
        *("-k", "kernel_against_reference or any_strides"),
        *TESTS,
        PIX2PIXHD_FAST_BACKEND="ref",
        PIX2PIXHD_FAST_SANITIZED=str(build(*KERNELS)),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout and "skipped" not in result.stdout, result.stdout


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("sum(numbers, c_int64(1000))", None),
        ("sum(numbers, c_int64(1001))", "heap-buffer-overflow"),
        ("sum(byref(numbers, 2), c_int64(999))", "misaligned address"),
        ("product(65536, 32768)", "signed integer overflow"),
    ],
    ids=["clean", "overrun", "misaligned", "overflow"],
)
def test_a_planted_mistake_is_found(call, message):
    library = build(ROOT / "tests/planted_mistakes.cpp")
    script = f"from ctypes import *; numbers = (c_int32 * 1000)(); CDLL({str(library)!r}).{call}"
    result = child("-c", script)
    if message is None:
        assert (result.returncode, result.stderr) == (0, "")
    else:
        assert result.returncode != 0 and message in result.stderr, result.stderr
