"""Pictures for the tests of the memory passes; a kernel op against its reference in float64."""

from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd_fast._library import INTERPRETED, kernel, library_status
from pix2pixhd_fast.ops.blocks import layout_of
from pix2pixhd_fast.ops.norm_act_pad import ACTIVATIONS
from pix2pixhd_fast.ops.norm_act_pad_kernels import inner
from tests.helpers import assert_close_l2

ops = torch.ops.pix2pixhd_fast
needs_cpp = pytest.mark.skipif(
    INTERPRETED or "norm_act_pad_apply" not in library_status()["kernels"],
    reason="the C++ kernels are not built",
)

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def draw(n, c, h, w, dtype=torch.float32, layout="nchw", seed=0, border=0) -> Tensor:
    """Mean 1, deviation 2, rounded to `dtype`; [n, c, h, w] without a border that lies around."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, h + 2 * border, w + 2 * border, generator=generator) * 2 + 1
    return inner(x.to(dtype).contiguous(memory_format=FORMATS[layout]), border)


def activation(x: Tensor, act: str, slope: float) -> Tensor:
    """By PyTorch's own functions."""
    functions = {"none": lambda x: x, "relu": F.relu, "tanh": torch.tanh}
    return F.leaky_relu(x, slope) if act == "leaky_relu" else functions[act](x)


def padded(x: Tensor, padding: str, pad: int) -> Tensor:
    """By F.pad."""
    return F.pad(x, (pad,) * 4, mode="constant" if padding == "zero" else padding) if pad else x


class Problem(NamedTuple):
    """What the kernel ops are asked for; the dtypes of gamma and beta are None for none of them."""

    shape: tuple[int, int, int, int]
    act: str = "none"
    padding: str = "none"
    pad: int = 0
    normalised: bool = True
    gamma: torch.dtype | None = None
    beta: torch.dtype | None = None
    border: int = 0
    more: bool = False  # residual, minus, mean_g and mean_dot

    @property
    def options(self):
        return self.act, 0.2, self.padding, self.pad

    @property
    def padded_shape(self):
        n, c, h, w = self.shape
        return n, c, h + 2 * self.pad, w + 2 * self.pad

    def per_image(self, seed: int) -> Tensor:
        return torch.randn(self.shape[:2], generator=torch.Generator().manual_seed(seed))

    def prologue(self) -> tuple[Tensor | None, ...]:
        """mean, rstd, gamma, beta"""
        statistics = (self.per_image(1), self.per_image(2).abs() + 0.1)
        gamma = None if self.gamma is None else self.per_image(3)[0].to(self.gamma)
        beta = None if self.beta is None else self.per_image(4)[0].to(self.beta)
        return *(statistics if self.normalised else (None, None)), gamma, beta


# Single pixels, rows and columns, pad = side - 1, more channels than a block has, more pixels
# than a block or one program has, mirrors that meet in the middle
SMALL = [
    Problem((1, 1, 1, 1), "relu", gamma=torch.float32),
    Problem((2, 3, 1, 1), "leaky_relu", "replicate", 2, border=1, more=True),
    Problem((1, 2, 1, 7), "relu", "zero", 2, False, border=2),
    Problem((1, 2, 6, 1), "tanh", "replicate", 1, beta=torch.float32),
    Problem((2, 3, 5, 7), "relu", "reflect", 3, True, torch.bfloat16, torch.float32, 3, True),
    Problem((1, 2, 4, 4), "none", "reflect", 3, False),
    Problem((2, 2, 4, 4), "none", "none", 0, False, border=1, more=True),
    Problem((1, 70, 2, 3), "leaky_relu", "reflect", 1, True, torch.float16, torch.float16),
    Problem((1, 3, 30, 41), "tanh", "reflect", 3, True, torch.float64, torch.float64, 1),
    Problem((1, 2, 63, 70), "relu", "replicate", 1, border=1, more=True),
]


def small(layout: str) -> list[Problem]:
    """`SMALL`; under Triton's interpreter, which takes 0.1 s for an image, few channels in nchw."""
    most = 2 if INTERPRETED and layout == "nchw" else 2**31
    return [p._replace(shape=(p.shape[0], min(most, p.shape[1]), *p.shape[2:])) for p in SMALL]


def paddings(h: int, w: int):
    """padding and pad that suit a picture of h * w."""
    reflect = st.tuples(st.just("reflect"), st.integers(0, min(h, w, 9) - 1))
    others = st.tuples(st.sampled_from(["replicate", "zero"]), st.integers(0, 5))
    return reflect | others | st.just(("none", 0))


@st.composite
def problems(draw_one):
    h, w = draw_one(st.integers(1, 24)), draw_one(st.integers(1, 90))
    n, c = draw_one(st.integers(1, 3)), draw_one(st.integers(1, 9) | st.sampled_from([32, 67, 300]))
    dtypes = st.none() | st.sampled_from([*TOLERANCES, torch.float64])
    return Problem(
        (n, c, h, w),
        draw_one(st.sampled_from(ACTIVATIONS)),
        *draw_one(paddings(h, w)),
        draw_one(st.booleans()),
        draw_one(dtypes),
        draw_one(dtypes),
        draw_one(st.integers(0, 3)),
        draw_one(st.booleans()),
    )


def widened(argument):
    return argument.double() if isinstance(argument, Tensor) else argument


def assert_like_reference(name: str, *arguments) -> None:
    """The kernel of `name` against the reference in float64; results are dense in the format due.

    Results in the dtype of x are as exact as that is, the float32 ones of sums as float32.
    """
    got, want = getattr(ops, name)(*arguments), kernel(name, *map(widened, arguments))
    if isinstance(got, Tensor):
        layout = layout_of(arguments[1 if name == "norm_act_pad_backward" else 0])
        assert got.stride() == torch.empty(got.shape, memory_format=layout).stride()
        got, want = (got,), (want,)
    for index, (mine, exact) in enumerate(zip(got, want, strict=True)):
        assert_close_l2(mine, exact, TOLERANCES[mine.dtype], f"{name}[{index}]")
