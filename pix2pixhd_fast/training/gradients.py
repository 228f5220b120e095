"""Gradients averaged over the processes while the backward pass is still running."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pix2pixhd_fast.training.distributed import ALONE, World

# Of DistributedDataParallel: long enough messages for the wire, and the first one starts early.
BUCKET_BYTES = 25 * 2**20


class SharedGradients:
    """Replaces the gradients of `parameters` by their mean over the processes of `world`.

    A step: backward passes as many as it takes, the last of them inside `with overlapping():`, then
    `begin()`, and `reduce()` before the update. Gradients are moved into buckets of about
    `bucket_bytes`, in the order in which the main process had them in its first step. The sum of a
    bucket begins as soon as backward has made its last gradient and the sums before it have begun,
    so that it runs beside the rest of the backward pass; `begin` begins what is left, `reduce`
    waits. From then on each `grad` is a view of its bucket: nothing is copied back, and
    `zero_grad()` frees it.

    The first step, and the first after `requires_grad` of a parameter has changed, only learns the
    order: its sums all begin in `begin`. Its buckets are those of later steps, so a run that was
    resumed adds up in the same order as one that was not. Without `overlapping` the result is the
    same, later. Alone, nothing happens.

    The same parameters must get gradients in all processes and steps, in one backward pass inside
    `overlapping`; `RuntimeError` says where they do not.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        world: World = ALONE,
        bucket_bytes: int = BUCKET_BYTES,
    ):
        self.parameters = list(parameters)
        self.world = world
        self.bucket_bytes = bucket_bytes
        self._listening = False
        self._trained: list[bool] = []
        self._forget()
        if world.size > 1:
            for i, parameter in enumerate(self.parameters):
                parameter.register_post_accumulate_grad_hook(lambda _, i=i: self._ready(i))

    @contextmanager
    def overlapping(self) -> Iterator[None]:
        """Around the last backward pass of a step that reaches these parameters."""
        self._notice_changes()
        self._listening = True
        try:
            yield
        finally:
            self._listening = False

    def begin(self) -> None:
        """Begin all sums that have not begun, once no gradient is added any more; wait for none."""
        if self.world.size == 1:
            return
        self._notice_changes()
        if not self._buckets:
            self._fill_buckets()
        for i in self._with_gradient() - self._bucket_of.keys():
            raise RuntimeError(f"{self._name(i)} has a gradient, and had none in the first step")
        self._start(len(self._buckets))

    def reduce(self) -> None:
        """Make every gradient the mean of those of all processes; `begin`s what has not begun."""
        self.begin()
        for bucket in self._buckets:
            self.world.finish_sum(bucket.work)
            bucket.work = None
            bucket.missing = set(bucket.members)
        self._started = 0

    def _forget(self) -> None:
        self._order: list[int] = []
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[int, _Bucket] = {}
        self._started = 0

    def _notice_changes(self) -> None:
        trained = [parameter.requires_grad for parameter in self.parameters]
        if trained != self._trained:
            self._trained = trained
            self._forget()

    def _ready(self, i: int) -> None:
        if not self._listening:
            return
        if not self._buckets:
            self._order.append(i)
            return
        if i not in self._bucket_of:
            return  # `reduce` will say so
        if i not in self._bucket_of[i].missing:
            raise RuntimeError(f"{self._name(i)} got a second gradient in the last backward pass")
        self._bucket_of[i].missing.remove(i)
        complete = self._started
        while complete < len(self._buckets) and not self._buckets[complete].missing:
            complete += 1
        self._start(complete)

    def _start(self, end: int) -> None:
        """Begin the sums of the buckets before `end`: the same order in all processes."""
        while self._started < end:
            bucket = self._buckets[self._started]
            flat = _move(self.parameters[i] for i in bucket.members)
            bucket.work = self.world.start_sum(flat.div_(self.world.size))
            self._started += 1

    def _fill_buckets(self) -> None:
        own = self._with_gradient()
        order = self.world.of_main([*self._order, *sorted(own - set(self._order), reverse=True)])
        if set(order) != own:
            i = min(set(order) ^ own)
            raise RuntimeError(f"{self._name(i)} has a gradient in some processes only")
        for i in order:
            if not self._buckets or not self._fits(i):
                self._buckets.append(_Bucket([], set()))
            self._buckets[-1].members.append(i)
            self._buckets[-1].missing.add(i)
            self._bucket_of[i] = self._buckets[-1]

    def _with_gradient(self) -> set[int]:
        return {i for i, parameter in enumerate(self.parameters) if parameter.grad is not None}

    def _fits(self, i: int) -> bool:
        members = [self.parameters[member] for member in self._buckets[-1].members]
        same_type = members[0].dtype == self.parameters[i].dtype
        return same_type and sum(member.nbytes for member in members) < self.bucket_bytes

    def _name(self, i: int) -> str:
        return f"parameter {i} of {len(self.parameters)}, {list(self.parameters[i].shape)},"


@dataclass
class _Bucket:
    members: list[int]
    missing: set[int]  # those whose gradients backward has not made yet
    work: dist.Work | None = None


def _move(parameters: Iterable[nn.Parameter]) -> Tensor:
    """One new tensor of all gradients, which become views of it; where there is none, zeros."""
    parameters = list(parameters)
    first = parameters[0]
    flat = torch.empty(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
    offset = 0
    for p in parameters:
        view = flat.as_strided(p.shape, p.stride(), offset)
        if p.grad is None:
            view.zero_()
        else:
            view.copy_(p.grad)
        p.grad = view
        offset += p.numel()
    return flat
