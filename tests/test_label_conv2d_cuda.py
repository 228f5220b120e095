"""label_conv2d in CUDA: the device code, run on the CPU, against the reference in float64."""

from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor

from pix2pixhd_fast.ops.label_conv2d import (
    label_conv2d_backward_ref,
    label_conv2d_ref,
    level_size,
)
from tests.cuda_on_cpu import HERE, SEEDS, DeviceError, Output, device_program
from tests.helpers import assert_close_l2

EPS = 1e-5
TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
PADDINGS = ("none", "zero", "reflect", "replicate")


class Problem(NamedTuple):
    """Labels [n, 1, h, w] in blocks of `blocks` x `blocks` pixels, an eighth of them in no class,
    and a convolution of them to k channels.
    """

    shape: tuple[int, int, int]
    num_labels: int = 5
    k: int = 8
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: str = "reflect"
    pad: int = 1
    level: int = 0
    blocks: int = 9
    with_edges: bool = True
    wide: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def inputs(self) -> int:
        return self.num_labels + self.with_edges

    @property
    def level_size(self) -> tuple[int, int]:
        return level_size(self.shape[1:], self.level)

    @property
    def size(self) -> tuple[int, int]:
        """Of the result."""
        sides = zip(self.level_size, self.kernel, strict=True)
        return tuple((side + 2 * self.pad - k) // self.stride + 1 for side, k in sides)

    @property
    def options(self) -> tuple[int, int, str, int]:
        return self.level, self.stride, self.padding, self.pad

    def sizes(self) -> Tensor:
        """As tests/cuda_on_cpu/label_conv2d.cpp reads them."""
        rest = (PADDINGS.index(self.padding), self.num_labels, self.with_edges, self.level)
        given = (*self.shape, self.k, *self.kernel, self.stride, self.pad, *rest, self.wide)
        return torch.tensor(given, dtype=torch.int64)

    def map(self) -> tuple[Tensor, Tensor | None]:
        """Labels and edges."""
        n, h, w = self.shape
        generator = torch.Generator().manual_seed(h * w + self.num_labels)
        coarse = (n, 1, -(-h // self.blocks), -(-w // self.blocks))
        ids = torch.randint(0, self.num_labels, coarse, generator=generator)
        ids[torch.rand(coarse, generator=generator) < 0.125] = 70_000 if self.wide else 255
        ids = ids.repeat_interleave(self.blocks, 2).repeat_interleave(self.blocks, 3)[..., :h, :w]
        labels = ids.to(torch.int32 if self.wide else torch.uint8).contiguous()
        edges = torch.rand(n, 1, h, w, generator=generator) < 0.3 / self.blocks**2
        return labels, edges.to(torch.uint8) if self.with_edges else None

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.dtype)

    def picture(self, seed: int) -> Tensor:
        """Of the size of the result, channels_last."""
        return self.draw(self.shape[0], *self.size, self.k, seed=seed).permute(0, 3, 1, 2)

    def pooled(self) -> tuple[Tensor | int, Tensor | int]:
        """Scratch for the codes of a pooled level and their mixtures."""
        if self.level == 0:
            return 0, 0
        pixels = (self.shape[0], *self.level_size)
        codes = (self.num_labels + 1) * (1 + self.with_edges)
        slots = min(codes, 9 if self.level == 1 else 49)
        return torch.empty(pixels, dtype=torch.int16), torch.empty(*pixels, slots).int()


def scratch(*tensors: Tensor | int) -> list[Output | int]:
    return [Output(t, whole=False) if isinstance(t, Tensor) else t for t in tensors]


def last(picture: Tensor) -> Tensor:
    """A channels_last picture as it lies in memory."""
    return picture.permute(0, 2, 3, 1)


def run(name: str, problem: Problem, *arguments, seed: int) -> None:
    function = f"{name}_{str(problem.dtype).removeprefix('torch.')}"
    program = device_program(HERE / "label_conv2d.cpp")
    program.run(function, problem.sizes(), *arguments, seed=seed)


def tiles_of(problem: Problem) -> int:
    """Of one picture."""
    return -(-problem.size[0] // 16) * -(-problem.size[1] // 32)


def convolve(problem: Problem, seed: int, addend: Tensor | None, bias: Tensor | None):
    """The weight, and y, mean and rstd of the CUDA code."""
    n, k = problem.shape[0], problem.k
    kh, kw = problem.kernel
    weight = problem.draw(kh, problem.inputs, kw, k, seed=1)
    padded_k = -(-k // 8) * 8
    codes = (problem.num_labels + 1) * (1 + problem.with_edges)
    rows, sums = torch.empty(codes, kh * kw, padded_k), torch.empty(codes + 1, padded_k)
    parts = torch.empty(n, tiles_of(problem), 2, k)
    y = torch.empty(n, *problem.size, k, dtype=problem.dtype)
    mean, rstd = torch.empty(n, k), torch.empty(n, k)
    labels, edges = problem.map()
    run(
        "convolve", problem, labels, 0 if edges is None else edges, weight,
        0 if bias is None else bias, 0 if addend is None else last(addend),
        *scratch(*problem.pooled()), Output(rows), Output(sums), Output(parts), EPS, Output(y),
        Output(mean), Output(rstd), seed=seed,
    )  # fmt: skip
    return weight.permute(3, 1, 0, 2), y.permute(0, 3, 1, 2), mean, rstd


def assert_forward(problem: Problem, seed: int, with_addend: bool = True) -> None:
    addend = problem.picture(2) if with_addend else None
    bias = problem.draw(problem.k, seed=3) if with_addend else None
    weight, y, mean, rstd = convolve(problem, seed, addend, bias)
    wide = (None if t is None else t.double() for t in (weight, bias, addend))
    want = label_conv2d_ref(
        *problem.map(), *wide, problem.num_labels, *problem.options, False, None
    )[0]
    assert_close_l2(y, want, TOLERANCES[problem.dtype], "y")
    y = y.double()
    deviation = (y.var((2, 3), correction=0) + EPS).sqrt()
    # Together, since a mean may be near zero.
    want = torch.stack((y.mean((2, 3)), deviation))
    assert_close_l2(torch.stack((mean, 1 / rstd)), want, 1e-6, "statistics")


def backward(problem: Problem, seed: int, dy: Tensor) -> tuple[Tensor, Tensor]:
    """dweight and dbias of the CUDA code."""
    tiles = tiles_of(problem) * problem.shape[0]
    taps = problem.kernel[0] * problem.kernel[1]
    classes, mixed = (torch.empty(tiles, 512, dtype=torch.int16) for _ in range(2))
    counts = torch.empty(tiles, dtype=torch.int32)
    sums = problem.inputs * taps * problem.k * 4
    splits = min(max(2**24 // sums, 1), 64, tiles)
    uniform = torch.empty(-(-tiles // 8), problem.inputs + 1, problem.k)
    parts = torch.empty(splits, problem.inputs, taps, problem.k)
    dweight = torch.empty(problem.k, problem.inputs, *problem.kernel, dtype=problem.dtype)
    dbias = torch.empty(problem.k, dtype=problem.dtype)
    labels, edges = problem.map()
    run(
        "backward", problem, labels, 0 if edges is None else edges, last(dy),
        *scratch(*problem.pooled(), classes, mixed), Output(counts), Output(uniform),
        Output(parts), Output(dweight), Output(dbias), seed=seed,
    )  # fmt: skip
    return dweight, dbias


def assert_backward(problem: Problem, seed: int) -> None:
    dy = problem.picture(4)
    dweight, dbias = backward(problem, seed, dy)
    rest = (problem.num_labels, *problem.kernel, *problem.options)
    wanted = label_conv2d_backward_ref(dy.double(), *problem.map(), *rest)
    assert_close_l2(dweight, wanted[0], TOLERANCES[problem.dtype], "dweight")
    assert_close_l2(dbias, wanted[1], TOLERANCES[problem.dtype], "dbias")


STEM = {"kernel": (7, 7), "pad": 3}
D_STEM = {"kernel": (4, 4), "stride": 2, "padding": "zero", "pad": 2}
PROBLEMS = [
    Problem((1, 1, 1), 1, 1, (1, 1), pad=0),
    Problem((2, 20, 35), 35, 32, **STEM, blocks=17),
    Problem((1, 20, 35), 3, 5, **STEM, blocks=11, dtype=torch.bfloat16),
    Problem((1, 19, 70), 4, 64, **D_STEM, blocks=14, dtype=torch.float16),
    Problem((1, 30, 41), 6, 12, **STEM, level=1, blocks=13, wide=True),
    Problem((2, 33, 28), 20, 8, **D_STEM, level=2, blocks=1, dtype=torch.bfloat16),
    Problem((1, 40, 90), 3, 4, padding="replicate", pad=4, level=2, blocks=30, with_edges=False),
    Problem((1, 5, 40), 300, 9, (2, 5), padding="none", pad=0, wide=True, blocks=2),
    Problem((1, 17, 33), 2, 136, (1, 3), padding="zero", pad=1, blocks=8),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.shape} {p.k}")
def test_cuda_code_against_reference(problem):
    for seed in SEEDS:
        assert_forward(problem, seed)
        assert_backward(problem, seed)
