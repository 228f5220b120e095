"""What a child of a sequence is to the plan: a part of a fused step, or an ordinary module."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from pix2pixhd_fast.nn.pending import Chained


class Convolution(NamedTuple):
    """What a plan knows of a convolution; `padding` and `pad` are those of `ops.norm_act_conv`."""

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: int
    padding: str
    pad: int
    transposed: bool
    output_padding: int


class Layer(NamedTuple):
    """A child as the plan reads it.

    `role`: "pad", "conv", "norm", "act", "skip" (does nothing, now or always), "chained" (runs on
    what is pending by itself) or "ordinary", then with the `reason`. `facts`: of a pad the padding
    and its width, of a conv its `Convolution`, of a norm "instance" or "batch", its channels and
    whether it is affine.
    """

    module: nn.Module
    role: str
    facts: tuple = ()
    reason: str = ""


def read_layer(module: nn.Module) -> Layer:
    """Read one child. Exact types only: what a subclass does is its own affair."""
    reason = hooked(module)
    if reason:
        return Layer(module, "ordinary", (), reason)
    if isinstance(module, Chained):
        if module.replaced():
            return Layer(module, "ordinary", (), "a subclass with a forward of its own")
        return Layer(module, "chained")
    read = _READERS.get(type_before_parametrizations(module))
    if read is None:
        return Layer(module, "ordinary", (), "there is no fused step for it")
    return read(module)


def fingerprint(module: nn.Module) -> tuple:
    """All that `read_layer` depends on, to compare: a tenth of the time that reading takes.

    What a step takes from a layer is so never out of date; the rest it reads when it runs.
    """
    own, kind = module.__dict__, type(module)
    hooks = bool(own["_forward_hooks"] or own["_forward_pre_hooks"])
    hooks = hooks or bool(own["_backward_hooks"] or own["_backward_pre_hooks"])
    facts = [own.get(name) for name in _FACTS.get(kind, _ALL_FACTS)]
    return module, kind, hooks, "forward" in own, *facts


def hooked(module: nn.Module) -> str:
    """Why a call of the module is more than its forward, or ""."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks"
    if module._backward_hooks or module._backward_pre_hooks:
        return "it has backward hooks"
    return "its forward was replaced" if "forward" in module.__dict__ else ""


def _read_pad(module: nn.Module) -> Layer:
    left, *others = module.padding
    if left < 0 or any(side != left for side in others):
        return Layer(module, "ordinary", (), "its sides differ or are negative")
    return Layer(module, "pad", (_PADS[type_before_parametrizations(module)], left))


def _read_conv(module: nn.Conv2d) -> Layer:
    reason = _unlike(module)
    padding = {"zeros": "zero"}.get(module.padding_mode, module.padding_mode)
    if not reason and padding not in ("zero", "reflect", "replicate"):
        reason = f"its padding mode is {module.padding_mode}"
    if reason:
        return Layer(module, "ordinary", (), reason)
    return Layer(module, "conv", _convolution(module, padding, False, 0))


def _read_transposed(module: nn.ConvTranspose2d) -> Layer:
    reason = _unlike(module)
    if not reason and len(set(module.output_padding)) > 1:
        reason = "its output paddings differ"
    if reason:
        return Layer(module, "ordinary", (), reason)
    return Layer(module, "conv", _convolution(module, "zero", True, module.output_padding[0]))


def _unlike(module: nn.Conv2d | nn.ConvTranspose2d) -> str:
    """Why `ops.norm_act_conv` does not compute this convolution, or ""."""
    if module.groups != 1:
        return "it has groups"
    if set(module.dilation) != {1}:
        return "it is dilated"
    if isinstance(module.padding, str):
        return f"its padding is {module.padding!r}"
    return "its strides or paddings differ" if _uneven(module) else ""


def _uneven(module: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return len(set(module.stride)) > 1 or len(set(module.padding)) > 1


def _convolution(
    module: nn.Conv2d | nn.ConvTranspose2d, padding: str, transposed: bool, output_padding: int
) -> Convolution:
    pad = module.padding[0]
    return Convolution(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride[0],
        padding if pad else "none",
        pad,
        transposed,
        output_padding,
    )


def _read_norm(module: nn.InstanceNorm2d | nn.BatchNorm2d) -> Layer:
    instance = type_before_parametrizations(module) is nn.InstanceNorm2d
    if instance and module.track_running_stats:
        return Layer(module, "ordinary", (), "it keeps running statistics")
    kind = "instance" if instance else "batch"
    return Layer(module, "norm", (kind, module.num_features, module.affine))


def _read_act(module: nn.Module) -> Layer:
    return Layer(module, "act")


def _read_skip(module: nn.Module) -> Layer:
    return Layer(module, "skip")


_PADS = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate", nn.ZeroPad2d: "zero"}
_READERS: dict[type, Callable[[nn.Module], Layer]] = {
    **dict.fromkeys(_PADS, _read_pad),
    nn.Conv2d: _read_conv,
    nn.ConvTranspose2d: _read_transposed,
    **dict.fromkeys((nn.InstanceNorm2d, nn.BatchNorm2d), _read_norm),
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.Tanh), _read_act),
    **dict.fromkeys((nn.Dropout, nn.Dropout2d, nn.Identity), _read_skip),
}
# The attributes that the readers look at; a parametrised layer is of a type of its own.
_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
_CONVOLUTION += ("groups", "padding_mode", "output_padding")
_NORM = ("num_features", "affine", "track_running_stats")
_ALL_FACTS = (*_CONVOLUTION, *_NORM)
_FACTS: dict[type, tuple[str, ...]] = {
    **dict.fromkeys((nn.Conv2d, nn.ConvTranspose2d), _CONVOLUTION),
    **dict.fromkeys((nn.InstanceNorm2d, nn.BatchNorm2d), _NORM),
    **dict.fromkeys(_PADS, ("padding",)),
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Dropout, nn.Dropout2d, nn.Identity), ()),
}
