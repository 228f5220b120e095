"""The packages and the optional binary, pix2pixhd_fast/_C.abi3.so; the rest is in pyproject.toml.

The binary holds the C++ and CUDA kernels. Where it cannot be built the package installs without it,
one line says why, and the PyTorch reference of every op runs instead. Environment variables:

PIX2PIXHD_FAST_CPP=0          no binary
PIX2PIXHD_FAST_CUDA=0         no CUDA in the binary
PIX2PIXHD_FAST_REQUIRE_CPP=1  fail where the binary cannot be built
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
BUILD_COMMANDS = {"bdist_wheel", "build", "build_ext", "editable_wheel", "install"}
# The binary uses only the stable ABI of PyTorch 2.11: it runs on every later PyTorch, any Python.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def go_without_binary(reason: str) -> None:
    if os.getenv("PIX2PIXHD_FAST_REQUIRE_CPP") == "1":
        sys.exit(f"pix2pixhd_fast: the C++ kernels cannot be built: {reason}")
    print(f"pix2pixhd_fast: no C++ kernels, the slower PyTorch reference will run: {reason}")


def sources(pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"csrc/{pattern}"))


def cuda_home() -> Path | None:
    """The folder of the CUDA toolkit; an nvcc on PATH may be a wrapper that lies outside it."""
    nvcc = shutil.which("nvcc")
    candidates = [os.getenv("CUDA_HOME"), os.getenv("CUDA_PATH")]
    candidates += [nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda"]
    for home in (Path(candidate) for candidate in candidates if candidate):
        if (home / "bin/nvcc").is_file() and (home / "include/cuda_runtime.h").is_file():
            return home
    return None


def binary() -> dict:
    """The arguments of setup() for the binary; none where not asked for or without PyTorch."""
    if not BUILD_COMMANDS.intersection(sys.argv):
        return {}
    if os.getenv("PIX2PIXHD_FAST_CPP", "1") == "0":
        go_without_binary("PIX2PIXHD_FAST_CPP is 0")
        return {}
    with_cuda = os.getenv("PIX2PIXHD_FAST_CUDA", "1") != "0" and bool(sources("*.cu"))
    home = cuda_home() if with_cuda else None
    if home:
        # Read by torch.utils.cpp_extension; without a list it looks at the cards it sees.
        os.environ["CUDA_HOME"] = str(home)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    try:
        import torch
        from torch.utils import cpp_extension
    except (ImportError, OSError) as error:
        go_without_binary(f"PyTorch is needed (pip install --no-build-isolation): {error}")
        return {}
    with_cuda = home is not None and torch.version.cuda is not None
    extension = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    flags = {"cxx": ["-O3", "-g0", STABLE_ABI], "nvcc": ["-O3", STABLE_ABI, "-DUSE_CUDA"]}
    return {
        "ext_modules": [
            extension(
                "pix2pixhd_fast._C",
                sources("*.cpp") + (sources("*.cu") if with_cuda else []),
                extra_compile_args=flags,
                py_limited_api=True,
            )
        ],
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
        "cmdclass": {"build_ext": optional(cpp_extension.BuildExtension)},
    }


def optional(build_ext: type) -> type:
    """`build_ext`, but a binary that cannot be built is left out."""

    class OptionalBuild(build_ext):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                go_without_binary(f"{type(error).__name__}: {error}".splitlines()[0])
                self.extensions = []

    return OptionalBuild


class EditableInstall(editable_wheel):
    """An editable install that starts without the binary of an earlier one."""

    def run(self) -> None:
        for path in ROOT.glob("pix2pixhd_fast/_C.*"):
            path.unlink()
        super().run()


if __name__ == "__main__":
    arguments = binary()
    arguments["cmdclass"] = arguments.get("cmdclass", {}) | {"editable_wheel": EditableInstall}
    setup(
        packages=[*find_packages(include=["pix2pixhd_fast*"]), "pix2pixhd_fast.kernels"],
        # Installed under our name: on PyPI, `kernels` is somebody else's package.
        package_dir={"pix2pixhd_fast.kernels": "kernels"},
        **arguments,
    )
