"""Triton's interpreter: products of bfloat16, and programs in another order."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np


def multiply_bf16() -> None:
    """Make tl.dot widen bfloat16 in this process; other dtypes are as before.

    The interpreter holds it as raw 16-bit integers, and multiplies these.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain = InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):
        return plain(self, widened(a), widened(b), *rest)

    InterpreterBuilder.create_dot = create_dot


@contextmanager
def shuffled_programs(seed: int) -> Iterator[None]:
    """In the block, the programs of every launch run in an order that is drawn from `seed`."""
    from triton.runtime.interpreter import InterpreterBuilder

    place = InterpreterBuilder.set_grid_idx

    def shuffled(self, x, y, z):
        order = list(range(self.grid_dim[0]))
        random.Random(seed).shuffle(order)
        place(self, order[x], y, z)

    with mock.patch.object(InterpreterBuilder, "set_grid_idx", shuffled):
        yield
