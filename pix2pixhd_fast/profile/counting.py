"""What one dispatched op costs: the kernels that run, the bytes they move, their arithmetic."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry, register_flop_formula

from pix2pixhd_fast._launches import Launch, described_ops, launches_of
from pix2pixhd_fast._library import reference

# Ops of this package that are no kernels but compositions of kernels, unless they describe launches
# of their own.
COMPOSED = {
    getattr(torch.ops.pix2pixhd_fast, name).default: reference(name)
    for name in (
        "norm_act_pad",
        "normalise_backward",
        "norm_act_conv",
        "norm_act_conv_backward",
        "residual_block",
        "residual_block_backward",
        "feature_matching_loss",
        "perceptual_l1",
        "perceptual_l1_backward",
    )
}
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# They return a tensor on memory that is there already, although their schema does not say so.
_HIDDEN_VIEWS = {"lift_fresh", "_unsafe_view", "_reshape_alias"}
# What is written there is not read first.
_OVERWRITTEN = {"copy_", "fill_", "zero_", "normal_", "uniform_", "_foreach_zero_"}
_SCATTERS = {"scatter_", "index_put_", "index_copy_", "index_fill_"}
_GATHERS = {"gather", "index", "index_select"}
_LOW_PRECISION = (torch.bfloat16, torch.float16)


@cache
def inside_of(op: torch._ops.OpOverload) -> Callable | None:
    """A function that computes `op` by other ops; None where it is one itself.

    PyTorch decomposes its own ops before anybody sees them, but not inside an op of ours, where
    `contiguous` would pass for a view.
    """
    implicit = op.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
        op.name(), "CompositeImplicitAutograd"
    )
    return COMPOSED.get(op) or (op.decompose if implicit else None)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one launch costs.

    traffic: bytes, every tensor argument read once and every tensor result written once, whatever
    the op does with them. touched: bytes, what a kernel has to read and write. flops: additions
    and multiplications of convolutions and matrix products. low: whether these are of bf16 or fp16
    numbers. allocates: the op only asks for memory, no kernel runs. scratch: bytes that are neither
    argument nor result of the op, there during the launch.
    """

    traffic: int
    touched: int
    flops: int
    low: bool
    allocates: bool
    scratch: int = 0


def costs_of(
    op: torch._ops.OpOverload, args: tuple, kwargs: dict, out: object
) -> list[tuple[str, Cost]]:
    """The names and costs of what a call that returned `out` launches.

    An op of this package launches what it describes; any other op is one launch, views and
    questions (sizes, values) are none.
    """
    described = launches_of(op, args, kwargs, out)
    if described is None:
        cost = cost_of(op, args, kwargs, out)
        return [] if cost is None else [(op.overloadpacket.__name__, cost)]
    low = _is_low(tensors_in((args, kwargs)))
    return [(x.name, _cost_of_launch(x, low)) for x in described]


def _cost_of_launch(launch: Launch, low: bool) -> Cost:
    moved = launch.read + launch.written
    return Cost(moved, moved, launch.flops, low, False, launch.scratch)


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
    low = _is_low(given)
    if name in _ALLOCATIONS:
        return Cost(traffic, 0, 0, low, True)
    return Cost(traffic, _touched(name, given, written, results), int(flops), low, False)


def register_flop_formulas() -> None:
    """Let `torch.utils.flop_counter` count the arithmetic of the ops of this package.

    It sees an op that is composed of others from outside, as one. What is registered already stays.
    """
    described = [getattr(torch.ops.pix2pixhd_fast, name).default for name in described_ops()]
    for op in {*described, *COMPOSED}:
        if op.overloadpacket not in flop_registry:
            formula = _flops_inside if op in COMPOSED else _flops_described
            register_flop_formula(op.overloadpacket, get_raw=True)(partial(formula, op))


def _flops_described(op: torch._ops.OpOverload, *args, out_val: object = None, **kwargs) -> int:
    return sum(launch.flops for launch in launches_of(op, args, kwargs, out_val) or ())


def _flops_inside(op: torch._ops.OpOverload, *args, out_val: object = None, **kwargs) -> int:
    """Of the ops that `op` is composed of, from tensors without values."""
    args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
    with _Arithmetic() as arithmetic:
        COMPOSED[op](*args, **kwargs)
    return arithmetic.flops


class _Arithmetic(TorchDispatchMode):
    """Sums the formulas of the ops under it."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inside = inside_of(op)
        if inside is not None:
            with self:
                return inside(*args, **kwargs)
        out = op(*args, **kwargs)
        formula = flop_registry.get(op.overloadpacket)
        self.flops += formula(*args, **kwargs, out_val=out) if formula else 0
        return out


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


def _is_low(given: list[Tensor]) -> bool:
    return any(t.dtype in _LOW_PRECISION for t in given)


def _place(t: Tensor) -> tuple:
    return t.untyped_storage()._cdata, t.storage_offset(), tuple(t.shape), tuple(t.stride())


def _bytes(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _held(t: Tensor) -> int:
    return min(_bytes(t), t.untyped_storage().nbytes())
