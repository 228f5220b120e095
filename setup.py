"""The packages and the optional binary, pix2pixhd_fast/_C.abi3.so; the rest is in pyproject.toml.

The binary holds the C++ and CUDA kernels. Where it cannot be built the package installs without it,
one line says why, and the PyTorch reference of every op runs instead. Environment variables:

PIX2PIXHD_FAST_CPP=0          no binary
PIX2PIXHD_FAST_CUDA=0         no CUDA in the binary
PIX2PIXHD_FAST_REQUIRE_CPP=1  fail where the binary cannot be built
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
BUILD_COMMANDS = {"bdist_wheel", "build", "build_ext", "editable_wheel", "install"}
# By its path: the package itself imports PyTorch, which the build may not have.
_spec = importlib.util.spec_from_file_location("_toolchain", ROOT / "pix2pixhd_fast/_toolchain.py")
toolchain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toolchain)


def go_without_binary(reason: str) -> None:
    if os.getenv("PIX2PIXHD_FAST_REQUIRE_CPP") == "1":
        sys.exit(f"pix2pixhd_fast: the C++ kernels cannot be built: {reason}")
    print(f"pix2pixhd_fast: no C++ kernels, the slower PyTorch reference will run: {reason}")


def sources(pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"csrc/{pattern}"))


def binary() -> dict:
    """The arguments of setup() for the binary; none where not asked for or without PyTorch."""
    if not BUILD_COMMANDS.intersection(sys.argv):
        return {}
    if os.getenv("PIX2PIXHD_FAST_CPP", "1") == "0":
        go_without_binary("PIX2PIXHD_FAST_CPP is 0")
        return {}
    with_cuda = os.getenv("PIX2PIXHD_FAST_CUDA", "1") != "0" and bool(sources("*.cu"))
    home = toolchain.cuda_home() if with_cuda else None
    if home:
        # Read by torch.utils.cpp_extension; without a list it looks at the cards it sees.
        os.environ["CUDA_HOME"] = str(home)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", toolchain.ARCHITECTURES)
    try:
        import torch
        from torch.utils import cpp_extension
    except (ImportError, OSError) as error:
        go_without_binary(f"PyTorch is needed (pip install --no-build-isolation): {error}")
        return {}
    with_cuda = home is not None and torch.version.cuda is not None
    extension = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    flags = {"cxx": list(toolchain.CXX_FLAGS), "nvcc": list(toolchain.NVCC_FLAGS)}
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
