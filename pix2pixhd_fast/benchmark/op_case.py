"""From the description of an op to the cases of its passes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pix2pixhd_fast.benchmark.case import FORWARD, FORWARD_BACKWARD, Case, Step, Unavailable
from pix2pixhd_fast.benchmark.request import DTYPES, Request
from pix2pixhd_fast.benchmark.running import backward_step, forward_step


@dataclass(frozen=True)
class OpCase:
    """One shape of an op.

    `inputs` draws the tensors on the CPU, those that are floating in float32; `eager` and `fused`
    take them and return the same tensor, or tensors, without changing what they are given.
    `floor_bytes` and `flops` are those of (forward, forward+backward): each input and result once.
    `tolerance` holds for both passes. There is a backward where an input is floating. `dtype` is
    given where it is not the user's choice. "fused" is given the first `channels_last` inputs in
    that format, as they are in a network; the last `constants` inputs have no gradient.
    """

    name: str
    inputs: Callable[[], tuple[Tensor, ...]]
    eager: Callable[..., Tensor | tuple[Tensor, ...]]
    fused: Callable[..., Tensor | tuple[Tensor, ...]]
    floor_bytes: tuple[int, int]
    tolerance: float
    flops: tuple[int, int] = (0, 0)
    dtype: str = ""
    channels_last: int = 0
    constants: int = 0


Size = tuple[int, int]
OpCases = Callable[[Request, Size, str], Iterator[OpCase]]
OPS: dict[str, OpCases] = {}

OP_BACKENDS = ("eager", "compile", "fused")
WARM_UPS = 4  # memory that is touched for the first time is slow
# Of a convolution: it sums hundreds of rounded products, twice in a residual block.
CONVOLUTION_TOLERANCES = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 1e-2, "bf16": 5e-2}


def op_case(function: OpCases) -> OpCases:
    """Make the function's name a target; it yields one `OpCase` per shape."""
    OPS[function.__name__] = function
    return function


def op_passes(target: str, op: OpCase, request: Request, size: Size, dtype: str) -> Iterator[Case]:
    """Forward, and forward+backward where the op has one."""
    passes = (FORWARD,) if op.dtype else (FORWARD, FORWARD_BACKWARD)
    for index, pass_name in enumerate(passes):

        def prepare(backend: str, dtype: str, pass_name=pass_name) -> Step:
            return _prepare(op, pass_name, backend, dtype, request.device)

        yield Case(
            target,
            op.name,
            pass_name,
            size,
            request.batch,
            op.dtype or dtype,
            prepare,
            OP_BACKENDS,
            op.tolerance,
            op.floor_bytes[index] or None,
            op.flops[index] or None,
            WARM_UPS,
        )


def _prepare(op: OpCase, pass_name: str, backend: str, dtype: str, device: str) -> Step:
    if backend not in OP_BACKENDS:
        raise Unavailable("not for ops")
    drawn = list(op.inputs())
    for i in range(op.channels_last if backend == "fused" else 0):
        drawn[i] = drawn[i].contiguous(memory_format=torch.channels_last)
    inputs = [_placed(x, dtype, device, pass_name) for x in drawn]
    for x in inputs[len(inputs) - op.constants :]:
        x.requires_grad_(False)
    function = op.fused if backend == "fused" else op.eager
    if backend == "compile":
        function = torch.compile(function, dynamic=False)

    def call() -> list[Tensor]:
        return tree_leaves(function(*inputs))

    if pass_name == FORWARD:
        return forward_step(call, backend, dtype)
    return backward_step(call, [x for x in inputs if x.requires_grad], backend, dtype)


def _placed(x: Tensor, dtype: str, device: str, pass_name: str) -> Tensor:
    if not x.is_floating_point():
        return x.to(device)
    return x.to(device, DTYPES[dtype]).requires_grad_(pass_name == FORWARD_BACKWARD)
