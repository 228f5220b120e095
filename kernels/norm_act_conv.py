"""norm_act_conv in Triton: one pass over memory, and a small one for the statistics."""

from collections.abc import Iterator

import torch
from pix2pixhd_fast.kernels.conv_engine import engine
from pix2pixhd_fast.kernels.conv_launches import layer_of
from pix2pixhd_fast.kernels.implicit_gemm import combine_kernel, convolution_kernel
from pix2pixhd_fast.kernels.norm_act_conv_plan import Layer, Plan, plan
from pix2pixhd_fast.kernels.variants import Variant, launches
from torch import Tensor

BF16, HALF, SINGLE = torch.bfloat16, torch.float16, torch.float32
# What the variants are made of. Of G at 2048x1024 (local, ngf 32): stems, stride 2, residual block,
# transposed, head; of E the stem; of D first, second and last layer; then other dtypes, many
# channels, a norm with parameters and other paddings.
LAYERS = (
    Layer((1, 36, 1024, 2048), (32, 36, 7, 7), BF16, False, "none", "reflect", 3),
    Layer((1, 32, 1024, 2048), (64, 32, 3, 3), BF16, True, "relu", "zero", 1, 2),
    Layer((1, 64, 512, 1024), (64, 64, 3, 3), BF16, True, "relu", "reflect", 1),
    Layer((1, 64, 512, 1024), (64, 32, 3, 3), BF16, False, "none", "zero", 1, 2, True, 1),
    Layer((1, 32, 1024, 2048), (3, 32, 7, 7), BF16, True, "relu", "reflect", 3, bias=True,
          statistics=False),
    Layer((1, 3, 1024, 2048), (32, 3, 7, 7), BF16, False, "none", "reflect", 3),
    Layer((1, 39, 1024, 2048), (64, 39, 4, 4), BF16, False, "none", "zero", 2, 2, bias=True,
          statistics=False),
    Layer((1, 64, 513, 1025), (128, 64, 4, 4), BF16, False, "leaky_relu", "zero", 2, 2),
    Layer((1, 512, 131, 259), (1, 512, 4, 4), BF16, True, "leaky_relu", "zero", 2, bias=True,
          statistics=False),
    Layer((1, 256, 128, 256), (256, 128, 3, 3), BF16, True, "relu", "zero", 1, 2, True, 1),
    Layer((1, 64, 512, 1024), (64, 64, 3, 3), SINGLE, True, "relu", "reflect", 1),
    Layer((1, 36, 512, 1024), (64, 36, 7, 7), SINGLE, False, "none", "reflect", 3),
    Layer((2, 128, 65, 129), (128, 128, 3, 3), HALF, True, "tanh", "replicate", 1),
)  # fmt: skip


def forward(
    x, mean, rstd, gamma, beta, weight, bias, norm, act, slope, padding, pad,
    stride, transposed, output_padding, dead_bias, eps,
):  # fmt: skip
    """The op norm_act_conv on the GPU: its arguments, by the engine for its shapes."""
    from pix2pixhd_fast.ops.norm_act_conv import _forward as compose

    layer = layer_of(
        x, mean, gamma, beta, weight, bias, act, padding, pad, stride, transposed, output_padding,
        dead_bias, eps,
    )  # fmt: skip
    norms = (mean, rstd, gamma, beta)
    if engine(layer) == "library":
        return compose(
            x, *norms, weight, bias, norm, act, slope, padding, pad,
            stride, transposed, output_padding, dead_bias, eps,
        )  # fmt: skip
    return convolve(layer, x, norms, weight, bias if layer.bias else None, slope, eps)


def convolve(
    layer: Layer,
    x: Tensor,
    norms: tuple[Tensor | None, ...],
    weight: Tensor,
    bias: Tensor | None,
    slope: float,
    eps: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and rstd of a layer that is supported; `norms`: mean, rstd, gamma, beta."""
    shape = plan(layer)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    norms = [t if t is None else t.contiguous() for t in norms]
    y = torch.empty(layer.y, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    single = {"dtype": torch.float32, "device": x.device}
    parts = (None, None)
    if eps is not None:
        parts = torch.empty(2, *y.shape[:2], shape.tiles, **single)
    many = y.shape[:2] if eps is not None else (0,)
    mean, rstd = (torch.empty(many, **single) for _ in range(2))
    sizes = (*layer.x[2:], shape.rows, shape.columns, shape.tiles, shape.tiles_x)
    with torch.cuda.device_of(x):
        convolution_kernel[(layer.x[0] * shape.tiles * shape.blocks,)](
            x, weight, *norms, bias, y, *parts, slope, *sizes,
            **constants(layer, shape), num_warps=shape.num_warps, num_stages=shape.num_stages,
        )  # fmt: skip
        if eps is not None:
            combine_kernel[(mean.numel(),)](
                *parts, mean, rstd, eps, *sizes[2:], **combine_constants(shape)
            )
    return y, mean, rstd


def constants(layer: Layer, shape: Plan) -> dict[str, object]:
    """The constants of convolution_kernel."""
    exact = layer.dtype == torch.float32 and not torch.backends.cudnn.allow_tf32
    return {
        "C": layer.x[1], "K": layer.channels, "KH": layer.weight[2], "KW": layer.weight[3],
        "STRIDE": 1 if layer.transposed else layer.stride, "TRANSPOSED": layer.transposed,
        "UP": shape.up, "PAD": layer.pad, "ACT": layer.act,
        "PADDING": "zero" if layer.transposed else layer.padding,
        "FLAT": shape.flat, "SHIFT": shape.shift, "PRECISION": "ieee" if exact else "tf32",
        "BLOCK_H": shape.block_h, "BLOCK_W": shape.block_w, "BLOCK_N": shape.block_n,
        "BLOCK_R": shape.block_r,
    }  # fmt: skip


def combine_constants(shape: Plan) -> dict[str, int]:
    """The constants of combine_kernel."""
    names = ("UP", "BLOCK_H", "WIDTH", "BLOCK_T")
    values = (shape.up, shape.block_h, shape.tile_width, shape.block_t)
    return dict(zip(names, values, strict=True))


def variants_of(layer: Layer) -> list[Variant]:
    """What is launched for a layer, found without memory."""
    x, weight = (
        torch.empty(shape, dtype=layer.dtype, device="meta", memory_format=torch.channels_last)
        for shape in layer[:2]
    )
    norm = torch.empty(layer.x[:2], device="meta") if layer.normed else None
    bias = weight.new_empty(layer.channels) if layer.bias else None
    eps = 1e-5 if layer.statistics else None
    return launches(convolve, layer, x, (norm, norm, None, None), weight, bias, 0.2, eps)


def variants() -> Iterator[Variant]:
    for layer in LAYERS:
        yield from variants_of(layer)
