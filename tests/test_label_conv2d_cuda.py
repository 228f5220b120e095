"""label_conv2d in CUDA: the device code, run on the CPU, against the reference in float64."""

import re
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from pix2pixhd_fast._launches import bytes_of, launches_of
from pix2pixhd_fast.ops.label_conv2d import (
    label_conv2d_backward_ref,
    label_conv2d_ref,
    level_size,
)
from tests.cuda_on_cpu import HERE, SEEDS, DeviceError, Output, device_program
from tests.helpers import ROOT, assert_close_l2

OPS = torch.ops.pix2pixhd_fast
EPS, SLOPE = 1e-5, 0.2
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
BELOW = {"none": 1.0, "relu": 0.0, "leaky_relu": SLOPE}
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
    act: str = "none"

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
        """Of the size of the result, channels_last; mostly above 0, so that sums of it are too."""
        picture = self.draw(self.shape[0], *self.size, self.k, seed=seed) + 1
        return picture.permute(0, 3, 1, 2)

    def pooled(self) -> list[Tensor]:
        """Scratch for the codes of a pooled level and their mixtures."""
        if self.level == 0:
            return []
        pixels = (self.shape[0], *self.level_size)
        codes = (self.num_labels + 1) * (1 + self.with_edges)
        slots = min(codes, 9 if self.level == 1 else 49)
        return [torch.empty(pixels, dtype=torch.int16), torch.empty(*pixels, slots).int()]

    @property
    def tiles(self) -> int:
        """Of one picture."""
        return -(-self.size[0] // 16) * -(-self.size[1] // 32)


def in_part(tensors: list[Tensor]) -> list[Output | int]:
    """Scratch that may stay unwritten, or two null pointers."""
    return [Output(t, whole=False) for t in tensors] or [0, 0]


def last(picture: Tensor) -> Tensor:
    """A channels_last picture as it lies in memory."""
    return picture.permute(0, 2, 3, 1)


def run(name: str, problem: Problem, *arguments, seed: int) -> None:
    function = f"{name}_{str(problem.dtype).removeprefix('torch.')}"
    program = device_program(HERE / "label_conv2d.cpp")
    program.run(function, problem.sizes(), *arguments, seed=seed)


class Forward(NamedTuple):
    weight: Tensor
    y: Tensor
    mean: Tensor
    rstd: Tensor
    scratch: list[Tensor]


def convolve(problem: Problem, seed: int, addend: Tensor | None, bias: Tensor | None) -> Forward:
    """By the CUDA code, a weight of its own."""
    n, k, (kh, kw) = problem.shape[0], problem.k, problem.kernel
    weight = problem.draw(kh, problem.inputs, kw, k, seed=1)
    padded_k = -(-k // 8) * 8
    codes = (problem.num_labels + 1) * (1 + problem.with_edges)
    rows, sums = torch.empty(codes, kh, kw + 1, padded_k), torch.empty(codes + 1, padded_k)
    parts = torch.empty(n, problem.tiles, 2, k)
    y = torch.empty(n, *problem.size, k, dtype=problem.dtype)
    mean, rstd = torch.empty(n, k), torch.empty(n, k)
    labels, edges = problem.map()
    pooled = problem.pooled()
    run(
        "convolve", problem, labels, 0 if edges is None else edges, weight,
        0 if bias is None else bias, 0 if addend is None else last(addend), *in_part(pooled),
        Output(rows), Output(sums), BELOW[problem.act], Output(parts), EPS, Output(y),
        Output(mean), Output(rstd), seed=seed,
    )  # fmt: skip
    weight, y = weight.permute(3, 1, 0, 2), y.permute(0, 3, 1, 2)
    return Forward(weight, y, mean, rstd, [*pooled, rows, sums, parts])


def assert_forward(problem: Problem, seed: int, with_addend: bool = True) -> None:
    addend = problem.picture(2) if with_addend else None
    bias = problem.draw(problem.k, seed=3) if with_addend else None
    weight, y, mean, rstd, _ = convolve(problem, seed, addend, bias)
    wide = (None if t is None else t.double() for t in (weight, bias, addend))
    rest = (problem.num_labels, *problem.options, False, problem.act, SLOPE)
    want = label_conv2d_ref(*problem.map(), *wide, *rest, None)[0]
    assert_close_l2(y, want, TOLERANCES[problem.dtype], "y")
    y = y.double()
    deviation = (y.var((2, 3), correction=0) + EPS).sqrt()
    # Together, since a mean may be near zero.
    want = torch.stack((y.mean((2, 3)), deviation))
    assert_close_l2(torch.stack((mean, 1 / rstd)), want, 1e-5, "statistics")


def backward(problem: Problem, seed: int, dy: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """dweight, dbias and the scratch of the CUDA code."""
    tiles = problem.tiles * problem.shape[0]
    k, (kh, kw) = problem.k, problem.kernel
    classes, mixed = (torch.empty(tiles, 512, dtype=torch.int16) for _ in range(2))
    counts = torch.empty(tiles, dtype=torch.int32)
    of_split = -(-tiles // min(-(-tiles // 8), max(2**22 // ((problem.inputs + 1) * k), 1)))
    uniform = torch.empty(-(-tiles // of_split), problem.inputs + 1, k)
    splits = min(max(2**22 // (problem.inputs * kh * (kw + 1) * k), 1), 64, tiles)
    parts = torch.empty(splits, problem.inputs, kh, kw + 1, k)
    dweight = torch.empty(k, problem.inputs, *problem.kernel, dtype=problem.dtype)
    dbias = torch.empty(k, dtype=problem.dtype)
    labels, edges = problem.map()
    pooled = problem.pooled()
    run(
        "backward", problem, labels, 0 if edges is None else edges, last(dy), *in_part(pooled),
        *in_part([classes, mixed]), Output(counts), Output(uniform), Output(parts),
        Output(dweight), Output(dbias), seed=seed,
    )  # fmt: skip
    return dweight, dbias, [*pooled, classes, mixed, counts, uniform, parts]


def assert_backward(problem: Problem, seed: int) -> None:
    dy = problem.picture(4)
    dweight, dbias, _ = backward(problem, seed, dy)
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
    Problem((1, 19, 70), 4, 64, **D_STEM, blocks=14, dtype=torch.float16, act="leaky_relu"),
    Problem((1, 30, 41), 6, 12, **STEM, level=1, blocks=13, wide=True),
    Problem((2, 33, 28), 20, 8, **D_STEM, level=2, blocks=1, dtype=torch.bfloat16),
    Problem((1, 40, 90), 3, 4, padding="replicate", pad=4, level=2, blocks=30, with_edges=False),
    Problem((1, 5, 40), 300, 9, (2, 5), padding="none", pad=0, wide=True, blocks=2),
    Problem((1, 17, 33), 2, 136, (1, 3), padding="zero", pad=1, blocks=8),
    Problem((1, 70, 90), 2, 4, (7, 7), 7, "zero", 3, blocks=8),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.shape} {p.k}")
def test_cuda_code_against_reference(problem):
    assert_forward(problem, seed=0)
    assert_backward(problem, seed=0)


@st.composite
def problems(draw):
    level = draw(st.integers(0, 2))
    padding = draw(st.sampled_from(PADDINGS))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    pad = 0 if padding == "none" else draw(st.integers(0, 3))
    least = max(*kernel, pad + 1)
    sides = st.integers(least << level, (least << level) + 40)
    return Problem(
        (draw(st.integers(1, 2)), draw(sides), draw(sides)),
        draw(st.integers(1, 9)),
        draw(st.sampled_from([1, 3, 4, 7, 8, 16, 24])),
        kernel,
        draw(st.integers(1, 3)),
        padding,
        pad,
        level,
        draw(st.sampled_from([1, 4, 13, 64])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        draw(st.sampled_from(sorted(BELOW))),
    )


@settings(max_examples=50)
@given(problems(), st.sampled_from(SEEDS), st.booleans())
def test_drawn_cuda_code_against_reference(problem, seed, with_addend):
    assert_forward(problem, seed, with_addend)
    assert_backward(problem, seed)


@pytest.mark.parametrize("problem", [PROBLEMS[2], PROBLEMS[4]], ids=["level 0", "level 1"])
def test_cuda_code_repeats_exactly(problem):
    """Whatever the order of threads and blocks."""
    addend, dy = problem.picture(2), problem.picture(4)
    for run_once in (
        lambda seed: convolve(problem, seed, addend, None)[1:4],
        lambda seed: backward(problem, seed, dy)[:2],
    ):
        first, *others = [run_once(seed) for seed in SEEDS]
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[3]], ids=["float32", "float16"])
def test_cuda_code_on_results_that_start_anywhere(problem):
    """An addend that is not on 16 bytes: no vectors."""
    n, k = problem.shape[0], problem.k
    flat = problem.draw(1 + n * problem.size[0] * problem.size[1] * k, seed=5)[1:]
    addend = flat.view(n, *problem.size, k).permute(0, 3, 1, 2)
    vectors = convolve(problem, 0, addend.contiguous(memory_format=torch.channels_last), None)
    assert torch.equal(convolve(problem, 0, addend, None).y, vectors.y)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_cuda_code_of_more_inputs_than_shared_memory_holds(level):
    """The accumulators of the backward in two groups of inputs."""
    assert_backward(Problem((1, 24, 24), 1000, 2, (2, 1), pad=1, level=level, wide=True), seed=1)


@pytest.mark.parametrize(
    "sizes",
    [{"shape": (1, 1, 2**31)}, {"shape": (65536, 1, 1)}, {"num_labels": 40_000}, {"stride": 9},
     {"shape": (1, 2**30, 2), "padding": "replicate"}, {"kernel": (2**16, 1)}, {"k": 2**16}],
    ids=str,
)  # fmt: skip
def test_cuda_code_refuses_what_it_has_no_room_for(sizes):
    problem = Problem(**{"shape": (1, 100, 100), "pad": 0} | sizes)
    for name, count, floats in (("convolve", 15, (9, 11)), ("backward", 12, ())):
        with pytest.raises(DeviceError, match="cudaError_t 1$"):
            given = [EPS if i in floats else 0 for i in range(count)]
            run(name, problem, *given, seed=0)


CODE = "label_codes.cuh", "label_conv2d.cuh", "label_conv2d_backward.cuh"


def launched_kernels(function: str) -> list[str]:
    """What the launch `function` launches, by its text."""
    texts = {name: (ROOT / "csrc" / name).read_text() for name in CODE}
    # Only kernels take their sizes by value.
    kernels = {
        kernel: f"{name.removesuffix('.cuh')}.{kernel}"
        for name, text in texts.items()
        for kernel in re.findall(r"(\w+)\((?:LabelConv|Level) \w+,", text)
    }
    (body,) = re.findall(rf" {function}\(.*?\n}}", "".join(texts.values()), re.DOTALL)
    names = re.findall(r"(?:launch\(\s*|launch_|auto kernel = aligned \? )(\w+)", body)
    return [kernels[name] for name in names if name in kernels]


def assert_described(op, arguments, result, problem, scratch, moved):
    """The launches of `launch_<op>`, each with these tensors read and written."""
    found = launches_of(getattr(OPS, op).default, arguments, {}, result)
    names = launched_kernels(f"launch_{op}")
    pooling = [(problem.map(), problem.pooled())] if problem.level else []
    assert [x.name for x in found] == names[not pooling :]
    assert {x.scratch for x in found} == {bytes_of(*scratch)}
    moved = [(bytes_of(*read), bytes_of(*written)) for read, written in [*pooling, *moved]]
    assert [(x.read, x.written) for x in found] == moved


@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[3], PROBLEMS[4], PROBLEMS[5]])
def test_launches_are_described(problem):
    """Names in their order, bytes, and scratch: what the CUDA code needs, and fills."""
    map_, addend, dy = problem.map(), problem.picture(2), problem.picture(4)
    pooled = problem.pooled()
    done = convolve(problem, 0, addend, None)
    *_, rows, sums, parts = done.scratch
    moved = [([done.weight], [rows, sums]),
             ([*(pooled or map_), rows, sums, addend], [done.y, parts]),
             ([parts], [done.mean, done.rstd])]  # fmt: skip
    arguments = (*map_, done.weight, None, addend, problem.num_labels, *problem.options, False)
    arguments = (*arguments, problem.act, SLOPE, EPS)
    assert_described("label_conv2d", arguments, done[1:4], problem, done.scratch, moved)

    *gradients, scratch = backward(problem, 0, dy)
    *_, classes, mixed, counts, uniform, steps = scratch
    moved = [(pooled[:1] or map_, [classes, mixed, counts]),
             ([classes, dy], [uniform]),
             ([*(pooled or map_), mixed, counts, dy], [steps]),
             ([uniform, steps], gradients)]  # fmt: skip
    arguments = (dy, *map_, problem.num_labels, *problem.kernel, *problem.options)
    assert_described("label_conv2d_backward", arguments, gradients, problem, scratch, moved)


def test_descriptions_of_copies_and_of_nothing():
    problem = PROBLEMS[1]
    labels, edges = (t.transpose(2, 3).contiguous().transpose(2, 3) for t in problem.map())
    addend = problem.picture(2).contiguous()
    weight = problem.draw(problem.k, problem.inputs, *problem.kernel)
    arguments = (labels, edges, weight, None, addend, problem.num_labels, *problem.options)
    arguments = (*arguments, False, "none", SLOPE, None)
    result = (addend, torch.empty(0), torch.empty(0))
    found = launches_of(OPS.label_conv2d.default, arguments, {}, result)
    assert [x.name for x in found[:3]] == ["aten::clone"] * 3 and len(found) == 5
    assert found[2].scratch == labels.nbytes + edges.nbytes + addend.nbytes < found[3].scratch
    none = (addend[:0], *result[1:])
    assert launches_of(OPS.label_conv2d.default, arguments, {}, none) == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.shape} {p.k}")
def test_cuda_kernel_on_a_device(problem, dtype):
    op = OPS.label_conv2d
    if not torch._C._dispatch_has_kernel_for_dispatch_key(op._qualified_op_name, "CUDA"):
        pytest.skip("the CUDA kernels are not built")
    problem = problem._replace(dtype=dtype)
    weight = problem.draw(problem.k, problem.inputs, *problem.kernel, seed=1)
    bias, addend, dy = problem.draw(problem.k, seed=3), problem.picture(2), problem.picture(4)
    map_, rest = problem.map(), (problem.num_labels, *problem.options)

    def on_device(*tensors):
        return [None if t is None else t.cuda() for t in tensors]

    rest = (*rest, False, problem.act, SLOPE)
    y, mean, rstd = op(*on_device(*map_, weight, bias, addend), *rest, EPS)
    wide = (t.double() for t in (weight, bias, addend))
    want = label_conv2d_ref(*map_, *wide, *rest, None)[0]
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close_l2(y, want, TOLERANCES[dtype], "y")
    y = y.double()
    want = torch.stack((y.mean((2, 3)), (y.var((2, 3), correction=0) + EPS).sqrt()))
    assert_close_l2(torch.stack((mean, 1 / rstd)), want, 1e-5, "statistics")
    rest = (problem.num_labels, *problem.kernel, *problem.options)
    found = OPS.label_conv2d_backward(*on_device(dy, *map_), *rest)
    wanted = label_conv2d_backward_ref(dy.double(), *map_, *rest)
    for name, mine, exact in zip(("dweight", "dbias"), found, wanted, strict=True):
        assert_close_l2(mine, exact, TOLERANCES[dtype], name)
