"""D on the synthesised and the real pictures as one batch, and its two backward passes, by hand.

Who calls whom: `step.py` makes the pass, takes the losses of its `results`, and hands their
gradients back, first those of G to `picture_gradient`, then those of D to `parameter_gradients`.
The feature-matching loss has none of its own: what it takes (`Matching`) goes along, and is a part
of the pass over memory that every feature's norm makes anyway.

Both go through the layers from the last to the first by the ops that autograd would call. A graph
would do the same with one picture at a time, which doubles the launches, and would cast weights,
fill zeros and add gradients tensor by tensor.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pix2pixhd_fast._launches import backward_of
from pix2pixhd_fast._library import kernel
from pix2pixhd_fast.nn.discriminators import MultiscaleDiscriminator
from pix2pixhd_fast.nn.layers import hooked
from pix2pixhd_fast.nn.pending import Pending, Scene, as_pending
from pix2pixhd_fast.nn.pyramid import halves
from pix2pixhd_fast.nn.sequence import Sequence
from pix2pixhd_fast.nn.steps import ConvStep, activation
from pix2pixhd_fast.ops.feature_matching_loss import Feature
from pix2pixhd_fast.ops.label_conv2d import before_activation
from pix2pixhd_fast.ops.matched_norm_backward import Matching, matched_norm_backward
from pix2pixhd_fast.ops.norm_act_conv import Conv, input_gradient
from pix2pixhd_fast.ops.norm_act_pad import Norm
from pix2pixhd_fast.semantic import SemanticMap
from pix2pixhd_fast.training.parameter_gradients import converted


def fits(netD: nn.Module) -> bool:
    """Whether D is a chain of fused convolutions as `define_D` makes it, without hooks.

    Their norms are instance norms without gamma and beta, or none.
    """
    if type(netD) is not MultiscaleDiscriminator or hooked(netD) or not halves(netD.downsample):
        return False
    sequences = [sequence for k in range(netD.num_D) for sequence in netD.scale(k)]
    if not all(sequence.runs_plan() for sequence in sequences):
        return False
    steps = _steps(sequences)
    if not all(isinstance(step, ConvStep) and _is_plain(step) for step in steps):
        return False
    own = [id(p) for step in steps for p in (step.conv.weight, step.conv.bias) if p is not None]
    return sorted(own) == sorted(id(p) for p in netD.parameters())


def _is_plain(step: ConvStep) -> bool:
    plain = step.norm is None or (step.norm_facts[0] == "instance" and not step.norm_facts[2])
    return plain and not step.shape.transposed


def _steps(sequences: Iterable[Sequence]) -> list:
    return [step for sequence in sequences for step in sequence.plan().steps]


class DiscriminatorPass:
    """A forward of D on twice as many images as there are pictures of a kind, without a graph.

    `seen`: what D reads of the synthesised pictures, then of the real ones, [2N, C, H, W], the
    picture in its last `channels` channels; a tensor is channels_last. Runs under the autocast that
    is on. netD must be one that `fits`. The backward passes are for after that: each is to be
    called once, in this order, and takes what it has used out of memory.
    """

    def __init__(self, netD: MultiscaleDiscriminator, seen: Tensor | SemanticMap, channels: int):
        self.netD, self.channels, self.images = netD, channels, seen.shape[0] // 2
        self._scales: list[list[_Layer]] = []
        self._pictures: list[Tensor] = []
        with torch.no_grad():
            self._convs = _convolutions(netD)
            self._results = netD(seen, raw=self._run)
        del self._convs

    def _run(self, sequences: list[Sequence], level: Tensor | Scene) -> list[Pending]:
        """A scale, noted layer by layer; the results of all its layers."""
        steps = _steps(sequences)
        dtype = self._convs[steps[0].conv].weight.dtype
        if isinstance(level, Scene):
            picture = level.map.dense[:, -self.channels :]
            read = as_pending(level._replace(map=level.map.to(dtype=dtype)))
        else:
            picture = level[:, -self.channels :]
            read = as_pending(level.to(dtype))
        self._pictures.append(picture[: self.images])
        layers, results, written = [], [read], activation(None)
        for step in steps:
            layers.append(_Layer(step, self._convs[step.conv], results[-1], written))
            results.append(step.compute(results[-1], layers[-1].conv))
            written = activation(step.act if results[-1].done else None)
        self._scales.append(layers)
        return results[1:]

    def results(self) -> tuple[list[list[Pending]], list[list[Pending]]]:
        """Of each scale and layer, the finest scale first: for the synthesised, for the real.

        Views, without gradient; the pass forgets them.
        """
        results, self._results = self._results, []
        parts = slice(None, self.images), slice(self.images, None)
        fake, real = ([[_part(p, part) for p in scale] for scale in results] for part in parts)
        return fake, real

    @torch.no_grad()
    def picture_gradient(
        self, gradients: list[Tensor], matchings: list[list[Matching | None]]
    ) -> Tensor:
        """The gradient of the synthesised pictures, [N, channels, H, W], in their dtype.

        `gradients` of the raw output of each scale's last layer for them; `matchings` of the layers
        before, None where the feature-matching loss does not count; both are used up.
        """
        found = None
        with backward_of(self.netD):
            while gradients:
                dy, k = gradients.pop(), len(gradients)
                dy = self._through_layers(self._scales[k], dy, matchings.pop())
                found = dy.to(self._pictures[k].dtype) if found is None else found.add_(dy)
                if k:
                    found = _pooling_gradient(found, self._pictures[k - 1])
        return found

    def _through_layers(
        self, layers: list["_Layer"], dy: Tensor, matchings: list[Matching | None]
    ) -> Tensor:
        """The gradient of the synthesised pictures at the level that `layers` read."""
        part = slice(None, self.images)
        for layer in reversed(layers[1:]):
            dy = layer.of(part).input_gradient(dy, matchings.pop())
        return layers[0].of(part).picture_gradient(dy, self.channels)

    @torch.no_grad()
    def parameter_gradients(
        self, gradients: list[Tensor]
    ) -> tuple[list[nn.Parameter], list[Tensor]]:
        """The trained parameters of D and their gradients, but for those that are zero for sure.

        `gradients` of the raw output of each scale's last layer, for all images; used up.
        """
        found: list[tuple[nn.Parameter, Tensor]] = []
        with backward_of(self.netD):
            while self._scales:
                layers, dy = self._scales.pop(), gradients.pop()
                while layers:
                    layer = layers.pop()
                    dy, *own = layer.gradients(dy, needs_x=bool(layers))
                    found += own
        parameters, values = zip(*found, strict=True) if found else ((), ())
        return list(parameters), list(values)


class _Layer(NamedTuple):
    """A layer as it ran: its convolution in the precision of the pass, and what it read."""

    step: ConvStep
    conv: Conv
    read: Pending
    written: tuple[str, float]  # act and slope that are in what it read already

    def of(self, part: slice) -> "_Layer":
        """The layer for some of the images."""
        return self._replace(read=_part(self.read, part))

    @property
    def raw(self) -> Pending:
        """What it read; an activation that is in it already stands as if it were to come.

        There it has the same derivative, and tells the larger of two values as well.
        """
        act, slope = self.written
        return self.read if act == "none" else self.read._replace(act=act, slope=slope)

    def input_gradient(self, dy: Tensor, matching: Matching | None) -> Tensor:
        """Of the raw output that it reads, with that of the loss that matches it."""
        read, step = self.raw, self.step
        if matching is None:
            return self._backward(dy, read, self.conv.weight, (True, False, False))[0]
        dp = input_gradient(dy, read.x, self.conv, step.padding, step.pad)
        feature = Feature(read.x, read.norm, read.act, read.slope)
        real = matching.real._replace(act=read.act, slope=read.slope)
        return matched_norm_backward(dp, feature, matching._replace(real=real))

    def picture_gradient(self, dy: Tensor, channels: int) -> Tensor:
        """Of a layer that reads a level of the pyramid: for the last `channels` alone."""
        x = self.read.x.map.dense if isinstance(self.read.x, Scene) else self.read.x
        weight = self.conv.weight[:, -channels:]
        return self._backward(dy, Pending(x[:, -channels:]), weight, (True, False, False))[0]

    def gradients(self, dy: Tensor, needs_x: bool) -> list:
        """The gradient of what the layer read, or None; then pairs of a parameter and its own."""
        weight, bias = self.step.conv.weight, self.step.conv.bias
        needs_bias = bias is not None and bias.requires_grad and not self.conv.dead_bias
        needs = (weight.requires_grad, needs_bias)
        if isinstance(self.read.x, Scene):
            found = iter(self._label_gradients(dy, needs))
        else:
            needs_all = (needs_x, *needs)
            found = iter(self._backward(dy, self.read, self.conv.weight, needs_all))
        dx = next(found) if needs_x else None
        if needs_x and self.written[0] != "none":
            dx = before_activation(dx, self.read.x, *self.written)
        wanted = (p for p, needed in zip((weight, bias), needs, strict=True) if needed)
        return [dx, *zip(wanted, found, strict=True)]

    def _label_gradients(self, dy: Tensor, needs: tuple[bool, bool]) -> list[Tensor]:
        """Of weight and bias, those that are needed; the picture's channels are the last."""
        scene, step, weight = self.read.x, self.step, self.conv.weight
        if not any(needs):
            return []
        of_labels, dbias = kernel(
            "label_conv2d_backward", dy, scene.map.labels, scene.map.edges, scene.map.num_labels,
            *weight.shape[2:], scene.level, self.conv.stride, step.padding, step.pad,
        )  # fmt: skip
        found = [dbias] if needs[1] else []
        if needs[0]:
            dense = weight[:, scene.map.num_semantic :]
            picture = Pending(scene.map.dense)
            of_picture = self._backward(dy, picture, dense, (False, True, False))[0]
            # in the format of the weight, which neither part decides
            dweight = torch.empty_like(weight)
            found.insert(0, torch.cat((of_labels, of_picture), dim=1, out=dweight))
        return found

    def _backward(
        self, dy: Tensor, read: Pending, weight: Tensor, needs: tuple[bool, bool, bool]
    ) -> list[Tensor]:
        """For what it read, weight and bias: those that are needed."""
        if not any(needs):
            return []
        conv, step = self.conv, self.step
        return torch.ops.pix2pixhd_fast.norm_act_conv_backward(
            dy, read.x, *read.norm.tensors, weight, read.norm.kind, read.act, read.slope,
            step.padding, step.pad, conv.stride, conv.transposed, conv.output_padding, *needs,
        )  # fmt: skip


