"""The operator library: one namespace, one binary, one choice of backend."""

import importlib
import importlib.util
import logging
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch

from pix2pixhd_fast.errors import InputError

# ref: the references only; cpp: the compiled kernels, which must be there; triton: Triton for the
# GPU and the compiled kernels for the CPU; auto: the fastest that there is, per op.
BACKENDS = ("auto", "ref", "cpp", "triton")
BACKEND = os.getenv("PIX2PIXHD_FAST_BACKEND", "auto")
# Triton's interpreter runs the kernels on the CPU: slow, for tests.
INTERPRETED = BACKEND == "triton" and os.getenv("TRITON_INTERPRET") == "1"
BINARY = Path(__file__).with_name("_C.abi3.so")

_library = torch.library.Library("pix2pixhd_fast", "DEF")
_names: list[str] = []
_references: dict[str, Callable] = {}
_composed_on_cpu: set[str] = set()


def define(name: str, schema: str, reference: Callable) -> None:
    """Define the op `name`; its reference serves devices without a kernel, and shape inference."""
    _library.define(name + schema)
    _library.impl(name, reference, "CompositeExplicitAutograd")
    _names.append(name)
    _references[name] = reference


def kernel(name: str, *arguments):
    """Run the op `name`, by its reference where the first tensor is float64: no kernel is for that.

    For the ops that ops are composed of; they have no gradient of their own. Where the first
    argument is a list of tensors, they have one dtype.
    """
    first = arguments[0][0] if isinstance(arguments[0], list) else arguments[0]
    if first.dtype == torch.float64:
        return _references[name](*arguments)
    return getattr(torch.ops.pix2pixhd_fast, name)(*arguments)


def reference(name: str) -> Callable:
    """The reference of the op `name`, which looks inside an op that is composed of others."""
    return _references[name]


def register_triton(name: str, launcher: str) -> None:
    """Run the op `name` on the GPU by `launcher` ("module:function"), imported at its first call.

    Not under the backends ref and cpp, nor where Triton is not installed. Under the backend triton
    with TRITON_INTERPRET=1 the launcher serves the CPU instead of the GPU.
    """
    if BACKEND not in ("auto", "triton") or importlib.util.find_spec("triton") is None:
        return
    module, function = launcher.split(":")

    def launch(*arguments):
        return getattr(importlib.import_module(module), function)(*arguments)

    _library.impl(name, launch, "CPU" if INTERPRETED else "CUDA")


def register_cpu(name: str, function: Callable) -> None:
    """Run the op `name` on the CPU by other ops, not under the backend ref nor the interpreter."""
    if BACKEND != "ref" and not INTERPRETED:
        _library.impl(name, function, "CPU")
        _composed_on_cpu.add(name)


def library_status() -> dict[str, bool | str | list[str] | None]:
    """Say what runs the ops.

    Returns `built` (whether the compiled kernels are loaded), `backend` (PIX2PIXHD_FAST_BACKEND),
    `path` (of the loaded binary, or None), `kernels` (the ops that have a kernel for the CPU; the
    others run there by other ops, or by their PyTorch reference) and `gpu_kernels` (the same for
    the GPU).
    """
    by_kernels = [name for name in _names if name not in _composed_on_cpu]
    return {
        "built": _loaded,
        "backend": BACKEND,
        "path": str(BINARY) if _loaded else None,
        "kernels": [name for name in by_kernels if has_kernel(name, "CPU")],
        "gpu_kernels": [name for name in _names if has_kernel(name, "CUDA")],
    }


def has_kernel(name: str, key: str) -> bool:
    """Whether the op `name` has a kernel, beside its reference, for a dispatch key ("CPU")."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"pix2pixhd_fast::{name}", key)


def _load() -> bool:
    """Load the binary, which registers its kernels; say so where it is wanted and cannot be had."""
    if BACKEND not in BACKENDS:
        raise InputError(
            f"PIX2PIXHD_FAST_BACKEND must be one of {', '.join(BACKENDS)}, got {BACKEND!r}"
        )
    if BACKEND == "ref":
        return False
    try:
        if not BINARY.is_file():
            raise OSError(f"{BINARY} was not built")
        torch.ops.load_library(BINARY)
    except OSError as error:
        if BACKEND == "cpp":
            raise InputError(
                f"PIX2PIXHD_FAST_BACKEND is cpp, which needs the C++ kernels: {error}"
            ) from None
        # Once per program, not once per worker process.
        if multiprocessing.parent_process() is None:
            logging.getLogger("pix2pixhd_fast").warning(
                "pix2pixhd_fast: no C++ kernels, the slower PyTorch reference runs: %s", error
            )
        return False
    return True


_loaded = _load()
