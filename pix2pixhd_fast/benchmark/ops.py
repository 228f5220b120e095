"""One small function per op: what it is given, its plain PyTorch, what it costs at least.

A new op is a new function here, marked with `op_case` and yielding one `OpCase` per shape.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd_fast import ops
from pix2pixhd_fast.benchmark.layers import Layer, network_layers, norm_shapes
from pix2pixhd_fast.benchmark.op_case import OpCase
from pix2pixhd_fast.benchmark.request import DTYPES, Request
from pix2pixhd_fast.benchmark.scenes import (
    instance_ids,
    labels,
    noise,
    noise_labels,
    real_ids,
    real_instance_maps,
    real_scene,
)
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.semantic import SemanticMap, semantic_channels

Size = tuple[int, int]
OpCases = Callable[[Request, Size, str], Iterator[OpCase]]
OPS: dict[str, OpCases] = {}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}

# Of a convolution: it sums hundreds of rounded products, twice in a residual block.
CONVOLUTION_TOLERANCES = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 1e-2, "bf16": 5e-2}

_ACTIVATIONS = {
    "relu": F.relu_,
    "leaky_relu": lambda x: F.leaky_relu_(x, 0.2),
    "tanh": torch.tanh_,
}


def op_case(function: OpCases) -> OpCases:
    """Make the function's name a target."""
    OPS[function.__name__] = function
    return function


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


@op_case
def label_conv2d(request: Request, size: Size, dtype: str) -> Iterator[OpCase]:
    """The convolutions that read the scene, G's and D's, of a scene and of noise.

    Eager counts from the ids on: one-hot, pooling, padding, convolution. So does fused, with the
    check of the ids.
    """
    options = request.options(size)
    if not options.label_nc or options.no_instance:
        return
    kinds = ("blocks" if real_scene(size, request.batch) is None else "cityscapes", "noise")
    for layer, level in _scene_layers(options, size):
        numbers = request.batch * layer.out_channels * layer.height * layer.width + layer.weights
        maps = 2 * request.batch * size[0] * size[1]
        floor = maps + numbers * DTYPES[dtype].itemsize
        for kind in kinds:
            yield OpCase(
                name=f"{layer.network} level {level} to {layer.out_channels}, {kind}",
                inputs=partial(_scene_inputs, layer, kind, options.label_nc, request.batch, size),
                eager=partial(_scene_layer, layer, level, options.label_nc),
                fused=partial(_label_conv2d, layer, level, options.label_nc),
                floor_bytes=(floor, 2 * floor),
                tolerance=CONVOLUTION_TOLERANCES[dtype],
            )


