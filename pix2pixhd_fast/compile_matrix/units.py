"""What is compiled at a time, and the rows that come of it."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from pix2pixhd_fast.compile_matrix.limits import occupancy
from pix2pixhd_fast.compile_matrix.machine_code import Code

HERE = Path(__file__).parent
MAKES_ROWS = ("cuda_kernels", "limits", "machine_code", "triton_kernels", "units", "workers")


@dataclass(frozen=True)
class Row:
    """One variant of one kernel for one architecture.

    `registers` of a thread; bytes of `spills` (of the instructions that use local memory) and of
    the `stack`, both of a thread, and of `shared` memory of a block; `block`: its threads;
    `occupancy`: the share of the warps of a multiprocessor that fit; `tensor_core`: instructions;
    `load_bits`, `store_bits`: the widest access to global memory, and `loads`, `stores`: how many
    of each width. `error`: what the compiler says where it does not compile, else "".
    """

    kernel: str
    variant: str
    source: str
    arch: str
    registers: int = 0
    spills: int = 0
    stack: int = 0
    shared: int = 0
    occupancy: float = 0.0
    block: int = 0
    tensor_core: int = 0
    load_bits: int = 0
    store_bits: int = 0
    loads: dict[str, int] = field(default_factory=dict)
    stores: dict[str, int] = field(default_factory=dict)
    error: str = ""

    @property
    def failure(self) -> str:
        """What is wrong with it in a few words, or ""."""
        if self.error:
            return "does not compile"
        if self.spills or self.stack:
            return f"{self.spills} bytes of spills, {self.stack} of stack"
        return "" if self.occupancy > 0 else "no block fits a multiprocessor"

    def as_dict(self) -> dict:
        return asdict(self)


class Binary(NamedTuple):
    """A cubin; bytes of dynamic shared memory and threads of its kernels' blocks, where the launch
    says so and not the binary.
    """

    cubin: bytes
    shared: int = 0
    block: int = 0


class Unit(Protocol):
    """What is compiled and cached as one, for one architecture.

    Units of one `family` are the variants of one kernel; `kernel` is the op's name where only the
    binary says which kernels it has. A `digest` changes with everything that the rows depend on.
    """

    kernel: str
    variant: str
    source: str
    capability: int
    digest: str
    family: str

    def compile(self) -> Binary: ...

    def name(self, symbol: str) -> tuple[str, str]:
        """Kernel and variant of a (mangled) name in the binary."""


def failed_row(unit: Unit, error: str) -> Row:
    arch = f"sm_{unit.capability}"
    return Row(unit.kernel, unit.variant, unit.source, arch, error=error.strip() or "no message")


def make_row(unit: Unit, symbol: str, code: Code, binary: Binary) -> Row:
    kernel, variant = unit.name(symbol)
    shared, block = code.shared + binary.shared, binary.block or code.max_threads
    # Without __launch_bounds__ nvcc allows for the largest block.
    share = occupancy(unit.capability, code.registers, shared, block or 1024)
    return Row(
        kernel=kernel,
        variant=variant,
        source=unit.source,
        arch=f"sm_{unit.capability}",
        registers=code.registers,
        spills=code.spills,
        stack=code.stack,
        shared=shared,
        occupancy=round(share, 3),
        block=block,
        tensor_core=code.tensor_core,
        load_bits=max(code.loads, default=0),
        store_bits=max(code.stores, default=0),
        loads={str(bits): code.loads[bits] for bits in sorted(code.loads)},
        stores={str(bits): code.stores[bits] for bits in sorted(code.stores)},
    )


def digest_of(*parts: object) -> str:
    """A digest of `parts`, and of the code that makes rows of them."""
    digest = hashlib.sha256()
    for name in MAKES_ROWS:
        digest.update((HERE / f"{name}.py").read_bytes())
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(str(len(data)).encode() + b":" + data)
    return digest.hexdigest()[:32]
