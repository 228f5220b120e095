"""The steps of a plan: each takes what is pending and leaves its own last work pending."""

from typing import NamedTuple

from torch import Tensor, nn

from pix2pixhd_fast.nn.layers import Convolution
from pix2pixhd_fast.nn.norms import norm_of, statistics_eps
from pix2pixhd_fast.nn.pending import (
    Chained,
    Pending,
    Scene,
    channels_last,
    fits_ops,
    materialise,
)
from pix2pixhd_fast.ops.label_conv2d import keeps_sign, label_conv2d
from pix2pixhd_fast.ops.norm_act_conv import Conv, norm_act_conv
from pix2pixhd_fast.ops.norm_act_pad_kernels import inner

NAMES = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.Tanh: "tanh"}


class ConvStep(NamedTuple):
    """Padding, convolution, norm and activation; the last two stay pending.

    `padding` and `pad` are those of `ops.norm_act_conv`; `layers` are the children that it stands
    for, in order, which run one by one where the tensor is none for the ops.
    """

    index: int
    layers: tuple[nn.Module, ...]
    conv: nn.Conv2d | nn.ConvTranspose2d
    shape: Convolution
    padding: str
    pad: int
    norm: nn.Module | None = None
    norm_facts: tuple = ()
    act: nn.Module | None = None

    def run(self, p: Pending, border: str) -> Pending:
        labels = isinstance(p.x, Scene) and self.takes_labels and 0 not in p.x.map.shape
        if not labels and not fits_ops(p.x):
            return run_ordinary(self.layers, p)
        if not labels and p.x.requires_grad and p.done and not p.border:
            # without a gradient the op keeps x itself and converts it anew
            p = p._replace(x=channels_last(p.x))
        return self.compute(p, self.convolution())

    def compute(self, p: Pending, conv: Conv) -> Pending:
        """The ops on p, a label map or a tensor that they know, by the weights of `conv`."""
        if isinstance(p.x, Scene):
            return self._of_labels(p.x, conv)
        y, mean, rstd = norm_act_conv(
            inner(p.x, p.border),
            p.norm,
            conv,
            p.act,
            p.slope,
            self.padding,
            self.pad,
            statistics_eps(self.norm),
        )
        return self._left(y, mean, rstd)

    def convolution(self) -> Conv:
        """The convolution, by its parameters as they are now."""
        return Conv(
            self.conv.weight,
            self.conv.bias,
            self.shape.stride,
            self.shape.transposed,
            self.shape.output_padding,
            self.has_dead_bias,
        )

    def border(self) -> str:
        return "none"

    @property
    def takes_labels(self) -> bool:
        """Whether `ops.label_conv2d` computes this convolution of a label map."""
        return not self.shape.transposed

    @property
    def needs_statistics(self) -> bool:
        """Whether a norm follows that normalises by what the convolution writes now."""
        return statistics_eps(self.norm) is not None

    @property
    def has_dead_bias(self) -> bool:
        """Whether the norm takes away again what a bias would add (`ops.norm_act_conv.Conv`)."""
        return isinstance(self.norm, nn.InstanceNorm2d)

    def _of_labels(self, scene: Scene, conv: Conv) -> Pending:
        """Without a norm it writes act(y): each of its readers would have to activate y again."""
        act, slope = activation(self.act)
        writes_act = self.norm is None and keeps_sign(act, slope)
        y, mean, rstd = label_conv2d(
            scene.map,
            conv.weight,
            conv.bias,
            conv.stride,
            self.padding,
            self.pad,
            scene.level,
            conv.dead_bias,
            statistics_eps(self.norm),
            act if writes_act else "none",
            slope,
        )
        return Pending(y, kept=act != "none") if writes_act else self._left(y, mean, rstd)

    def _left(self, y: Tensor, mean: Tensor, rstd: Tensor) -> Pending:
        """What is pending behind the convolution that wrote y."""
        return Pending(y, norm_of(self.norm, y, mean, rstd), *activation(self.act))


class SkipStep(NamedTuple):
    """Dropout that drops nothing now, or a layer that never does anything."""

    index: int
    layers: tuple[nn.Module, ...]

    @property
    def idle(self) -> bool:
        module = self.layers[0]
        return isinstance(module, nn.Identity) or not module.training or module.p == 0

    def run(self, p: Pending, border: str) -> Pending:
        return p if self.idle else run_ordinary(self.layers, p)

    def border(self) -> str:
        return "none"


class ChainedStep(NamedTuple):
    """A sequence or a residual block inside a sequence: it runs on what is pending by itself."""

    index: int
    layers: tuple[Chained, ...]

    def run(self, p: Pending, border: str) -> Pending:
        return self.layers[0].run(p, border)

    def border(self) -> str:
        return self.layers[0].border()


class OrdinaryStep(NamedTuple):
    """A child that runs as it is, on the materialised tensor, for a `reason`."""

    index: int
    layers: tuple[nn.Module, ...]
    reason: str

    def run(self, p: Pending, border: str) -> Pending:
        return run_ordinary(self.layers, p)

    def border(self) -> str:
        return "none"


Step = ConvStep | SkipStep | ChainedStep | OrdinaryStep


def activation(module: nn.Module | None) -> tuple[str, float]:
    """`act` and `slope` of the ops."""
    if module is None:
        return "none", 0.0
    slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0
    return next(name for kind, name in NAMES.items() if isinstance(module, kind)), slope


def run_ordinary(layers: tuple[nn.Module, ...], p: Pending) -> Pending:
    """The layers as they are, one by one, on the materialised tensor."""
    x = materialise(p)
    if p.kept and x.requires_grad and _may_write(layers[0]):
        x = x.clone()
    for layer in layers:
        x = layer(x)
        if _misled(layer) and isinstance(x, Tensor) and x.requires_grad:
            x.register_hook(Tensor.contiguous)
    return Pending(x)


def _misled(layer: nn.Module) -> bool:
    """Whether it must not be handed a gradient in the channels_last format: `channels_last`."""
    return any(isinstance(m, nn.modules.instancenorm._InstanceNorm) for m in layer.modules())


def _may_write(layer: nn.Module) -> bool:
    """Whether a layer might change its input in place: it says so, or is none of PyTorch's."""
    return any(
        getattr(m, "inplace", False) or not type(m).__module__.startswith("torch.nn.")
        for m in layer.modules()
    )
