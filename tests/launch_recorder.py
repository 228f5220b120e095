"""Runs Triton launchers in the interpreter; prints what they launched. Run with TRITON_INTERPRET=1.

A rule gives the bytes, without a look at the kernel: each tensor that a launch is given counts
once and in full, as written where the launch changed it, as read where it held values before (new
memory is NaN, bytes are 255) and was not written, or was written in place. Scratch is
every storage given to a launch that belongs to no argument and no result of the op.
"""

import importlib
import json
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pix2pixhd_fast.ops.norm_act_pad_kernels import inner
from pix2pixhd_fast.ops.relu_codes import SUM_PROGRAMS, code_bytes

# The module in kernels/ and the function in it that runs an op.
LAUNCHERS = {
    "channel_statistics": ("channel_statistics", "launch"),
    "norm_act_pad_apply": ("norm_act_pad", "apply"),
    "norm_act_pad_reduce": ("norm_act_pad_backward", "reduce"),
    "norm_act_pad_backward": ("norm_act_pad_backward", "backward"),
    "matched_norm_backward": ("matched_norm_backward", "backward"),
    "fold": ("norm_act_pad_backward", "fold"),
    "fold_add_": ("norm_act_pad_backward", "fold_add"),
    "relu_bits_": ("relu_bits", "relu_bits"),
    "relu_bits_backward_": ("relu_bits", "relu_bits_backward"),
    "relu_l1_": ("relu_l1", "relu_l1"),
    "relu_l1_backward_": ("relu_l1", "relu_l1_backward"),
    "relu_pool": ("relu_pool", "relu_pool"),
    "relu_pool_into_": ("relu_pool", "relu_pool_into"),
    "relu_pool_backward": ("relu_pool", "relu_pool_backward"),
    "first_relu": ("first_l1", "first_relu"),
    "first_l1": ("first_l1", "first_l1"),
}


class Case(NamedTuple):
    """`border` around x, residual, minus and dx; `added`: a residual, or minus; `affine`: gamma and
    beta; `odd`: strides of every tensor that no kernel reads.
    """

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    last: bool = True
    padding: str = "reflect"
    pad: int = 1
    border: int = 0
    added: bool = False
    affine: bool = False
    odd: bool = False

    def picture(self, border: int) -> Tensor:
        n, c, h, w = self.shape
        layout = torch.channels_last if self.last else torch.contiguous_format
        shape = (n, c, h + 2 * border, (w + 2 * border) * (1 + self.odd))
        t = torch.ones(shape, dtype=self.dtype).contiguous(memory_format=layout)
        return t[..., ::2] if self.odd else t

    def per_channel(self) -> Tensor:
        n, c = self.shape[:2]
        return torch.ones(n, c * (1 + self.odd))[:, :: 1 + self.odd]


CASES = {
    "planes": Case((2, 3, 9, 7), last=False, pad=2, added=True),
    "planes in parts": Case((1, 1, 64, 70), torch.float16, False, "zero", affine=True),
    "channels_last": Case((2, 70, 6, 5), padding="replicate", border=1, added=True),
    "bf16 in parts": Case((1, 2, 70, 63), torch.bfloat16, padding="none", pad=0, affine=True),
    "border in parts": Case((1, 2, 70, 63), border=2, added=True),
    "copied": Case((2, 8, 10, 10), added=True, affine=True, odd=True),
    "copied in parts": Case((1, 2, 64, 70), last=False, odd=True),
    "empty": Case((0, 8, 10, 10), added=True),
}


def arguments_of(op: str, case: Case) -> tuple:
    """The arguments of an op, tensors of ones."""
    x, dy = inner(case.picture(case.border), case.border), case.picture(case.pad)
    added = inner(case.picture(case.border), case.border) if case.added else None
    statistics = (case.per_channel(), case.per_channel())
    gamma = case.per_channel()[0] if case.affine else None
    norm = (*statistics, gamma, gamma)
    rest = ("relu", 0.2, case.padding, case.pad)
    sums = (case.per_channel(), case.per_channel())
    return {
        "channel_statistics": (x, 1e-5),
        "norm_act_pad_apply": (x, *norm, added, *rest),
        "norm_act_pad_reduce": (dy, x, added, *norm, *rest),
        "norm_act_pad_backward": (dy, x, added, *norm, *sums, *rest),
        "matched_norm_backward": _matched_arguments(case, x),
        "fold": (dy, case.padding, case.pad),
        "fold_add_": (case.picture(case.border), dy, case.border, case.padding, case.pad),
        **_relu_arguments(case),
    }[op]


def _matched_arguments(case: Case, x: Tensor) -> tuple:
    """With means, of the gradient and of the matching, and statistics of both features."""
    real = inner(case.picture(case.border), case.border)
    four, more = ([case.per_channel() for _ in range(4)] for _ in range(2))
    rest = (torch.ones(()), 0.5, "relu", 0.2)
    return case.picture(0), x, *four, real, *more, *rest


