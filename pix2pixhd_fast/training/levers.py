"""What a training may cost in memory: levers that change no result, and what bf16 would save."""

from collections.abc import Callable
from dataclasses import replace

from pix2pixhd_fast.data import AlignedDataset
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.nn.recompute import MODES
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.profile.fit import peak_bytes
from pix2pixhd_fast.profile.subject import Subject
from pix2pixhd_fast.profile.text import RESERVE

GIB = 2**30


def within_limit(
    options: Options, dataset: AlignedDataset, say: Callable[[str], None] = print
) -> Options:
    """The options with the cheapest `checkpoint`, from the given one on, that fits `memory_limit`.

    What a step takes at the size of the pictures is traced on fake tensors (some seconds for each
    try); of the limit, 1 GiB is left to the context, workspaces and fragmentation.
    `say` gets what was picked. Raises `InputError` with the least that training takes where that is
    more.
    """
    if options.memory_limit == 0:
        return options
    size = picture_size(dataset)
    for mode in MODES[MODES.index(options.checkpoint) :]:
        tried = replace(options, checkpoint=mode)
        needed = predicted_gib(tried, size)
        if needed <= options.memory_limit:
            say(f"{_limit(options)}: --checkpoint {mode}, which takes {_predicted(needed, size)}")
            return tried
    raise InputError(
        f"{_limit(options)}, but training takes at least {_predicted(needed, size)}, with "
        f"checkpoint {mode}: smaller pictures, a smaller batch{_or_bf16(options)} need less"
    )


def bf16_advice(options: Options, dataset: AlignedDataset) -> str:
    """One line that says what `--amp bf16` would save."""
    size = picture_size(dataset)
    now = predicted_gib(options, size)
    then = predicted_gib(replace(options, amp="bf16"), size)
    return (
        f"--amp bf16 would take {_predicted(then, size)} instead of {now:.1f}, and less time: "
        "weights, losses and statistics stay float32"
    )


def picture_size(dataset: AlignedDataset) -> tuple[int, int]:
    """(width, height) of the first picture as training sees it."""
    height, width = dataset[0]["image"].shape[-2:]
    return width, height


def predicted_gib(options: Options, size: tuple[int, int]) -> float:
    """What a training step is expected to take, traced, with 1 GiB for what cannot be traced."""
    return peak_bytes(Subject(options, size)) / GIB + RESERVE


def _limit(options: Options) -> str:
    return f"memory_limit is {options.memory_limit:g} GiB"


def _predicted(gib: float, size: tuple[int, int]) -> str:
    return f"{gib:.1f} GiB at {size[0]}x{size[1]} (predicted, {RESERVE:g} of it in reserve)"


def _or_bf16(options: Options) -> str:
    return " or --amp bf16" if options.amp == "off" else ""
