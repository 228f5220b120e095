"""What one dispatched op costs: whether a kernel runs, the bytes it moves, its arithmetic."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# They return a tensor on memory that is there already, although their schema does not say so.
_HIDDEN_VIEWS = {"lift_fresh", "_unsafe_view", "_reshape_alias"}
# What is written there is not read first.
_OVERWRITTEN = {"copy_", "fill_", "zero_", "normal_", "uniform_", "_foreach_zero_"}
_SCATTERS = {"scatter_", "index_put_", "index_copy_", "index_fill_"}
_GATHERS = {"gather", "index", "index_select"}
_LOW_PRECISION = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one op costs.

    traffic: bytes, every tensor argument read once and every tensor result written once, whatever
    the op does with them. touched: bytes, what a kernel has to read and write. flops: additions
    and multiplications of convolutions and matrix products. low: whether these are of bf16 or fp16
    numbers. allocates: the op only asks for memory, no kernel runs.
    """

    traffic: int
    touched: int
    flops: int
    low: bool
    allocates: bool


def cost_of(op: torch._ops.OpOverload, args: tuple, kwargs: dict, out: object) -> Cost | None:
    """The cost of a call that returned `out`; None for views and for questions (sizes, values)."""
    name = op.overloadpacket.__name__
    results = tensors_in(out)
    written = list(_written(op, args, kwargs))
    if op.is_view or name in _HIDDEN_VIEWS or not (results or written):
        return None
    given = tensors_in((args, kwargs))
    traffic = sum(_bytes(t) for t in given + results)
    formula = flop_registry.get(op.overloadpacket)
    flops = formula(*args, **kwargs, out_val=out) if formula else 0
    low = any(t.dtype in _LOW_PRECISION for t in given)
    if name in _ALLOCATIONS:
        return Cost(traffic, 0, 0, low, True)
    return Cost(traffic, _touched(name, given, written, results), int(flops), low, False)


def tensors_in(tree: object) -> list[Tensor]:
    """The tensors among nested lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _touched(name: str, given: list[Tensor], written: list[Tensor], results: list[Tensor]) -> int:
    """A tensor that is given twice is read once, an expanded one only where it has memory."""
    if name in _SCATTERS:
        target, *rest = given
        return sum(_held(t) for t in rest) + rest[0].numel() * target.element_size()
    places = {_place(t) for t in written}
    new = [t for t in results if _place(t) not in places]
    if name in _GATHERS:
        return 2 * sum(_bytes(t) for t in new) + sum(_held(t) for t in given[1:])
    read = {_place(t): t for t in given}
    if name in _OVERWRITTEN:
        for place in places:
            read.pop(place, None)
    return sum(_held(t) for t in (*read.values(), *written, *new))


def _written(op: torch._ops.OpOverload, args: tuple, kwargs: dict) -> Iterator[Tensor]:
    """The arguments that the op writes into."""
    for n, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[n] if n < len(args) else kwargs.get(argument.name)
            yield from tensors_in(value)


def _place(t: Tensor) -> tuple:
    return t.untyped_storage()._cdata, t.storage_offset(), tuple(t.shape), tuple(t.stride())


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _held(t: Tensor) -> int:
    return min(_bytes(t), t.untyped_storage().nbytes())
