"""Figures of a recorded step: in total, per module, at the peak."""

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np

from pix2pixhd_fast.profile.cards import CARDS, modelled_seconds
from pix2pixhd_fast.profile.subject import Subject
from pix2pixhd_fast.profile.tracer import KINDS, Block, Recording, TracedLaunch

STEADY = ("weights", "gradients", "optimiser")
_TITLES = {"criterionVGG": "VGG", "criterionGAN": "losses"}


@dataclass(frozen=True)
class ModuleFigures:
    """One module: bytes of weights, the most that its storages took together (`peak`), what they
    took at the peak of the step; ops, of which `allocations` only ask for memory; bytes and
    additions and multiplications as in `Cost`, forward and backward.
    """

    name: str
    weights: int
    peak: int
    at_peak: int
    launches: int
    allocations: int
    traffic: int
    touched: int
    flops_forward: int
    flops_backward: int


@dataclass(frozen=True)
class Peak:
    """When the step takes most: bytes, the op, what is there by kind and the largest modules'."""

    bytes: int
    op: str
    module: str
    phase: str
    launch: int
    kinds: dict[str, int]
    largest: list[tuple[str, str, int]]


@dataclass(frozen=True)
class Summary:
    """A step: `steady` are bytes by kind that stay from step to step; `inputs` the most bytes that
    what the networks read took together; `seconds` are modelled, by card.
    """

    subject: str
    peak: Peak
    steady: dict[str, int]
    inputs: int
    total: ModuleFigures
    modules: list[ModuleFigures]
    seconds: dict[str, float]

    def as_dict(self) -> dict:
        """The same as lists, dicts, strings and numbers."""
        return asdict(self)


def summarise(subject: Subject, recording: Recording, depth: int = 1, tf32: bool = True) -> Summary:
    """Sum up a recording; modules are told apart by the first `depth` parts of their names.

    What belongs to no network is "inputs" (encoding of labels and instances), "losses" (with the
    glue between networks) and "optimiser". `tf32`: convolutions of float32 run on tensor cores, as
    PyTorch has it by default.
    """
    by_module: dict[str, tuple[list[TracedLaunch], list[Block]]] = {}
    for index, items in enumerate((recording.launches, recording.blocks)):
        for item in items:
            name = module_name(item, depth)
            by_module.setdefault(name, ([], []))[index].append(item)
    at = peak_change(recording)
    modules = [
        _figures(name, launches, blocks, len(recording.changes), at)
        for name, (launches, blocks) in by_module.items()
    ]
    everything = recording.launches, recording.blocks
    return Summary(
        subject.name,
        _peak(recording, at, depth),
        {
            k: n
            for k, n in kinds_at(recording.blocks, len(recording.changes)).items()
            if k in STEADY
        },
        _peak_of([b for b in recording.blocks if b.kind == "inputs"], len(recording.changes)),
        _figures("total", *everything, len(recording.changes), at),
        sorted(modules, key=lambda m: -m.at_peak),
        {card.name: modelled_seconds(recording.launches, card, tf32) for card in CARDS},
    )


def module_name(item: TracedLaunch | Block, depth: int) -> str:
    """The group of an op or a storage."""
    if not item.path:
        named = {"inputs": "inputs", "optimiser": "optimiser"}
        kind = item.kind if isinstance(item, Block) else ""
        return named.get(item.phase) or named.get(kind, "losses")
    first, *rest = item.path.split(".")
    return ".".join([_TITLES.get(first, first), *rest][:depth])


def live_bytes(recording: Recording) -> np.ndarray:
    """Bytes after each change of memory, int64 [changes]."""
    return recording.start + np.cumsum(np.array(recording.changes, dtype=np.int64))


def peak_change(recording: Recording) -> int:
    """The change that leads to the peak; the first of equals."""
    return int(live_bytes(recording).argmax())


def kinds_at(blocks: list[Block], change: int) -> dict[str, int]:
    """Bytes by kind after `change`."""
    found = Counter()
    for block in blocks:
        if _lives(block, change):
            found[block.kind] += block.bytes
    return {kind: found[kind] for kind in KINDS}


def _lives(block: Block, change: int) -> bool:
    return block.born <= change and (block.died is None or block.died > change)


def _peak(recording: Recording, at: int, depth: int) -> Peak:
    number = max(recording.launch_at[at] - 1, 0)
    launch = recording.launches[number]
    there = [block for block in recording.blocks if _lives(block, at)]
    largest = Counter()
    for block in there:
        largest[module_name(block, depth), block.kind] += block.bytes
    return Peak(
        sum(block.bytes for block in there),
        launch.op,
        module_name(launch, depth),
        launch.phase,
        number,
        kinds_at(recording.blocks, at),
        [(module, kind, count) for (module, kind), count in largest.most_common(6)],
    )


def _figures(
    name: str, launches: list[TracedLaunch], blocks: list[Block], changes: int, at: int
) -> ModuleFigures:
    costs = [launch.cost for launch in launches]
    flops = Counter()
    for launch in launches:
        flops[launch.phase == "backward"] += launch.cost.flops
    return ModuleFigures(
        name,
        weights=sum(b.bytes for b in blocks if b.kind == "weights"),
        peak=_peak_of(blocks, changes),
        at_peak=sum(b.bytes for b in blocks if _lives(b, at)),
        launches=len(launches),
        allocations=sum(c.allocates for c in costs),
        traffic=sum(c.traffic for c in costs),
        touched=sum(c.touched for c in costs),
        flops_forward=flops[False],
        flops_backward=flops[True],
    )


def _peak_of(blocks: list[Block], changes: int) -> int:
    """The most that these storages take together."""
    steps = np.zeros(changes + 2, dtype=np.int64)
    for block in blocks:
        steps[block.born + 1] += block.bytes
        if block.died is not None:
            steps[block.died + 1] -= block.bytes
    return int(steps.cumsum().max())
