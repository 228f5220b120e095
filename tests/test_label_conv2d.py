"""label_conv2d: against PyTorch on one-hot channels in float64, and the kernels against that."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd_fast.ops import label_conv2d
from pix2pixhd_fast.ops.label_conv2d import level_size
from pix2pixhd_fast.semantic import SemanticMap
from tests.helpers import assert_close_l2
from tests.pictures import draw, padded

EPS = 1e-5
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Problem(NamedTuple):
    """A label map [n, 1, h, w] and a convolution of it to k channels.

    `blocks`: sides of the blocks of one label; 1 is noise. With `ignored` about an eighth of them
    is in no class.
    """

    shape: tuple[int, int, int]
    num_labels: int = 5
    k: int = 3
    kernel: int = 3
    stride: int = 1
    padding: str = "reflect"
    pad: int = 1
    level: int = 0
    blocks: int = 3
    ignored: bool = True
    with_edges: bool = True
    dense: int = 0
    bias: bool = True
    dead_bias: bool = False

    def scene(self, dtype=torch.float32) -> SemanticMap:
        n, h, w = self.shape
        b = self.blocks
        generator = torch.Generator().manual_seed(h * w + self.num_labels)
        coarse = (n, 1, -(-h // b), -(-w // b))
        ids = torch.randint(0, self.num_labels, coarse, generator=generator)
        if self.ignored:
            ids[torch.rand(coarse, generator=generator) < 0.125] = 1000
        ids = ids.repeat_interleave(b, 2).repeat_interleave(b, 3)[:, :, :h, :w]
        edges = None
        if self.with_edges:
            edges = (torch.rand(n, 1, h, w, generator=generator) < 0.3 / b).to(torch.uint8)
        dense = draw(n, self.dense, *level_size((h, w), self.level), dtype) if self.dense else None
        return SemanticMap(ids, self.num_labels, edges, dense, ignore_label=1000)

    def tensors(self, dtype=torch.float32) -> dict[str, Tensor]:
        """weight and bias, drawn."""
        channels = self.num_labels + self.with_edges + self.dense
        weight = draw(self.k, channels, self.kernel, self.kernel, dtype, seed=1) / self.kernel
        found = {"weight": weight}
        if self.bias:
            found["bias"] = torch.linspace(-1, 1, self.k, dtype=dtype)
        return found

    def fused(self, scene, weight, bias=None):
        options = (self.stride, self.padding, self.pad, self.level, self.dead_bias, EPS)
        return label_conv2d(scene, weight, bias, *options)

    def layers(self, scene, weight, bias=None):
        """By PyTorch, on one-hot channels in float64."""
        x = scene.with_dense(None).to_dense(torch.float64)
        for _ in range(self.level):
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        x = x if scene.dense is None else torch.cat((x, scene.dense.double()), 1)
        bias = None if self.dead_bias else bias
        return F.conv2d(padded(x, self.padding, self.pad), weight, bias, self.stride)


def assert_right(problem: Problem, dtype: torch.dtype) -> None:
    """y, its statistics and all gradients against the layers in float64."""
    leaves = {name: t.requires_grad_() for name, t in problem.tensors(dtype).items()}
    scene = problem.scene(dtype)
    if problem.dense:
        leaves["dense"] = scene.dense.requires_grad_()
    wide = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
    y, mean, rstd = problem.fused(scene, leaves["weight"], leaves.get("bias"))
    want = problem.layers(scene.with_dense(wide.get("dense")), wide["weight"], wide.get("bias"))
    tol = TOLERANCES.get(dtype, 1e-9)
    assert (y.dtype, y.is_contiguous(memory_format=torch.channels_last)) == (dtype, True)
    assert_close_l2(y, want, tol, "y")
    got = y.detach().double()
    assert_close_l2(mean, got.mean((2, 3)), 1e-5, "mean")
    assert_close_l2(rstd, (got.var((2, 3), correction=0) + EPS).rsqrt(), 1e-5, "rstd")
    assert not mean.requires_grad and not rstd.requires_grad
    dy = draw(*y.shape, dtype, seed=2)
    found = torch.autograd.grad(y, list(leaves.values()), dy)
    right = torch.autograd.grad(want, list(wide.values()), dy.double(), allow_unused=True)
    for name, mine, exact in zip(leaves, found, right, strict=True):
        assert (mine.dtype, mine.shape) == (dtype, leaves[name].shape)
        if exact is None:
            assert name == "bias" and problem.dead_bias and not mine.any()
        else:
            assert_close_l2(mine, exact, tol, f"d{name}")


SMALL = [
    Problem((1, 1, 1), padding="zero", blocks=1),
    Problem((1, 4, 4), kernel=7, pad=3, blocks=2),
    Problem((2, 9, 8), kernel=4, stride=2, padding="zero", pad=2, dense=3),
    Problem((1, 12, 13), kernel=4, stride=2, padding="zero", pad=2, level=1, dense=3),
    Problem((1, 29, 23), kernel=7, pad=3, level=2, with_edges=False, dead_bias=True),
]


@pytest.mark.parametrize("problem", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_small(dtype, problem):
    assert_right(problem, dtype)
