"""The Triton kernels: which there are, which variants are launched, what they compile to."""

import importlib
import importlib.metadata
import os
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from pix2pixhd_fast.compile_matrix.units import Binary, digest_of
from pix2pixhd_fast.errors import InputError


def tools() -> Path:
    """The folder of cuobjdump and nvdisasm, which Triton brings."""
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class TritonUnit:
    launch: object  # a Variant of kernels/variants.py
    source: str
    capability: int
    digest: str

    @property
    def kernel(self) -> str:
        return self.launch.kernel.__name__

    @property
    def variant(self) -> str:
        return self.launch.label

    @property
    def family(self) -> str:
        return f"{self.source}:{self.kernel}"

    def name(self, symbol: str) -> tuple[str, str]:
        return self.kernel, self.variant

    def compile(self) -> Binary:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        kernel = self.launch.kernel
        attributes = {
            (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
            for name in self.launch.multiples_of_16
        }
        source = ASTSource(kernel, self.launch.types, dict(self.launch.constants), attributes)
        target = GPUTarget("cuda", self.capability, 32)
        compiled = triton.compile(source, target=target, options=dict(self.launch.options))
        metadata = compiled.metadata
        return Binary(compiled.asm["cubin"], metadata.shared, metadata.num_warps * 32)


def triton_units(capabilities: tuple[int, ...]) -> list[TritonUnit]:
    """A unit for each different variant that the modules in kernels/ name, and architecture."""
    units = []
    for module in kernel_modules():
        source = f"kernels/{module.__name__.rpartition('.')[2]}.py"
        seen = set()
        for launch in getattr(module, "variants", tuple)():
            key = (launch.kernel.__name__, launch.label)
            if key in seen:
                continue
            seen.add(key)
            parts = _parts(launch)
            units += [
                TritonUnit(launch, source, capability, digest_of(*parts, source, capability))
                for capability in capabilities
            ]
    return units


def kernels_without_variant() -> list[str]:
    """The functions in kernels/ that Triton would compile and that no variant compiles."""
    from triton.runtime.jit import JITFunction

    modules = kernel_modules()
    launched = [launch.kernel for m in modules for launch in getattr(m, "variants", tuple)()]
    reached = {id(each) for kernel in launched for each in _reached(kernel)}
    return [
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, JITFunction)
        and value.fn.__module__ == module.__name__
        and id(value) not in reached
    ]


def kernel_modules() -> list[ModuleType]:
    """The modules in kernels/, imported for the compiler even where TRITON_INTERPRET is 1."""
    with _without_interpreter():
        try:
            kernels = importlib.import_module("pix2pixhd_fast.kernels")
            names = sorted(module.name for module in pkgutil.iter_modules(kernels.__path__))
            return [importlib.import_module(f"{kernels.__name__}.{name}") for name in names]
        except ModuleNotFoundError as error:
            raise InputError(
                f"the kernels cannot be compiled: {error} (pip install triton, pip install -e .)"
            ) from None


@contextmanager
def _without_interpreter() -> Iterator[None]:
    """Triton decides when a kernel is imported whether it is to be compiled or interpreted."""
    given = os.environ.pop("TRITON_INTERPRET", None)
    try:
        import triton.language

        if type(triton.language.sum).__name__ == "InterpretedFunction":
            raise InputError(
                "TRITON_INTERPRET must be unset where kernels are compiled: Triton was imported "
                f"under TRITON_INTERPRET={given}"
            )
        yield
    finally:
        if given is not None:
            os.environ["TRITON_INTERPRET"] = given


def _parts(launch) -> list[object]:
    """All that the code of a variant depends on, except for the architecture."""
    functions = sorted(_reached(launch.kernel), key=lambda each: each.fn.__qualname__)
    used = [(each.fn.__qualname__, each.src, _constants(each)) for each in functions]
    version = importlib.metadata.version("triton")
    return [version, used, *map(_stable, launch[1:])]


def _reached(kernel) -> list:
    """`kernel` and the functions of Triton that it calls, those that they call, and so on.

    Triton's own library is left out: it changes with the version only.
    """
    from triton.runtime.jit import JITFunction

    found = {id(kernel): kernel}
    waiting = [kernel]
    while waiting:
        function = waiting.pop().fn
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            if isinstance(value, JITFunction) and not value.fn.__module__.startswith("triton."):
                if id(value) not in found:
                    found[id(value)] = value
                    waiting.append(value)
    return list(found.values())


def _constants(function) -> list[tuple[str, str]]:
    """The global numbers and words that a function uses."""
    values = {name: function.fn.__globals__.get(name) for name in function.fn.__code__.co_names}
    plain = (int, float, str, tuple)
    return [
        (name, repr(value))
        for name, value in sorted(values.items())
        if isinstance(value, plain) or type(value).__name__ == "constexpr"
    ]


def _stable(values) -> object:
    return sorted(map(repr, values.items())) if hasattr(values, "items") else values