def _relu_arguments(case: Case) -> dict[str, tuple]:
    """Of the ops that know one memory format only; `added`: all that may be written or kept is."""
    n, c, h, w = case.shape
    x = torch.ones(case.shape, dtype=case.dtype).contiguous(memory_format=torch.channels_last)
    bias, one, added = torch.ones(c), torch.ones(()), case.added
    coded, sums = n if added else 0, torch.ones(SUM_PROGRAMS) if added else None
    image, first = x[:, :1], (torch.ones(1, 3, 3, 5), torch.ones(5), case.dtype)

    def codes(elements: int, bits: int) -> Tensor:
        return torch.zeros(code_bytes(elements, bits), dtype=torch.uint8)

    pooled = torch.ones(n, c, h // 2, w // 2, dtype=case.dtype)
    pooled = pooled.contiguous(memory_format=torch.channels_last)
    return {
        "relu_bits_": (x, -bias, coded),
        "relu_bits_backward_": (x, codes(x.numel(), 1)),
        "relu_l1_": (x, 3 * x, bias, sums, 0.5, added, case.last, added),
        "relu_l1_backward_": (x, codes(x.numel(), 2), one, 0.5, True),
        "relu_pool": (x, bias, coded, n),
        "relu_pool_into_": (x, bias, pooled * float("nan")),
        "relu_pool_backward": (pooled, codes(pooled.numel(), 4), h, w),
        "first_relu": (image, *first),
        "first_l1": (image, 3 * image, *first, 0.5, added),
    }


class Recorder(TorchDispatchMode):
    """Notes launches as [name, bytes read, bytes written, bytes of scratch or None for unknown]."""

    def __init__(self):
        super().__init__()
        self.launches: list[list] = []
        self.given: list[Tensor] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        if not op.is_view and not op.__name__.startswith(("empty", "fill_")):
            self.launches.append([f"aten::{op._opname}", _bytes([args[0]]), _bytes([out]), None])
            self.given.append(out)
        return out

    def run_kernel(self, run, kernel, args: tuple, kwargs: dict) -> None:
        tensors = [t for t in args if isinstance(t, Tensor) and not self.is_counter(t)]
        before = [t.clone() for t in tensors]
        run(kernel, *args, **kwargs)
        read = _bytes(t for t in before if not _is_new(t))
        written = _bytes(t for t, b in zip(tensors, before, strict=True) if not torch.equal(t, b))
        name = kernel.fn.__name__.removeprefix("_").removesuffix("_kernel")
        file = kernel.fn.__module__.rpartition(".")[2]
        self.launches.append([f"{file}.{name}", read, written, None])
        self.given += tensors

    def is_counter(self, t: Tensor) -> bool:
        """Whether t is kept between launches, of which it is no tensor with values."""
        from pix2pixhd_fast.kernels.blocks import counters

        with _disable_current_modes():
            return t is counters(t)

    def finished(self, own: list[Tensor]) -> list[list]:
        """The launches; the copies before the first of our kernels come one by one."""
        outer = {t.untyped_storage()._cdata for t in own}
        scratch = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in self.given}
        total, copies = sum(n for key, n in scratch.items() if key not in outer), 0
        for launch in self.launches:
            copies += launch[2] if launch[0] == "aten::clone" else 0
            launch[3] = copies if launch[0] == "aten::clone" else total
        return self.launches


def _is_new(t: Tensor) -> bool:
    if t.is_floating_point():
        return bool(t.isnan().any())
    return bool((t.view(torch.uint8) == 255).all())


def _bytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def launched(op: str, arguments: tuple) -> list[list]:
    """What the launcher of an op launches."""
    from triton.runtime.interpreter import InterpretedFunction

    module, function = LAUNCHERS[op]
    launcher = getattr(importlib.import_module(f"pix2pixhd_fast.kernels.{module}"), function)
    run, recorder = InterpretedFunction.run, Recorder()

    def recorded(kernel, *args, **kwargs):
        with _disable_current_modes():
            recorder.run_kernel(run, kernel, args, kwargs)

    InterpretedFunction.run = recorded
    try:
        with recorder:
            result = launcher(*arguments)
    finally:
        InterpretedFunction.run = run
    own = [t for t in arguments if isinstance(t, Tensor)]
    own += result if isinstance(result, tuple) else [result] * (result is not None)
    return recorder.finished(own)


def main() -> None:
    from pix2pixhd_fast.kernels.blocks import counters

    from tests import conftest  # noqa: F401  (makes the kernels importable)

    counters(torch.empty(0))  # made once for all launches
    torch.use_deterministic_algorithms(True)
    found = {
        name: {op: launched(op, arguments_of(op, case)) for op in LAUNCHERS}
        for name, case in CASES.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
