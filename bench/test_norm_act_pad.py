"""Instance norm, ReLU and reflection by 3 at full size: the op, PyTorch's layers, a copy of x."""

import pytest
import torch
import torch.nn.functional as F

from pix2pixhd_fast.ops import norm_act_pad


def fused(x):
    return norm_act_pad(x, "relu", padding="reflect", pad=3)[0]


def layers(x):
    return F.pad(F.instance_norm(x).relu_(), (3,) * 4, mode="reflect")


@pytest.fixture(
    params=[torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"]
)
def layout(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def x(request, layout):
    """[1, 32, 1024, 2048]: what the outermost enhancer hands to its last convolution."""
    x = torch.randn(1, 32, 1024, 2048, generator=torch.Generator().manual_seed(0))
    return x.to(request.param).contiguous(memory_format=layout)


@pytest.mark.parametrize("function", [fused, layers])
def test_forward(benchmark, x, function):
    benchmark(function, x)


@pytest.mark.parametrize("function", [fused, layers])
def test_forward_and_backward(benchmark, x, function):
    x.requires_grad_()
    dy = torch.ones_like(function(x))

    def step():
        x.grad = None
        function(x).backward(dy)

    benchmark(step)


def test_copy(benchmark, x):
    """Into memory that is there already: one reading, one writing."""
    benchmark(torch.empty_like(x).copy_, x)
