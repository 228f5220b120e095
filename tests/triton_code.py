"""Compiles a Triton kernel for a GPU that is not there, and reads what it takes from the binary."""

import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

CAPABILITIES = (80, 86, 89, 90, 100, 120)


class Code(NamedTuple):
    """Registers of a thread; bytes of a thread's stack and local memory (spills), and shared."""

    registers: int
    stack: int
    local: int
    shared: int
    vector_loads: bool


def compile_kernel(
    kernel,
    capability: int,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    multiples_of_16: Collection[str] = (),
) -> Code:
    """Compile a `triton.jit` function for `capability` (90 is sm_90) with its default launch.

    `types`: of the arguments that are neither constants nor int32; pointers are taken to be aligned
    to 16 bytes, as PyTorch's are. `slope` and `eps` are float32.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {"slope": "fp32", "eps": "fp32"} | dict(types) | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name in multiples_of_16
    }
    source = ASTSource(kernel, signature, dict(constants), attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "-res-usage", cubin.name], capture_output=True, text=True)
    found = dict(re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage.stdout))
    return Code(
        *(int(found[name]) for name in ("REG", "STACK", "LOCAL", "SHARED")),
        vector_loads=bool(re.search(r"ld\.global[.\w:]*\.v[248]\.", compiled.asm["ptx"])),
    )
