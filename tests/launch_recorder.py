"""Runs Triton launchers in the interpreter; prints what they launched. Run with TRITON_INTERPRET=1.

A rule gives the bytes, without a look at the kernel: each tensor that a launch is given counts
once and in full, as written where the launch changed it (new memory is NaN before), else as read.
Scratch is every storage given to a launch that belongs to no argument and no result of the op.
"""

import importlib
import json

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

LAST = torch.channels_last
# x: shape, dtype, memory format, whether it is cropped (and must be copied); padding, pad; whether
# the gradient comes expanded from a sum (and must be copied)
CASES = {
    "planes": ((2, 3, 9, 7), torch.float32, torch.contiguous_format, False, "reflect", 2, False),
    "many parts": ((1, 1, 40, 70), torch.float16, torch.contiguous_format, False, "zero", 1, False),
    "channels_last": ((2, 70, 6, 5), torch.float32, LAST, False, "replicate", 1, False),
    "bf16": ((1, 8, 20, 31), torch.bfloat16, LAST, False, "none", 0, False),
    "copied": ((1, 8, 10, 10), torch.float32, LAST, True, "reflect", 1, True),
    "empty": ((0, 8, 10, 10), torch.float32, LAST, False, "reflect", 1, False),
}


def arguments_of(name: str) -> tuple[tuple, tuple]:
    """The arguments of norm_act_pad, and those of its backward but for mean and rstd: dy, x, ..."""
    shape, dtype, layout, cropped, padding, pad, expanded = CASES[name]
    x = torch.ones(shape, dtype=dtype).contiguous(memory_format=layout)
    x = x[..., 1:, 1:] if cropped else x
    rest = ("relu", 0.2, padding, pad)
    padded = (*x.shape[:2], *(side + 2 * pad for side in x.shape[2:]))
    dy = torch.ones((), dtype=dtype).expand(padded)
    dy = dy if expanded else dy.contiguous(memory_format=layout)
    return (x, *rest, 1e-5), (dy, x, *rest)


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
        tensors = [value for value in args if isinstance(value, Tensor)]
        before = [t.clone() for t in tensors]
        run(kernel, *args, **kwargs)
        changed = [not torch.equal(t, b) for t, b in zip(tensors, before, strict=True)]
        read = _bytes(t for t, c in zip(tensors, changed, strict=True) if not c)
        written = _bytes(t for t, c in zip(tensors, changed, strict=True) if c)
        name = kernel.fn.__name__.removeprefix("_").removesuffix("_kernel")
        file = kernel.fn.__module__.rpartition(".")[2]
        self.launches.append([f"{file}.{name}", read, written, None])
        self.given += tensors

    def finished(self, own: list[Tensor]) -> list[list]:
        """The launches; those before the first of our kernels are copies, which come one by one."""
        outer = {t.untyped_storage()._cdata for t in own}
        scratch = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in self.given}
        total, copies = sum(n for key, n in scratch.items() if key not in outer), 0
        for launch in self.launches:
            copies += launch[2] if launch[0].startswith("aten::") else 0
            launch[3] = copies if launch[0].startswith("aten::") else total
        return self.launches


def _bytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def launched(module: str, function: str, args: tuple) -> tuple[list[list], object]:
    """What a launcher launches, and what it returns."""
    from triton.runtime.interpreter import InterpretedFunction

    run, recorder = InterpretedFunction.run, Recorder()

    def recorded(kernel, *args, **kwargs):
        with _disable_current_modes():
            recorder.run_kernel(run, kernel, args, kwargs)

    InterpretedFunction.run = recorded
    try:
        with recorder:
            result = getattr(importlib.import_module(module), function)(*args)
    finally:
        InterpretedFunction.run = run
    own = [t for t in args if isinstance(t, Tensor)]
    own += result if isinstance(result, tuple) else [result]
    return recorder.finished(own), result


def main() -> None:
    from tests import conftest  # noqa: F401  (makes the kernels importable)

    torch.use_deterministic_algorithms(True)
    found = {}
    for name in CASES:
        forward, (dy, x, *rest) = arguments_of(name)
        kernels = "pix2pixhd_fast.kernels.norm_act_pad"
        ahead, (_, mean, rstd) = launched(kernels, "forward", forward)
        back, _ = launched(f"{kernels}_backward", "backward", (dy, x, mean, rstd, *rest))
        found[name] = {"forward": ahead, "backward": back}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
