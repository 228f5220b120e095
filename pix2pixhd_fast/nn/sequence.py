"""The sequence class every network is built of."""

from functools import partial

import torch
from torch import Tensor, nn

from pix2pixhd_fast._backend import current_backend
from pix2pixhd_fast.nn.layers import fingerprint, hooked
from pix2pixhd_fast.nn.pending import (
    Chained,
    Pending,
    Scene,
    as_pending,
    in_format_of,
    materialise,
    scene_of,
)
from pix2pixhd_fast.nn.plan import Plan, compile_plan
from pix2pixhd_fast.nn.recompute import run_again, segments
from pix2pixhd_fast.nn.steps import ConvStep, Step
from pix2pixhd_fast.semantic import SemanticMap


class Sequence(nn.Sequential, Chained):
    """An `nn.Sequential` that a backend may run as a whole.

    Children, state_dict keys, indexing and printing are those of `nn.Sequential`. Under
    `backend("eager")` the children run one by one: pad, convolution, norm and activation are the
    ordinary PyTorch modules that published checkpoints expect. Under `backend("fused")` its plan
    runs: a call returns a tensor in the memory format of its input, `run` one in channels_last.
    Networks call a `Sequence` as a whole, or chain several by `run`, and never call its children
    one by one.

    A `SemanticMap` instead of a tensor gives what its channels would give: a convolution that
    reads it first reads the labels (`ops.label_conv2d`), anything else the channels.
    """

    # The fingerprints of the children, and the plan that was made of them.
    _plan: tuple[tuple, Plan] | None = None

    def forward(self, input: Tensor | SemanticMap) -> Tensor:
        input = scene_of(input, self)
        if current_backend() == "eager":
            return super().forward(input)
        return in_format_of(input, materialise(self._steps([as_pending(input)], "none")))

    def run(self, input: Tensor | Scene | Pending, border: str = "none") -> Pending:
        """As in `Chained`; under "eager", or where it has hooks, an ordinary call."""
        if not self.runs_plan():
            return Pending(self(materialise(input)))
        held = [as_pending(input)]
        del input  # nobody else may hold it: it goes when the first step is done
        return self._steps(held, border)

    def border(self) -> str:
        steps = self.plan().steps if self.runs_plan() else ()
        return steps[0].border() if steps else "none"

    def replaced(self) -> bool:
        return type(self).forward is not Sequence.forward

    def plan(self) -> Plan:
        """The plan of the children as they are now: kept until they change."""
        if torch.compiler.is_compiling():
            return compile_plan(self)
        prints = tuple(map(fingerprint, self._modules.values()))
        if self._plan is None or self._plan[0] != prints:
            self._plan = prints, compile_plan(self)
        return self._plan[1]

    def _steps(self, held: list[Pending], border: str) -> Pending:
        """All steps in order on what `held` gives up."""
        steps = self.plan().steps
        borders = [*(step.border() for step in steps[1:]), border]
        start = 0
        for part, again in segments(steps):
            run = partial(_run, part, borders[start : start + len(part)])
            held.append(run_again(self, run, held.pop()) if again else run(held))
            start += len(part)
        return held.pop()

    def runs_plan(self) -> bool:
        """Whether `run` goes by the plan, as no call of the module or of its children."""
        return current_backend() != "eager" and not (hooked(self) or self.replaced())

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_plan"}


def dead_biases(net: nn.Module) -> list[nn.Parameter]:
    """The trained biases in `net` that a norm behind them takes away: their gradient is zero."""
    steps = [
        step
        for module in net.modules()
        if isinstance(module, Sequence) and module.runs_plan()
        for step in module.plan().steps
        if isinstance(step, ConvStep)
    ]
    alive = {step.conv for step in steps if not step.has_dead_bias}
    biases = [step.conv.bias for step in steps if step.conv not in alive]
    return [b for b in biases if isinstance(b, nn.Parameter) and b.requires_grad]


def _run(steps: tuple[Step, ...], borders: list[str], held: list[Pending]) -> Pending:
    p = held.pop()
    for step, border in zip(steps, borders, strict=True):
        p = step.run(p, border)
    return p
