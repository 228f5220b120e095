"""Forget in the forward, compute again in the backward: memory for arithmetic."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import groupby

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.nn.norms import keep_running_statistics
from pix2pixhd_fast.nn.pending import Pending
from pix2pixhd_fast.nn.steps import ChainedStep, Step

MODES = ("none", "blocks", "all")


class _Choice(threading.local):
    mode = "none"


_choice = _Choice()


@contextmanager
def recompute(mode: str) -> Iterator[None]:
    """Inside the block, sequences keep less for their backward under `backend("fused")`.

    "none": all that the ops save. "blocks": of a residual block, or a sequence inside of another,
    only the input; "all": of every run of other steps too. What is not kept is computed again when
    the backward gets there, by the same kernels. Raises `InputError` for another mode.
    """
    if mode not in MODES:
        raise InputError(f"checkpoint must be one of {', '.join(MODES)}, got {mode!r}")
    before, _choice.mode = _choice.mode, mode
    try:
        yield
    finally:
        _choice.mode = before


def segments(steps: tuple[Step, ...]) -> list[tuple[tuple[Step, ...], bool]]:
    """The steps in runs, and whether each run is computed again in the backward."""
    if _choice.mode == "none" or not torch.is_grad_enabled():
        return [(steps, False)]
    found: list[tuple[tuple[Step, ...], bool]] = []
    for chained, run in groupby(steps, lambda step: isinstance(step, ChainedStep)):
        run = tuple(run)
        found += [((step,), True) for step in run] if chained else [(run, _choice.mode == "all")]
    return found


def run_again(sequence: nn.Module, run: Callable[[list[Pending]], Pending], p: Pending) -> Pending:
    """run([p]), of which nothing but `p` is kept for the backward.

    Batch norms of `sequence` update their running statistics the first time only; what drops at
    random drops the same.
    """

    def contexts():
        return nullcontext(), keep_running_statistics(sequence)

    def once(p: Pending) -> Pending:
        with recompute("none"):
            return run([p])

    drops = any(isinstance(m, nn.modules.dropout._DropoutNd) for m in sequence.modules())
    return checkpoint(once, p, use_reentrant=False, preserve_rng_state=drops, context_fn=contexts)
