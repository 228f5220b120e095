"""What the machine code of a kernel takes and does: read from the binary (cubin) of a compiler."""

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pix2pixhd_fast.compile_matrix.limits import SHARED_RESERVED

# An instruction in the words of nvdisasm: its address, perhaps a predicate, its name.
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.M)
# The products of matrices of every generation: HMMA, QMMA, HGMMA, UTCHMMA, ...
TENSOR_CORE = re.compile(r"(?:[A-Z]G?MMA|UTC\w*MMA)$")
LOADS, STORES, LOCAL = {"LDG", "LDGSTS"}, {"STG"}, {"LDL", "STL"}
USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
# Kind and number of the attribute of a kernel that holds the largest block it was compiled for.
MAX_THREADS = (4, 5)


@dataclass
class Code:
    """Of one kernel: registers of a thread, bytes of its stack, bytes of static shared memory,
    the largest block it was compiled for (0: any), and instructions.

    `spills`: bytes of all instructions that read or write local memory. `loads` and `stores`: how
    many instructions there are for global memory by their width in bits.
    """

    registers: int
    stack: int
    shared: int
    max_threads: int = 0
    spills: int = 0
    tensor_core: int = 0
    loads: Counter[int] = field(default_factory=Counter)
    stores: Counter[int] = field(default_factory=Counter)


def examine(cubins: Sequence[bytes], capability: int, tools: Path) -> list[dict[str, Code]]:
    """Of each binary, its kernels by (mangled) name. `tools`: the folder of nvdisasm, cuobjdump.

    nvdisasm takes 0.4 s to start, so it runs once over the instructions of all.
    """
    found, texts = [], []
    for cubin in cubins:
        sections = _sections(cubin)
        kernels = _usage(cubin, capability, tools)
        for name, code in kernels.items():
            code.max_threads = _max_threads(sections.get(f".nv.info.{name}", b""))
            texts.append((code, sections[f".text.{name}"]))
        found.append(kernels)
    names = _instructions(b"".join(text for _, text in texts), capability, tools)
    first = 0
    for code, text in texts:
        _count(code, [name for at, name in names if first <= at < first + len(text)])
        first += len(text)
    return found


def _sections(cubin: bytes) -> dict[str, bytes]:
    """The sections of a 64-bit ELF file by name."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    strings = headers[names][4]
    found = {}
    for name, kind, _, _, offset, length in headers:
        start = strings + name
        content = b"" if kind == 8 else cubin[offset : offset + length]  # 8: has none in the file
        found[cubin[start : cubin.index(b"\0", start)].decode()] = content
    return found


def _usage(cubin: bytes, capability: int, tools: Path) -> dict[str, Code]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _run(tools / "cuobjdump", "-res-usage", file.name)
    found = {}
    for name, registers, stack, shared, local in USAGE.findall(text):
        # From sm_90 on, what the system keeps is counted where a kernel has shared memory at all.
        reserved = SHARED_RESERVED if capability >= 90 and int(shared) else 0
        # Local memory apart from the stack is as slow.
        found[name] = Code(int(registers), int(stack) + int(local), int(shared) - reserved)
    return found


def _max_threads(info: bytes) -> int:
    """From the attributes of a kernel, each a kind, a number and 16 bits or as many bytes."""
    at = 0
    while at + 4 <= len(info):
        kind, number, size = struct.unpack_from("<BBH", info, at)
        if (kind, number) == MAX_THREADS:
            x, y, z = struct.unpack_from("<III", info, at + 4)
            return x * y * z
        at += 4 + (size if kind == 4 else 0)
    return 0


def _instructions(code: bytes, capability: int, tools: Path) -> list[tuple[int, str]]:
    """Address and name of each instruction of bare machine code."""
    if not code:
        return []
    # With the instructions that only this architecture has; sm_80 to sm_89 have none such.
    name = f"SM{capability}" + ("a" if capability >= 90 else "")
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(code)
        file.flush()
        text = _run(tools / "nvdisasm", "-b", name, file.name)
    return [(int(at, 16), name) for at, name in INSTRUCTION.findall(text)]


def _count(code: Code, names: list[str]) -> None:
    for name in names:
        operation, *modifiers = name.split(".")
        bits = _width(modifiers)
        if operation in LOCAL:
            code.spills += bits // 8
        elif operation in LOADS:
            code.loads[bits] += 1
        elif operation in STORES:
            code.stores[bits] += 1
        code.tensor_core += TENSOR_CORE.match(operation) is not None


def _width(modifiers: list[str]) -> int:
    for modifier in modifiers:
        if re.fullmatch(r"[US](8|16)|64|128|256", modifier):
            return int(modifier.lstrip("US"))
    return 32


def _run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name}: {result.stderr.strip()}")
    return result.stdout
