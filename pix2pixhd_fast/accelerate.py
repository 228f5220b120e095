"""Makes somebody else's model run fused: its sequences and residual blocks, in place."""

import copy
import inspect
import logging
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pix2pixhd_fast._backend import backend
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.nn.layers import hooked
from pix2pixhd_fast.nn.residual import ResidualBlock
from pix2pixhd_fast.nn.sequence import Sequence

# What the trial of a block runs on: room for wide paddings; 1024 channels take half a second.
TRIAL_SIDE = 16
# Two float32 orders of the same few sums; a forward that computes something else is far off.
TRIAL_TOLERANCE = 1e-5


class Finding(NamedTuple):
    """What `accelerate` does about one module: `name` in the model ("" is the model itself).

    `kind`: its class. `action`: "sequence" or "residual block" for what runs fused from then on,
    "left" for what stays as it is, for `reason`.
    """

    name: str
    kind: str
    action: str
    reason: str = ""

    def __str__(self) -> str:
        what = "left as it is" if self.action == "left" else f"now a fused {self.action}"
        because = f": {self.reason}" if self.reason else ""
        return f"{self.name or '(the model)'} [{self.kind}] {what}{because}"


def accelerate(module: nn.Module, verbose: bool = False) -> nn.Module:
    """Let `module` run on the fused core, in place; returns it.

    Every plain `nn.Sequential` becomes a `Sequence`, whose layers run as fused steps. Every block
    that has one child, an `nn.Sequential` named `conv_block`, and computes x + conv_block(x)
    becomes a residual block; a trial on a copy, with random weights and in both modes, shows that
    it does. Module objects, parameters, buffers, hooks, state_dict keys and results stay the same,
    a block stays an instance of its class; under `backend("eager")` the layers run one by one.

    Nothing is refused silently: `verbose` prints what became of each module and why, the log
    "pix2pixhd_fast" has it at level INFO, and `examine(module)` returns it beforehand without any
    change. `describe_plan(module)` shows the steps afterwards. A second call changes nothing.
    Raises `InputError` for what is no module.
    """
    findings = examine(module)
    modules = dict(module.named_modules())
    for finding in findings:
        found = modules[finding.name]
        if finding.action == "sequence":
            found.__class__ = Sequence
        elif finding.action == "residual block":
            found.__class__ = _fused(type(found))
        logging.getLogger("pix2pixhd_fast").info("pix2pixhd_fast: %s", finding)
        if verbose:
            print(finding)
    return module


def examine(module: nn.Module) -> list[Finding]:
    """What `accelerate` would do, one entry for each module that matters; changes nothing.

    These are the sequences, the modules with a child `conv_block`, and those whose own forward
    calls convolutions or norms. What runs fused already is not listed.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"module must be an nn.Module, got {type(module).__name__}")
    findings = (_finding(name, found) for name, found in module.named_modules())
    return [finding for finding in findings if finding is not None]


def _finding(name: str, module: nn.Module) -> Finding | None:
    kind = type(module).__name__
    if isinstance(module, Sequence | ResidualBlock):
        return None
    if isinstance(module, nn.Sequential):
        reason = _unfit_sequence(module)
        return Finding(name, kind, "left" if reason else "sequence", reason)
    if isinstance(getattr(module, "conv_block", None), nn.Sequential):
        reason = _unfit_block(module)
        return Finding(name, kind, "left" if reason else "residual block", reason)
    called = [key for key, child in module.named_children() if isinstance(child, _CALLED)]
    if called and not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return Finding(name, kind, "left", f"its forward calls {', '.join(called)} one by one")
    return None


_CALLED = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.modules.batchnorm._NormBase,
)


def _unfit_sequence(module: nn.Sequential) -> str:
    """Why it cannot become a `Sequence`, or ""."""
    if type(module) is not nn.Sequential:
        return "a subclass of nn.Sequential may compute something else"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    taken = [key for key in module._modules if hasattr(Sequence, key)]
    return f"a child has the name {taken[0]!r} of a method of Sequence" if taken else ""


def _unfit_block(module: nn.Module) -> str:
    """Why it cannot become a residual block, or ""."""
    others = [key for key in (*module._modules, *module._parameters) if key != "conv_block"]
    others += list(module._buffers)
    if others:
        return f"besides conv_block it has {', '.join(others)}"
    branch = module.conv_block
    if type(branch) is not Sequence and _unfit_sequence(branch):
        return f"its conv_block: {_unfit_sequence(branch)}"
    reason = hooked(module) or hooked(branch)
    if reason:
        return f"{reason}, itself or its conv_block"
    if len(inspect.signature(module.forward).parameters) != 1:
        return "its forward takes more than one argument"
    return _failed_trial(module)


def _failed_trial(module: nn.Module) -> str:
    """Run a copy of the block and x + conv_block(x) on random numbers; why they differ, or ""."""
    conv = next(
        (m for m in module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)), None
    )
    tensors = (*module.parameters(), *module.buffers())
    if conv is None:
        return "its conv_block has no convolution"
    if any(is_lazy(t) or t.is_meta for t in tensors):
        return "its weights have no values yet, so that nothing can be tried"
    try:
        trial = copy.deepcopy(module).cpu().float()
        x = torch.empty(2, conv.in_channels, TRIAL_SIDE, TRIAL_SIDE)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), backend("eager"):
            torch.default_generator.manual_seed(0)
            _randomise(trial)
            x.normal_()
            apart = max(_difference(trial.train(mode), x) for mode in (False, True))
    except Exception as error:  # somebody else's code can raise anything
        return f"a trial of it failed: {type(error).__name__}: {error}".splitlines()[0]
    # Not `apart > ...`: that is false for a NaN.
    same = apart <= TRIAL_TOLERANCE
    return (
        "" if same else f"it is not x + conv_block(x): relative difference {apart:.2g} in a trial"
    )


def _difference(block: nn.Module, x: Tensor) -> float:
    """Relative L2 distance of block(x) from x + conv_block(x), with the same random draws."""
    results = []
    for whole in (True, False):
        torch.default_generator.manual_seed(1)
        run = copy.deepcopy(block)  # a run may leave traces: running statistics, power iterations
        results.append(run(x.clone()) if whole else x + run.conv_block(x.clone()))
    actual, expected = results
    if not isinstance(actual, Tensor) or actual.shape != expected.shape:
        return float("inf")
    return (torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected)).item()


def _randomise(trial: nn.Module) -> None:
    """Weights of which none is zero: a block that scales a zero branch would pass any trial."""
    for tensor in (*trial.parameters(), *trial.buffers()):
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1.0)
            if tensor.dim() > 1:
                tensor.sub_(0.55)


@cache
def _fused(kind: type[nn.Module]) -> type[nn.Module]:
    """`kind` with the forward of `ResidualBlock`; pickled by `kind` alone."""

    def reduce(block: nn.Module, protocol: int) -> tuple:
        return _restored, (kind,), block.__dict__.copy()

    members = {"__reduce_ex__": reduce, "__module__": kind.__module__}
    return type(kind.__name__, (ResidualBlock, kind), members)


def _restored(kind: type[nn.Module]) -> nn.Module:
    fused = _fused(kind)
    return fused.__new__(fused)
