"""Follows a step op by op and storage by storage, on fake tensors or on real ones."""

import weakref
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from pix2pixhd_fast._launches import attributed, described_ops, launches_of
from pix2pixhd_fast.profile.counting import Cost, costs_of, inside_of, tensors_in
from pix2pixhd_fast.semantic import SemanticMap

KINDS = ("weights", "gradients", "optimiser", "inputs", "activations", "workspace")
# Instances that a picture is taken to have where their number decides about sizes: E alone asks.
ASSUMED_INSTANCES = 100


@dataclass(slots=True)
class Block:
    """A storage: bytes, the module that made it, its kind ("" until it is known), when it lived.

    `born` and `died` count changes of the memory since the start of the step, -1 for earlier;
    `died` is None for what outlives the step.
    """

    bytes: int
    path: str
    phase: str
    kind: str
    born: int
    died: int | None = None


@dataclass(frozen=True, slots=True)
class TracedLaunch:
    """A kernel, or an op that is no view: name, module ("" outside of all), phase, cost."""

    op: str
    path: str
    phase: str
    cost: Cost


@dataclass
class Recording:
    """A step: its ops in order, and all storages that were there at some time of it.

    `changes` are bytes, one per storage that came (positive) or went, after `start` bytes;
    `launch_at` gives for each the number of ops before it. `forward_end` is the number of changes
    before the first op of a backward (all of them, where there is none).
    """

    launches: list[TracedLaunch] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)
    launch_at: list[int] = field(default_factory=list)
    start: int = 0
    forward_end: int | None = None