def _scene_layers(options: Options, size: Size) -> Iterator[tuple[Layer, int]]:
    """The layers that read the scene, each with its level of the pyramid."""
    for network, channels in (("G", options.netG_input_nc), ("D", options.netD_input_nc)):
        for layer in network_layers(network, options, size):
            if layer.in_channels == channels and not layer.follows:
                level = (size[0] // layer.in_width).bit_length() - 1
                if level <= 2:
                    yield layer, level


def _scene_inputs(
    layer: Layer, kind: str, label_nc: int, batch: int, size: Size
) -> tuple[Tensor, ...]:
    """Labels, edges, weight and the dense channels, at their level, where there are any."""
    if kind == "cityscapes":
        ids, instances = real_scene(size, batch)
    else:
        ids = (noise_labels if kind == "noise" else labels)(size, batch, label_nc)
        instances = instance_ids(size, batch, torch.int32)
    shape = (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
    weight = noise(shape) / layer.kernel
    dense = layer.in_channels - label_nc - 1
    pictures = [noise((batch, dense, layer.in_height, layer.in_width), 1)] if dense else []
    return ids, ops.instance_boundaries(instances), weight, *pictures


def _scene_layer(
    layer: Layer,
    level: int,
    label_nc: int,
    ids: Tensor,
    edges: Tensor,
    weight: Tensor,
    *dense: Tensor,
) -> Tensor:
    x = semantic_channels(ids, edges, label_nc, weight.dtype)
    for _ in range(level):
        x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    x = torch.cat((x, *dense), dim=1) if dense else x
    if layer.padding_mode == "zero":
        return F.conv2d(x, weight, None, layer.stride, layer.padding)
    return F.conv2d(F.pad(x, (layer.padding,) * 4, mode=layer.padding_mode), weight)


def _label_conv2d(
    layer: Layer,
    level: int,
    label_nc: int,
    ids: Tensor,
    edges: Tensor,
    weight: Tensor,
    *dense: Tensor,
) -> Tensor:
    scene = SemanticMap(ids, label_nc, edges, *dense)
    padding, eps = layer.padding_mode, 1e-5 if layer.norm != "none" else None
    arguments = (layer.stride, padding, layer.padding, level)
    return ops.label_conv2d(scene, weight, None, *arguments, eps=eps)[0]


@op_case
def feature_matching_loss(request: Request, size: Size, dtype: str) -> Iterator[OpCase]:
    """All features of D but the predictions, before their norms; the gradient is the fakes'."""
    layers, options = network_layers("D", request.options(size), size), request.options(size)
    layers = [layer for layer in layers if layer.activation != "none"]
    elements = sum(layer.out_channels * layer.height * layer.width for layer in layers)
    weights = [4 / (options.n_layers_D + 1) / options.num_D] * len(layers)
    floor = 2 * request.batch * elements * DTYPES[dtype].itemsize
    yield OpCase(
        name=f"{options.num_D} scales",
        inputs=partial(_features, layers, request.batch),
        eager=partial(_compared_layers, layers, weights),
        fused=partial(_compared_features, layers, weights),
        floor_bytes=(floor, floor * 3 // 2),
        # In 16 bits eager rounds what it compares, so that signs of small differences differ.
        tolerance={"fp32": 1e-3, "bf16": 0.2, "fp16": 5e-2, "tf32": 1e-3}[dtype],
        channels_last=2 * len(layers),
        constants=len(layers),
    )


def _features(layers: list[Layer], batch: int) -> tuple[Tensor, ...]:
    """Of the fake picture, then of the real one."""
    shapes = [(batch, layer.out_channels, layer.height, layer.width) for layer in layers]
    return tuple(noise(shape, seed) for seed in (0, 1) for shape in shapes)


def _compared_layers(layers: list[Layer], weights: list[float], *features: Tensor) -> Tensor:
    def written(layer: Layer, x: Tensor) -> Tensor:
        x = F.instance_norm(x) if layer.norm == "instance" else x
        return F.leaky_relu(x, 0.2)

    n, total = len(layers), 0.0
    for layer, weight, f, r in zip(layers, weights, features[:n], features[n:], strict=True):
        f, r = written(layer, f), written(layer, r.detach())
        total = total + weight * F.l1_loss(f.float(), r.float())
    return total


def _compared_features(layers: list[Layer], weights: list[float], *features: Tensor) -> Tensor:
    def pending(layer: Layer, x: Tensor) -> ops.Feature:
        normalised = layer.norm == "instance"
        norm = ops.Norm("instance", *ops.channel_statistics(x, 1e-5)) if normalised else ops.Norm()
        return ops.Feature(x, norm, "leaky_relu", 0.2)

    n = len(layers)
    sides = [
        [pending(layer, x) for layer, x in zip(layers, side, strict=True)]
        for side in (features[:n], features[n:])
    ]
    return ops.feature_matching_loss(*sides, weights)


@op_case
def multiscale_gan_loss(request: Request, size: Size, dtype: str) -> Iterator[OpCase]:
    """The predictions of D, as LSGAN and as cross-entropy, both against "real"."""
    layers = [x for x in network_layers("D", request.options(size), size) if x.out_channels == 1]
    shapes = [(request.batch, 1, layer.height, layer.width) for layer in layers]
    floor = sum(map(_pixels, shapes)) * DTYPES[dtype].itemsize
    for name, lsgan in (("lsgan", True), ("cross-entropy", False)):
        yield OpCase(
            name=f"{name}, {len(layers)} scales",
            inputs=lambda: tuple(noise(s).sigmoid() for s in shapes),
            eager=partial(_mean_distances, F.mse_loss if lsgan else F.binary_cross_entropy),
            fused=lambda *p, lsgan=lsgan: ops.multiscale_gan_loss(p, 1.0, lsgan),
            floor_bytes=(floor, 2 * floor),
            tolerance={"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3, "tf32": 1e-5}[dtype],
        )


def _mean_distances(loss: Callable[..., Tensor], *predictions: Tensor) -> Tensor:
    return sum(loss(p.float(), torch.ones_like(p, dtype=torch.float32)) for p in predictions)


@op_case
def instance_boundaries(request: Request, size: Size, dtype: str) -> Iterator[OpCase]:
    """Ids of 32 and of 64 bits, whatever the dtype.

    Eager ends in float, as the original's networks read it, fused in uint8, as label maps hold it.
    """
    pixels = request.batch * size[0] * size[1]
    for ids in (torch.int32, torch.int64):
        name = str(ids).removeprefix("torch.")
        yield OpCase(
            name=f"ids of {name}",
            inputs=lambda ids=ids: (instance_ids(size, request.batch, ids),),
            eager=_shifted_comparisons,
            fused=ops.instance_boundaries,
            floor_bytes=(pixels * (ids.itemsize + 1), 0),
            tolerance=0.0,
            dtype=name,
        )


def _shifted_comparisons(ids: Tensor) -> Tensor:
    """The tensor expression of the original project."""
    edge = torch.zeros(ids.shape, dtype=torch.uint8, device=ids.device)
    edge[..., 1:] = edge[..., 1:] | (ids[..., 1:] != ids[..., :-1])
    edge[..., :-1] = edge[..., :-1] | (ids[..., 1:] != ids[..., :-1])
    edge[..., 1:, :] = edge[..., 1:, :] | (ids[..., 1:, :] != ids[..., :-1, :])
    edge[..., :-1, :] = edge[..., :-1, :] | (ids[..., 1:, :] != ids[..., :-1, :])
    return edge.float()


@op_case
def instance_mean_pool(request: Request, size: Size, dtype: str) -> Iterator[OpCase]:
    """Three channels, as E has them; on the maps of a street where the environment names some."""
    width, height = size
    shape = (request.batch, 3, height, width)
    pixels, item = request.batch * width * height, DTYPES[dtype].itemsize
    maps = {"blocks": lambda: instance_ids(size, request.batch, torch.int32)}
    if real := real_instance_maps():
        maps["a street"] = lambda: real_ids(real[0], size, request.batch)
    for name, ids in maps.items():
        yield OpCase(
            name=f"3 channels, instances of {name}",
            inputs=lambda ids=ids: (noise(shape), ids()),
            eager=_loop_over_instances,
            fused=ops.instance_mean_pool,
            floor_bytes=tuple(pixels * (4 + 6 * item) * passes for passes in (1, 2)),
            tolerance={"fp32": 1e-4, "bf16": 1e-2, "fp16": 2e-3, "tf32": 1e-4}[dtype],
        )


def _loop_over_instances(features: Tensor, ids: Tensor) -> Tensor:
    """The loops of the original project: over instances, pictures and channels."""
    means = features.clone()
    for i in np.unique(ids.cpu().numpy().astype(int)):
        for b in range(features.shape[0]):
            indices = (ids[b : b + 1] == int(i)).nonzero()
            for j in range(features.shape[1]):
                place = (indices[:, 0] + b, indices[:, 1] + j, indices[:, 2], indices[:, 3])
                own = features[place]
                means[place] = own.mean().expand_as(own)
    return means


def _noise_in(shape: tuple[int, ...], memory_format: torch.memory_format) -> tuple[Tensor]:
    return (noise(shape).contiguous(memory_format=memory_format),)


def _pixels(shape: tuple[int, int, int, int], pad: int = 0) -> int:
    n, c, h, w = shape
    return n * c * (h + 2 * pad) * (w + 2 * pad)
