"""What ops launch on a GPU: their kernels, with bytes and arithmetic, for the profiler."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """One kernel.

    name: of our own "<file of the kernel>.<kernel>", as "norm_act_pad.statistics"; of a library
    its op, as "aten::convolution". read, written: bytes of the tensors that it is given, each once
    and in full. flops: additions and multiplications of convolutions and matrix products. scratch:
    bytes of memory that is neither argument nor result of the op and is there during this launch.
    """

    name: str
    read: int
    written: int
    flops: int = 0
    scratch: int = 0


Describe = Callable[..., list[Launch] | None]
_descriptions: dict[str, Describe] = {}
_attributed: list[tuple[object, str]] = []


def register_launches(op: str, describe: Describe) -> None:
    """Say what the op `op` of this package launches on a GPU.

    `describe` is called with all arguments of the op in the order of its schema and with its
    `result`, tensors that may be fake, and returns the launches in their order; None where this
    call is composed of other ops, which have descriptions of their own.
    """
    _descriptions[op] = describe


def described_ops() -> list[str]:
    """The names of the ops whose launches are described."""
    return list(_descriptions)


def launches_of(
    op: torch._ops.OpOverload, args: tuple, kwargs: dict, result: object
) -> list[Launch] | None:
    """The launches of a call that returned `result`.

    None for an op without a description, and for a call that is composed of other ops.
    """
    describe = _descriptions.get(op._opname) if op.namespace == "pix2pixhd_fast" else None
    if describe is None:
        return None
    rest = op._schema.arguments[len(args) :]
    values = [*args, *(kwargs.get(argument.name, argument.default_value) for argument in rest)]
    return describe(*values, result=result)


def bytes_of(*tensors: Tensor | None) -> int:
    """The bytes of all elements together."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def copies_of(tensors: Iterable[Tensor]) -> list[Launch]:
    """The copies that a launcher makes of tensors that its kernels cannot read as they lie.

    All of them stay to the end of the op.
    """
    launches: list[Launch] = []
    scratch = 0
    for t in tensors:
        scratch += bytes_of(t)
        launches.append(Launch("aten::clone", bytes_of(t), bytes_of(t), scratch=scratch))
    return launches


def scratch_of(copies: list[Launch]) -> int:
    """The bytes of all these copies together."""
    return copies[-1].scratch if copies else 0


def backward_of(module: object) -> AbstractContextManager[None]:
    """Inside the block, ops that are called by name are the backward of `module`.

    Of a backward that autograd runs, the profiler knows the module by the graph.
    """
    return _work_of(module, "backward")


def forward_of(module: object) -> AbstractContextManager[None]:
    """Inside the block, ops outside of modules are of the forward of `module`."""
    return _work_of(module, "forward")


@contextmanager
def _work_of(module: object, phase: str) -> Iterator[None]:
    _attributed.append((module, phase))
    try:
        yield
    finally:
        _attributed.pop()


def attributed() -> tuple[object, str] | None:
    """Module and phase whose work runs now by `backward_of` or `forward_of`, or None."""
    return _attributed[-1] if _attributed else None
