"""Compiles the children of a sequence to fused steps."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from pix2pixhd_fast.nn.layers import Layer, read_layer
from pix2pixhd_fast.nn.steps import ChainedStep, ConvStep, OrdinaryStep, SkipStep, Step


class Pair(NamedTuple):
    """The two convolutions of a branch that `ops.residual_block` computes, if `skips` are idle."""

    first: ConvStep
    second: ConvStep
    skips: tuple[SkipStep, ...]


class Plan(NamedTuple):
    """`steps`, and the `pair` that they are where they are the branch of a residual block.

    It holds modules and facts about them, no tensors, and serves as long as their fingerprints
    (`layers.fingerprint`) are the same.
    """

    steps: tuple[Step, ...]
    pair: Pair | None


def compile_plan(children: Iterable[nn.Module]) -> Plan:
    """The plan of the children, which run in this order: as few steps as possible.

    A convolution takes the padding in front of it, the norm behind it and the activation behind
    that into its step; what has no fused step is an `OrdinaryStep`, which says why.
    """
    layers = tuple(read_layer(child) for child in children)
    steps: list[Step] = []
    index = 0
    while index < len(layers):
        step = _step_at(layers, index)
        steps.append(step)
        index += len(step.layers)
    return Plan(tuple(steps), _pair(steps))


def _pair(steps: list[Step]) -> Pair | None:
    """The steps as conv-norm-act-conv-norm of `ops.residual_block`; None where they are not."""
    skips = tuple(step for step in steps if isinstance(step, SkipStep))
    convs = [step for step in steps if isinstance(step, ConvStep)]
    if len(convs) != 2 or len(convs) + len(skips) != len(steps):
        return None
    first, second = convs
    same = first.shape.inputs == first.shape.outputs == second.shape.inputs == second.shape.outputs
    if not same or first.padding != second.padding or second.act is not None:
        return None
    return Pair(first, second, skips) if _plain(first) and _plain(second) else None


def _plain(step: ConvStep) -> bool:
    """3x3, stride 1, padded by 1, instance norm without gamma and beta."""
    shape = step.shape
    return (
        (shape.kernel, shape.stride, shape.transposed, step.pad) == ((3, 3), 1, False, 1)
        and step.norm_facts[:1] == ("instance",)
        and not step.norm_facts[2]
    )


def _step_at(layers: tuple[Layer, ...], index: int) -> Step:
    """The longest step that starts with child `index`."""
    layer = layers[index]
    alone = (layer.module,)
    if layer.role == "chained":
        return ChainedStep(index, alone)
    if layer.role == "skip":
        return SkipStep(index, alone)
    if layer.role == "conv":
        return _conv_step(layers, index, None)
    if layer.role == "pad":
        reason = _apart(layer, layers[index + 1 : index + 2])
        return OrdinaryStep(index, alone, reason) if reason else _conv_step(layers, index, layer)
    reasons = {"norm": "no convolution that fits is right in front of it"}
    reasons["act"] = "no convolution or norm of a fused step is right in front of it"
    return OrdinaryStep(index, alone, layer.reason or reasons[layer.role])


def _apart(pad: Layer, behind: tuple[Layer, ...]) -> str:
    """Why a padding is no part of the step of the convolution behind it, or ""."""
    if not behind or behind[0].role != "conv":
        return "no convolution is right behind it"
    if behind[0].facts.transposed:
        return "the convolution behind it is transposed"
    return "the convolution behind it pads as well" if behind[0].facts.pad else ""


def _conv_step(layers: tuple[Layer, ...], index: int, pad: Layer | None) -> ConvStep:
    start = index + (pad is not None)
    conv = layers[start]
    end = start + 1
    norm = layers[end] if end < len(layers) and layers[end].role == "norm" else None
    if norm is not None and norm.facts[1] != conv.facts.outputs:
        norm = None  # PyTorch complains when it runs
    end += norm is not None
    act = layers[end] if end < len(layers) and layers[end].role == "act" else None
    end += act is not None
    return ConvStep(
        index,
        tuple(layer.module for layer in layers[index:end]),
        conv.module,
        conv.facts,
        *(pad.facts if pad is not None else (conv.facts.padding, conv.facts.pad)),
        norm=norm.module if norm is not None else None,
        norm_facts=norm.facts if norm is not None else (),
        act=act.module if act is not None else None,
    )
