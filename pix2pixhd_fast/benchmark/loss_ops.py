"""Cases of the losses."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pix2pixhd_fast import ops
from pix2pixhd_fast.benchmark.layers import Layer, network_layers
from pix2pixhd_fast.benchmark.op_case import OpCase, Size, op_case
from pix2pixhd_fast.benchmark.request import DTYPES, Request
from pix2pixhd_fast.benchmark.scenes import noise


@op_case
def feature_matching_loss(request: Request, size: Size, dtype: str) -> Iterator[OpCase]:
    """All features of D but the predictions, before their norms; the gradient is the fakes'.

    Fused also counts the statistics of the norms, which eager's norms take, or, where the case says
    so, is given them, as in a network, where the convolution before has them.
    """
    layers, options = network_layers("D", request.options(size), size), request.options(size)
    layers = [layer for layer in layers if layer.activation != "none"]
    elements = sum(layer.out_channels * layer.height * layer.width for layer in layers)
    weights = [4 / (options.n_layers_D + 1) / options.num_D] * len(layers)
    floor = 2 * request.batch * elements * DTYPES[dtype].itemsize
    norms = sum(layer.norm == "instance" for layer in layers)
    for known in (False, True):
        yield OpCase(
            name=f"{options.num_D} scales" + (", statistics known" if known else ""),
            inputs=partial(_features, layers, request.batch, known),
            eager=partial(_compared_layers, layers, weights),
            fused=partial(_compared_features, layers, weights),
            floor_bytes=(floor, floor * 3 // 2),
            # In 16 bits eager rounds what it compares, so that signs of small differences differ.
            tolerance={"fp32": 1e-3, "bf16": 0.2, "fp16": 5e-2, "tf32": 1e-3}[dtype],
            channels_last=2 * len(layers),
            constants=len(layers) + 4 * norms * known,
        )


def _features(layers: list[Layer], batch: int, known: bool) -> tuple[Tensor, ...]:
    """Of the fake picture, then of the real one; then means and deviations where they are known."""
    shapes = [(batch, layer.out_channels, layer.height, layer.width) for layer in layers]
    drawn = [noise(shape, seed) for seed in (0, 1) for shape in shapes]
    statistics = []
    for layer, x in zip([*layers, *layers] if known else [], drawn if known else [], strict=True):
        if layer.norm == "instance":
            statistics += ops.channel_statistics(x, 1e-5)
    return *drawn, *statistics


def _compared_layers(layers: list[Layer], weights: list[float], *features: Tensor) -> Tensor:
    def written(layer: Layer, x: Tensor) -> Tensor:
        x = F.instance_norm(x) if layer.norm == "instance" else x
        return F.leaky_relu(x, 0.2)

    n, total = len(layers), 0.0
    pairs = zip(layers, weights, features[:n], features[n : 2 * n], strict=True)
    for layer, weight, f, r in pairs:
        f, r = written(layer, f), written(layer, r.detach())
        total = total + weight * F.l1_loss(f.float(), r.float())
    return total


def _compared_features(layers: list[Layer], weights: list[float], *features: Tensor) -> Tensor:
    n = len(layers)
    known = iter(features[2 * n :])

    def pending(layer: Layer, x: Tensor) -> ops.Feature:
        if layer.norm != "instance":
            return ops.Feature(x, ops.Norm(), "leaky_relu", 0.2)
        mean = next(known, None)
        if mean is None:
            statistics = ops.channel_statistics(x, 1e-5)
        else:
            statistics = mean.float(), next(known).float()
        return ops.Feature(x, ops.Norm("instance", *statistics), "leaky_relu", 0.2)

    sides = [
        [pending(layer, x) for layer, x in zip(layers, side, strict=True)]
        for side in (features[:n], features[n : 2 * n])
    ]
    return ops.feature_matching_loss(*sides, weights)


@op_case
def multiscale_gan_loss(request: Request, size: Size, dtype: str) -> Iterator[OpCase]:
    """The predictions of D, as LSGAN and as cross-entropy, both against "real"."""
    layers = [x for x in network_layers("D", request.options(size), size) if x.out_channels == 1]
    shapes = [(request.batch, 1, layer.height, layer.width) for layer in layers]
    floor = sum(map(math.prod, shapes)) * DTYPES[dtype].itemsize
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
