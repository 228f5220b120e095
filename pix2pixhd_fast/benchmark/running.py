"""How a backend runs a function: our backend, the precision of float32, compiling, gradients."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pix2pixhd_fast._backend import backend
from pix2pixhd_fast.benchmark.case import Step


@contextmanager
def running(name: str, dtype: str) -> Iterator[None]:
    """Our backend for the backend `name`; float32 in TF32 only where `dtype` says so."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = dtype == "tf32"
    try:
        with backend("fused" if name.startswith("fused") else "eager"):
            yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def forward_step(function: Callable[[], list[Tensor]], name: str, dtype: str) -> Step:
    """The step that runs `function` without a graph."""

    def step() -> dict[str, list[Tensor]]:
        with running(name, dtype), torch.no_grad():
            return {"output": function()}

    return step


def backward_step(
    function: Callable[[], list[Tensor]], wanted: list[Tensor], name: str, dtype: str
) -> Step:
    """The step that runs `function` and the gradient of what it returns with respect to `wanted`.

    The gradients that flow in are drawn once, in the memory format of the results.
    """
    incoming: list[Tensor] = []

    def step() -> dict[str, list[Tensor]]:
        with running(name, dtype):
            outputs = function()
            if not incoming:
                incoming.extend(_drawn_like(y, seed) for seed, y in enumerate(outputs, start=1))
            gradients = torch.autograd.grad(outputs, wanted, incoming)
        return {"output": [y.detach() for y in outputs], "gradient": list(gradients)}

    return step


def _drawn_like(y: Tensor, seed: int) -> Tensor:
    drawn = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    return torch.empty_like(y).copy_(drawn)
