"""The convolutions of the networks with their sizes, read off the networks themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from pix2pixhd_fast._backend import backend
from pix2pixhd_fast.model import Pix2PixHD
from pix2pixhd_fast.nn.vgg import Vgg19
from pix2pixhd_fast.options import Options

NETWORKS = ("G", "D", "E", "VGG")
_CONVOLUTIONS = {nn.Conv2d: "conv", nn.ConvTranspose2d: "conv_transpose"}
_PADDINGS = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate"}
_NORMS = {nn.InstanceNorm2d: "instance", nn.BatchNorm2d: "batch"}
_ACTIVATIONS = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}


@dataclass(frozen=True)
class Layer:
    """One convolution with what stands before and behind it, in the order in which layers run.

    `height` and `width` are those of its result, `in_height` and `in_width` of what it reads,
    before padding. `padding` pixels in `padding_mode`: "reflect" or "replicate" (a layer of its
    own), "zero" (by the convolution) or "none". `norm` is "instance", "batch" or "none";
    `activation` "relu", "leaky_relu", "tanh" or "none". `follows` says that it reads the layer
    before as it is, with nothing like a sum or a pooling between.
    """

    network: str
    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: int
    padding_mode: str
    in_height: int
    in_width: int
    height: int
    width: int
    norm: str = "none"
    activation: str = "none"
    follows: bool = False

    @property
    def weights(self) -> int:
        """Elements of the kernel."""
        return self.kernel**2 * self.in_channels * self.out_channels

    @property
    def flops(self) -> int:
        """Additions and multiplications of the forward, for one picture."""
        transposed = self.kind == "conv_transpose"
        pixels = (self.in_height * self.in_width) if transposed else (self.height * self.width)
        return 2 * self.weights * pixels

    @property
    def elements(self) -> int:
        """Elements read and written for one picture, without weights and padding."""
        read = self.in_channels * self.in_height * self.in_width
        return read + self.out_channels * self.height * self.width


def network_layers(network: str, options: Options, size: tuple[int, int]) -> list[Layer]:
    """The layers of "G", "D", "E" or "VGG" at `size` (width, height), which G and E pad to their
    multiple; traced on fake tensors, in about a second. Without E's pooling.
    """
    with FakeTensorMode(), backend("eager"):
        net = build_network(network, options)
        width, height = padded_size(network, options, size)
        x = torch.empty(1, _input_channels(network, options), height, width)
        events: list[_Event] = []
        with _listening(net, events), torch.no_grad():
            (net.model if network == "E" else net)(x)
    return list(_layers(network, events))


def build_network(network: str, options: Options) -> nn.Module:
    """One network of the model with these options, on the CPU, with its initial weights."""
    if network == "VGG":
        return Vgg19(weights="random")
    changes = {
        "G": {"isTrain": False},
        "D": {"isTrain": True, "no_vgg_loss": True},
        "E": {"isTrain": False, "instance_feat": True, "load_features": False},
    }
    model = Pix2PixHD(replace(options, **changes[network]), "cpu")
    return model.networks()[network]


def padded_size(network: str, options: Options, size: tuple[int, int]) -> tuple[int, int]:
    """The size that the model hands to the network: G and E read multiples."""
    if network in ("D", "VGG"):
        return size
    needed = replace(options, instance_feat=True) if network == "E" else options
    multiple = needed.size_multiple
    return tuple(max(-(-side // multiple), 2) * multiple for side in size)


def norm_shapes(layers: list[Layer]) -> list[tuple[Layer, str, int]]:
    """The distinct (layer, padding, pad) that norm, activation and the next padding have, in order.

    Layers without an activation are the ends of residual blocks, which are added first.
    """
    found = {}
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        if layer.norm == "none" or layer.activation == "none":
            continue
        padded = after is not None and after.follows and after.padding_mode in _PADDINGS.values()
        padding, pad = (after.padding_mode, after.padding) if padded else ("none", 0)
        shape = (layer.out_channels, layer.height, layer.width, layer.activation, padding, pad)
        found.pop(shape, None)  # the last of equals gives the order and the name
        found[shape] = (layer, padding, pad)
    return list(found.values())


@dataclass(frozen=True)
class _Event:
    """A module that ran; tensors are kept, so that identities stay."""

    name: str
    module: nn.Module
    given: Tensor
    result: Tensor


@contextmanager
def _listening(net: nn.Module, events: list[_Event]) -> Iterator[None]:
    def listen(name: str, module: nn.Module):
        return module.register_forward_hook(
            lambda _, args, result: events.append(_Event(name, module, args[0], result))
        )

    leaves = [(n, m) for n, m in net.named_modules() if not list(m.children())]
    hooks = [listen(name, module) for name, module in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _kind(module: nn.Module, kinds: dict[type, str]) -> str | None:
    return next((kind for cls, kind in kinds.items() if isinstance(module, cls)), None)


def _layers(network: str, events: list[_Event]) -> Iterator[Layer]:
    layer, last, pad = None, None, None
    for event in events:
        if _kind(event.module, _PADDINGS):
            pad = event
        elif _kind(event.module, _CONVOLUTIONS):
            if layer is not None:
                yield layer
            layer = _convolution(network, event, pad, last)
            last, pad = event.result, None
        elif layer is not None and event.given is last:
            norm, act = _kind(event.module, _NORMS), _kind(event.module, _ACTIVATIONS)
            if norm or act:
                layer = replace(layer, **({"norm": norm} if norm else {"activation": act}))
                last = event.result
    if layer is not None:
        yield layer


def _convolution(network: str, event: _Event, pad: _Event | None, last: Tensor | None) -> Layer:
    conv = event.module
    given = event.given if pad is None else pad.given
    mode, pixels = ("zero" if conv.padding[0] else "none"), conv.padding[0]
    if pad is not None:
        mode, pixels = _kind(pad.module, _PADDINGS), pad.module.padding[0]
    return Layer(
        network,
        event.name,
        _kind(conv, _CONVOLUTIONS),
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size[0],
        conv.stride[0],
        pixels,
        mode,
        *given.shape[2:],
        *event.result.shape[2:],
        follows=given is last,
    )


def _input_channels(network: str, options: Options) -> int:
    channels = {"G": options.netG_input_nc, "D": options.netD_input_nc, "E": options.output_nc}
    return channels.get(network, 3)
