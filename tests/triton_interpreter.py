"""Triton's interpreter holds bfloat16 as raw 16-bit integers, and multiplies these in tl.dot."""

import numpy as np


def multiply_bf16() -> None:
    """Make tl.dot widen bfloat16 in this process; other dtypes are as before."""
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
