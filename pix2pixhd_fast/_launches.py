"""What ops launch on a GPU: their kernels, with bytes and arithmetic, for the profiler."""

from collections.abc import Callable, Iterable
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


_descriptions: dict[str, Callable[..., list[Launch]]] = {}


def register_launches(op: str, describe: Callable[..., list[Launch]]) -> None:
    """Say what the op `op` of this package launches on a GPU.

    `describe` is called with all arguments of the op in the order of its schema and with its
    `result`, tensors that may be fake, and returns the launches in their order.
    """
    _descriptions[op] = describe


def described_ops() -> list[str]:
    """The names of the ops whose launches are described."""
    return list(_descriptions)


def launches_of(
    op: torch._ops.OpOverload, args: tuple, kwargs: dict, result: object
) -> list[Launch] | None:
    """The launches of a call that returned `result`; None for an op without a description."""
    describe = _descriptions.get(op._opname) if op.namespace == "pix2pixhd_fast" else None
    if describe is None:
        return None
    rest = op._schema.arguments[len(args) :]
    values = [*args, *(kwargs.get(argument.name, argument.default_value) for argument in rest)]
    return describe(*values, result=result)


def bytes_of(*tensors: Tensor) -> int:
    """The bytes of all elements together."""
    return sum(t.numel() * t.element_size() for t in tensors)


def copies_of(
    tensors: Iterable[Tensor], layout: torch.memory_format = torch.contiguous_format
) -> list[Launch]:
    """The copies that `contiguous` makes of those that do not have the memory format `layout`.

    All of them stay to the end of the op: the scratch of the last one is that of them all.
    """
    launches: list[Launch] = []
    scratch = 0
    for t in tensors:
        if not t.is_contiguous(memory_format=layout):
            scratch += bytes_of(t)
            launches.append(Launch("aten::clone", bytes_of(t), bytes_of(t), scratch=scratch))
    return launches