class Tracer(TorchDispatchMode):
    """Records what runs under it; `recording` is the result.

    Modules of `model` are told apart by name. An op of a backward belongs to the module whose
    forward op it differentiates: autograd numbers ops in order, and hooks note the number at which
    each module starts and ends. A backward without a graph says it itself (`backward_of`). A
    storage belongs to the op that made it.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.recording = Recording()
        self._names = {id(module): name for name, module in model.named_modules()}
        self._owners = {id(p): name.rpartition(".")[0] for name, p in model.named_parameters()}
        self._live: dict[int, tuple[weakref.ref, Block]] = {}
        self._stack = [""]
        self._numbers, self._paths = [0], [""]
        self._phase = "inputs"
        self._hooks = ExitStack()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.add(tensor, "weights", name.rpartition(".")[0])

    def __enter__(self) -> "Tracer":
        before = register_module_forward_pre_hook(self._module_starts)
        after = register_module_forward_hook(self._module_ends, always_call=True)
        self._hooks.callback(before.remove)
        self._hooks.callback(after.remove)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self._hooks.close()
        super().__exit__(*error)

    def add(self, tensor: Tensor, kind: str, path: str = "") -> None:
        """Say what a storage is, which may be there already."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._live:
            self._came(tensor)
        block = self._live[storage._cdata][1]
        block.kind = kind
        block.path = path or block.path

    def restart(self) -> None:
        """Begin a step: forget what was, but for the storages that are still there."""
        blocks = [block for _, block in self._live.values()]
        for block in blocks:
            block.born = -1
        self.recording = Recording(blocks=blocks, start=sum(b.bytes for b in blocks))
        self._numbers, self._paths = [0], [""]
        self._phase = "inputs"

    def stop(self) -> None:
        """The step is over: what is released from now on does not count."""
        self._live.clear()

    @contextmanager
    def optimiser(self) -> Iterator[None]:
        """Ops inside the block are those of an optimiser."""
        before, self._phase = self._phase, "optimiser"
        try:
            yield
        finally:
            self._phase = before

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inside = inside_of(op)
        if inside is not None and not self._describes(op, args, kwargs):
            with self._looking_inside():
                return inside(*args, **kwargs)
        out = _run(op, args, kwargs)
        phase, path = self._place()
        if phase == "backward" and self.recording.forward_end is None:
            self.recording.forward_end = len(self.recording.changes)
        costs = costs_of(op, args, kwargs, out)
        launches = [TracedLaunch(name, path, phase, cost) for name, cost in costs]
        self.recording.launches += launches[:1]
        # An op asks for its results before it launches anything.
        for tensor in tensors_in(out):
            if tensor.untyped_storage()._cdata not in self._live:
                self._came(tensor, path, phase)
        for launch in launches:
            if launch is not launches[0]:
                self.recording.launches.append(launch)
            self._pass_by(launch)
        return out

    @contextmanager
    def _looking_inside(self) -> Iterator[None]:
        """Inside the block, what an op is composed of is recorded too."""
        super().__enter__()
        try:
            yield
        finally:
            super().__exit__(None, None, None)

    @staticmethod
    def _describes(op: torch._ops.OpOverload, args: tuple, kwargs: dict) -> bool:
        """Whether the op says what this call launches."""
        if op.namespace != "pix2pixhd_fast" or op._opname not in described_ops():
            return False
        return launches_of(op, args, kwargs, _run(op, args, kwargs)) is not None

    def _place(self) -> tuple[str, str]:
        """Phase and module of the op that runs now."""
        if torch._C._current_graph_task_id() == -1:
            module, phase = attributed() or (None, self._phase)
            return phase, self._names.get(id(module), self._stack[-1])
        node = torch._C._current_autograd_node()
        if node is None:
            return "backward", ""
        variable = getattr(node, "variable", None)  # AccumulateGrad
        if variable is not None:
            return "backward", self._owners.get(id(variable), "")
        return "backward", self._paths[bisect_right(self._numbers, node._sequence_nr()) - 1]

    def _came(self, tensor: Tensor, path: str = "", phase: str = "") -> None:
        storage = tensor.untyped_storage()
        key, recording = storage._cdata, self.recording
        block = Block(storage.nbytes(), path, phase, "", len(recording.changes))
        recording.blocks.append(block)
        self._change(block.bytes)
        self._live[key] = weakref.ref(storage, lambda _: self._went(key)), block

    def _pass_by(self, launch: TracedLaunch) -> None:
        """The scratch of a launch comes and goes with it."""
        if launch.cost.scratch:
            born = len(self.recording.changes)
            block = Block(
                launch.cost.scratch, launch.path, launch.phase, "workspace", born, born + 1
            )
            self.recording.blocks.append(block)
            self._change(block.bytes)
            self._change(-block.bytes)

    def _went(self, key: int) -> None:
        _, block = self._live.pop(key)
        block.died = len(self.recording.changes)
        self._change(-block.bytes)

    def _change(self, bytes: int) -> None:
        self.recording.changes.append(bytes)
        self.recording.launch_at.append(len(self.recording.launches))

    def _module_starts(self, module: nn.Module, args: tuple) -> None:
        if len(self._stack) == 1:
            self._note_inputs(args)
        self._enter(self._names.get(id(module), self._stack[-1]))

    def _note_inputs(self, args: tuple) -> None:
        """What a network is given and no network made, is input."""
        for part in args:
            named = (part.labels, part.edges, part.dense) if isinstance(part, SemanticMap) else part
            for tensor in tensors_in(named):
                _, block = self._live.get(tensor.untyped_storage()._cdata, (None, None))
                if block is not None and not (block.kind or block.path):
                    block.kind = "inputs"

    def _module_ends(self, module: nn.Module, args: object, out: object) -> None:
        self._stack.pop()
        self._note()

    def _enter(self, path: str) -> None:
        if self._phase == "inputs":
            self._phase = "forward"
        self._stack.append(path)
        self._note()

    def _note(self) -> None:
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._paths.append(self._stack[-1])


def _run(op: torch._ops.OpOverload, args: tuple, kwargs: dict) -> object:
    """Run the op; where fake tensors have no answer, because it depends on values, make one up."""
    if op is torch.ops.aten._unique2.default:
        values = args[0].new_empty(ASSUMED_INSTANCES)
        index = torch.empty_like(args[0], dtype=torch.int64)
        return values, index, torch.empty_like(values, dtype=torch.int64)
    try:
        return op(*args, **kwargs)
    except DataDependentOutputException:
        if op is torch.ops.aten._local_scalar_dense.default:
            return 0.0
        raise
