"""Cases of the ops that layers are made of."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd_fast import ops
from pix2pixhd_fast.benchmark.layers import Layer, network_layers, norm_shapes
from pix2pixhd_fast.benchmark.op_case import CONVOLUTION_TOLERANCES, OpCase, Size, op_case
from pix2pixhd_fast.benchmark.request import DTYPES, Request
from pix2pixhd_fast.benchmark.scenes import noise

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
_ACTIVATIONS = {
    "relu": F.relu_,
    "leaky_relu": lambda x: F.leaky_relu_(x, 0.2),
    "tanh": torch.tanh_,
}


@op_case
def norm_act_pad(request: Request, size: Size, dtype: str) -> Iterator[OpCase]:
    """The shapes of G (the last, or with `all_shapes` every one) in both memory formats."""
    shapes = norm_shapes(network_layers("G", request.options(size), size))
    for layer, padding, pad in shapes if request.all_shapes else shapes[-1:]:
        shape = (request.batch, layer.out_channels, layer.height, layer.width)
        pixels, padded = _pixels(shape), _pixels(shape, pad)
        width = DTYPES[dtype].itemsize
        for layout, memory_format in LAYOUTS.items():
            yield OpCase(
                name="x".join(map(str, shape[1:]))
                + f" {layer.activation} {padding} {pad} {layout}",
                inputs=partial(_noise_in, shape, memory_format),
                eager=partial(_layers, layer.activation, padding, pad),
                fused=partial(_norm_act_pad, layer.activation, padding, pad),
                floor_bytes=((pixels + padded) * width, (3 * pixels + 2 * padded) * width),
                tolerance={"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3, "tf32": 1e-5}[dtype],
            )


def _layers(act: str, padding: str, pad: int, x: Tensor) -> Tensor:
    y = _ACTIVATIONS[act](F.instance_norm(x))
    return F.pad(y, (pad,) * 4, mode=padding) if pad else y


def _norm_act_pad(act: str, padding: str, pad: int, x: Tensor) -> Tensor:
    return ops.norm_act_pad(x, act, padding=padding, pad=pad)[0]


@op_case
def norm_act_conv(request: Request, size: Size, dtype: str) -> Iterator[OpCase]:
    """Of G the last convolution that follows another one in a residual block, and the head."""
    layers = network_layers("G", request.options(size), size)
    for name, layer in (("block", _residual_layer(layers)), ("head", layers[-1])):
        yield OpCase(
            name=f"{name} {_shape_name(layer)}",
            inputs=partial(_layer_inputs, layer, request.batch),
            eager=partial(_layer, layer.padding_mode, layer.padding),
            fused=partial(_norm_act_conv, layer.padding_mode, layer.padding),
            **_work(request, [layer], dtype),
        )


@op_case
def residual_block(request: Request, size: Size, dtype: str) -> Iterator[OpCase]:
    """The last residual block of G."""
    layer = _residual_layer(network_layers("G", request.options(size), size))
    yield OpCase(
        name=_shape_name(layer),
        inputs=partial(_layer_inputs, layer, request.batch, 2),
        eager=partial(_residual_layers, layer.padding_mode),
        fused=partial(_residual_block, layer.padding_mode),
        **_work(request, [layer, layer], dtype),
    )


def _residual_layer(layers: list[Layer]) -> Layer:
    """Without an activation behind its norm: only the second one of a residual block has none."""
    return [layer for layer in layers if layer.norm != "none" and layer.activation == "none"][-1]


def _shape_name(layer: Layer) -> str:
    shape = f"{layer.in_channels}x{layer.in_height}x{layer.in_width}"
    return f"{shape} to {layer.out_channels}, {layer.kernel}x{layer.kernel} {layer.padding_mode}"


def _layer_inputs(layer: Layer, batch: int, weights: int = 1) -> tuple[Tensor, ...]:
    """The raw output of the convolution before, and weights that keep the deviation."""
    shape = (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
    scale = (layer.in_channels * layer.kernel**2) ** -0.5
    x = noise((batch, layer.in_channels, layer.in_height, layer.in_width))
    return x, *(noise(shape, seed) * scale for seed in range(1, weights + 1))


def _work(request: Request, layers: list[Layer], dtype: str) -> dict:
    """Floor and arithmetic of convolutions: those of the backward are two more."""
    flops = request.batch * sum(layer.flops for layer in layers)
    ends = layers[0].in_channels * layers[0].in_height * layers[0].in_width
    ends += layers[-1].out_channels * layers[-1].height * layers[-1].width
    numbers = request.batch * ends + sum(layer.weights for layer in layers)
    floor = numbers * DTYPES[dtype].itemsize
    return {
        "floor_bytes": (floor, 3 * floor),
        "flops": (flops, 3 * flops),
        "tolerance": CONVOLUTION_TOLERANCES[dtype],
        "channels_last": 1,
    }


def _layer(padding: str, pad: int, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.pad(F.instance_norm(x).relu_(), (pad,) * 4, mode=padding), weight)


def _norm_act_conv(padding: str, pad: int, x: Tensor, weight: Tensor) -> Tensor:
    norm = ops.Norm("instance", *ops.channel_statistics(x, 1e-5))
    return ops.norm_act_conv(x, norm, ops.Conv(weight), "relu", padding=padding, pad=pad)[0]


def _residual_layers(padding: str, h: Tensor, *weights: Tensor) -> Tensor:
    first, second = weights
    y = F.instance_norm(F.conv2d(F.pad(h, (1,) * 4, mode=padding), first)).relu_()
    return h + F.instance_norm(F.conv2d(F.pad(y, (1,) * 4, mode=padding), second))


def _residual_block(padding: str, h: Tensor, *weights: Tensor) -> Tensor:
    return ops.residual_block(ops.Bordered(h), weights, (None, None), padding=padding).padded


def _noise_in(shape: tuple[int, ...], memory_format: torch.memory_format) -> tuple[Tensor]:
    return (noise(shape).contiguous(memory_format=memory_format),)


def _pixels(shape: tuple[int, int, int, int], pad: int = 0) -> int:
    n, c, h, w = shape
    return n * c * (h + 2 * pad) * (w + 2 * pad)
