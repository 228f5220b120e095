"""The plan of a network in words."""

from torch import nn

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.nn.plan import Pair
from pix2pixhd_fast.nn.residual import ResidualBlock
from pix2pixhd_fast.nn.sequence import Sequence
from pix2pixhd_fast.nn.steps import ChainedStep, ConvStep, SkipStep, Step, activation


def describe_plan(net: nn.Module) -> str:
    """A table of the steps of every sequence of `net`, as they would run fused now.

    One line for each step: its number, the children that it stands for, what it does in order
    ("reflect 3 | conv 7x7 36->32 | statistics"), and behind "then" what is left to the step that
    reads it. "label_conv2d of a SemanticMap" stands where a step reads the input of a network: what
    runs where that is a label map; an activation without a norm before it is then done, not left.
    Children that run as ordinary modules say why. The branch of a residual block that runs as one
    op is part of the block's line and not listed again. Raises `InputError` for what is no module.
    """
    if not isinstance(net, nn.Module):
        raise InputError(f"net must be an nn.Module, got {type(net).__name__}")
    inside: set[nn.Module] = set()
    readers = _readers(net)
    parts = []
    for name, module in net.named_modules():
        if isinstance(module, ResidualBlock):
            pair = module.pair()
            inside.update([module.conv_block] if pair else [])
            if not _owned(net, module):
                parts.append(f"{_title(name, module)}\n  {_block(module)}")
        elif isinstance(module, Sequence) and module not in inside:
            rows = _rows(module, module in readers)
            parts.append("\n".join([_title(name, module), *rows]))
    return "\n\n".join(parts) or "no sequence: every module runs as it is (see accelerate)"


def _readers(net: nn.Module) -> set[nn.Module]:
    """The sequences of `net` that read the input of a network."""
    networks = [m for m in net.modules() if callable(getattr(m, "readers", None))]
    return {sequence for network in networks for sequence in network.readers()}


def _owned(net: nn.Module, block: ResidualBlock) -> bool:
    """Whether a sequence of `net` has a line for this block."""
    return any(block in list(m) for m in net.modules() if isinstance(m, Sequence))


def _title(name: str, module: nn.Module) -> str:
    return f"{name or '(the module)'} [{type(module).__name__}]"


def _rows(sequence: Sequence, reads_input: bool) -> list[str]:
    steps = sequence.plan().steps
    if not steps:
        return ["  nothing"]
    cells = [[str(n), _children(step), _step(step)] for n, step in enumerate(steps)]
    if reads_input and isinstance(steps[0], ConvStep) and steps[0].takes_labels:
        cells[0][2] += " (label_conv2d of a SemanticMap)"
    cells.insert(0, ["step", "layers", "what runs"])
    widths = [max(len(row[column]) for row in cells) for column in (0, 1)]
    return [f"  {a:>{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in cells]


def _children(step: Step) -> str:
    last = step.index + len(step.layers) - 1
    return str(step.index) if last == step.index else f"{step.index}-{last}"


def _step(step: Step) -> str:
    if isinstance(step, ConvStep):
        return _conv(step)
    name = type(step.layers[0]).__name__
    if isinstance(step, SkipStep):
        return f"{name}: nothing to do" if step.idle else f"ordinary {name}: it drops now"
    if isinstance(step, ChainedStep):
        module = step.layers[0]
        return _block(module) if isinstance(module, ResidualBlock) else f"{name}: see there"
    return f"ordinary {name}: {step.reason}"


def _conv(step: ConvStep) -> str:
    shape = step.shape
    stride = f" stride {shape.stride}" if shape.stride > 1 else ""
    size = "x".join(str(side) for side in shape.kernel)
    kind = "transposed conv" if shape.transposed else "conv"
    does = [f"{kind} {size} {shape.inputs}->{shape.outputs}{stride}"]
    if step.pad:
        does.insert(0, f"{step.padding} {step.pad}")
    if step.needs_statistics:
        does.append("statistics")
    behind = [f"{step.norm_facts[0]} norm"] if step.norm is not None else []
    behind += [activation(step.act)[0]] if step.act is not None else []
    return " | ".join(does) + (f", then {', '.join(behind)}" if behind else "")


def _block(block: ResidualBlock) -> str:
    pair = block.pair()
    if pair is None:
        return "residual block: its conv_block (see there) | add"
    return f"residual block: {_both(pair)} | add"


def _both(pair: Pair) -> str:
    steps = (_conv(step) for step in (pair.first, pair.second))
    return " | ".join(step.replace(", then ", " | ").replace(", ", " | ") for step in steps)
