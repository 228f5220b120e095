"""Cases of the ops that read label and instance maps."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd_fast import ops
from pix2pixhd_fast.benchmark.layers import Layer, network_layers
from pix2pixhd_fast.benchmark.op_case import CONVOLUTION_TOLERANCES, OpCase, Size, op_case
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

# Instance maps differ in how many instances they have, on which the loop depends: 24 to 42 of six.
STREETS = 6


@op_case
def label_conv2d(request: Request, size: Size, dtype: str) -> Iterator[OpCase]:
    """The convolutions that read the scene, G's and D's: of a real scene, of blocks and of noise.

    Eager counts from the ids on: one-hot, pooling, padding, convolution. So does fused, with the
    check of the ids. Where the case says so, eager is given the channels at their level instead;
    what it adds to a dense convolution does not depend on the scene, of which there is one then.
    """
    options = request.options(size)
    if not options.label_nc or options.no_instance:
        return
    real = real_scene(size, request.batch) is not None
    kinds = (*(("cityscapes",) if real else ()), "blocks", "noise")
    for layer, level in _scene_layers(options, size):
        numbers = request.batch * layer.out_channels * layer.height * layer.width + layer.weights
        maps = 2 * request.batch * size[0] * size[1]
        floor = maps + numbers * DTYPES[dtype].itemsize
        for kind, made in (*((kind, False) for kind in kinds), (kinds[0], True)):
            inputs = partial(_scene_inputs, layer, kind, options.label_nc, request.batch, size)
            channels = partial(_scene_channels, level, options.label_nc)
            yield OpCase(
                name=f"{layer.network} level {level} to {layer.out_channels}, {kind}"
                + (", channels made beforehand" if made else ""),
                inputs=partial(_with_channels, inputs, channels) if made else inputs,
                eager=partial(_scene_layer, layer, None if made else channels),
                fused=partial(_label_conv2d, layer, level, options.label_nc, made),
                floor_bytes=(floor, 2 * floor),
                tolerance=CONVOLUTION_TOLERANCES[dtype],
                constants=int(made),
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


def _scene_channels(level: int, label_nc: int, ids: Tensor, edges: Tensor, like: Tensor) -> Tensor:
    """One-hot and edge, averaged down to the level, in the dtype of `like`."""
    x = semantic_channels(ids, edges, label_nc, like.dtype)
    for _ in range(level):
        x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    return x


def _with_channels(
    inputs: Callable[[], tuple[Tensor, ...]], channels: Callable[..., Tensor]
) -> tuple[Tensor, ...]:
    """The inputs of a layer, and behind them its channels."""
    drawn = inputs()
    return *drawn, channels(*drawn[:3])


def _scene_layer(
    layer: Layer,
    channels: Callable[..., Tensor] | None,
    ids: Tensor,
    edges: Tensor,
    weight: Tensor,
    *dense: Tensor,
) -> Tensor:
    """Of the channels that are the last of `dense`, or that `channels` makes."""
    *dense, x = dense if channels is None else (*dense, channels(ids, edges, weight))
    x = torch.cat((x, *dense), dim=1) if dense else x
    if layer.padding_mode == "zero":
        return F.conv2d(x, weight, None, layer.stride, layer.padding)
    return F.conv2d(F.pad(x, (layer.padding,) * 4, mode=layer.padding_mode), weight)


def _label_conv2d(
    layer: Layer,
    level: int,
    label_nc: int,
    made: bool,
    ids: Tensor,
    edges: Tensor,
    weight: Tensor,
    *dense: Tensor,
) -> Tensor:
    """Channels that were `made` for eager are the last of `dense`."""
    scene = SemanticMap(ids, label_nc, edges, *dense[: len(dense) - made])
    padding, eps = layer.padding_mode, 1e-5 if layer.norm != "none" else None
    arguments = (layer.stride, padding, layer.padding, level)
    return ops.label_conv2d(scene, weight, None, *arguments, eps=eps)[0]


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
    """Three channels, as E has them: on blocks, and on every street where the environment names
    some.
    """
    width, height = size
    shape = (request.batch, 3, height, width)
    pixels, item = request.batch * width * height, DTYPES[dtype].itemsize
    maps = {"blocks": partial(instance_ids, size, request.batch, torch.int32)}
    for path in real_instance_maps()[:STREETS]:
        name = path.stem.removesuffix("_gtFine_instanceIds")
        maps[name] = partial(real_ids, path, size, request.batch)
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