def _convolutions(netD: MultiscaleDiscriminator) -> dict[nn.Module, Conv]:
    """The convolutions of D by their modules, cast once for both pictures and all passes."""
    steps = _steps(sequence for k in range(netD.num_D) for sequence in netD.scale(k))
    convs = {step.conv: step.convolution() for step in steps}
    for module, conv in convs.items():
        if conv.dead_bias:
            convs[module] = conv._replace(bias=None)
    tensors = [t for conv in convs.values() for t in (conv.weight, conv.bias) if t is not None]
    dtype, device = tensors[0].dtype, tensors[0].device.type
    if dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return convs
    cast = iter(converted(tensors, torch.get_autocast_dtype(device)))
    return {
        module: conv._replace(weight=next(cast), bias=None if conv.bias is None else next(cast))
        for module, conv in convs.items()
    }


def _part(p: Pending, part: slice) -> Pending:
    """Of some of the images: views."""
    if isinstance(p.x, Scene):
        return p._replace(x=p.x._replace(map=p.x.map.each(lambda x: x[part])))
    kind, *tensors = p.norm
    mean, rstd = (None if t is None else t[part] for t in tensors[:2])
    return p._replace(x=p.x[part], norm=Norm(kind, mean, rstd, *tensors[2:]))


def _pooling_gradient(dy: Tensor, picture: Tensor) -> Tensor:
    """Of `nn.pyramid.downsampling` for the picture that it halved."""
    sides = ([3, 3], [2, 2], [1, 1])
    return torch.ops.aten.avg_pool2d_backward(dy, picture, *sides, False, False, None)
