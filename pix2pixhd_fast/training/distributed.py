"""Processes that work as one, one per GPU: who is who, what they agree on, who tells of errors."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import Options

LINGER = 10  # seconds; torchrun looks after its processes ten times a second

_store: dist.Store | None = None


class PeerLost(RuntimeError):
    """Another process has ended, and this one cannot go on without it."""


@dataclass(frozen=True)
class World:
    """The processes of one run, as one of them sees them; `ALONE` is a process by itself.

    `rank` 0 prints and writes. `device`: of this process, None to go by the options. `restarted`:
    torchrun started the processes anew after one had failed; `may_restart`: it would. Every method
    but `share` must be called by all processes at the same place of the program, and raises
    `PeerLost` where one of them has ended. Alone, all of them return what they are given.
    """

    rank: int = 0
    size: int = 1
    device: str | None = None
    restarted: bool = False
    may_restart: bool = False

    @property
    def main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def share(self, batchSize: int) -> int:
        """The images of each process of a batch; `InputError` where they cannot be equally many."""
        if batchSize % self.size:
            raise InputError(
                f"batchSize is the whole batch of a step and must be divisible by the number of "
                f"processes, got {batchSize} for {self.size} processes"
            )
        return batchSize // self.size

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set in any process; also waits for all processes."""
        if self.size == 1:
            return flags
        found = torch.tensor([True, *flags], dtype=torch.uint8)
        with _peers():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(found[1:].bool().tolist())

    def means(self, values: dict[str, Tensor]) -> dict[str, float]:
        """The mean over the processes of each scalar."""
        found = torch.stack([value.double() for value in values.values()]).cpu()
        if self.size > 1:
            with _peers():
                dist.all_reduce(found)
        return dict(zip(values, (found / self.size).tolist(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes by rank, in the main process; elsewhere an empty list."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.main else None
        with _peers():
            dist.gather_object(value, values)
        return values or []

    def of_main(self, value: Any) -> Any:
        """The value that the main process has."""
        if self.size == 1:
            return value
        values = [value]
        with _peers():
            dist.broadcast_object_list(values)
        return values[0]

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite each tensor by that of the main process."""
        if self.size == 1:
            return
        for tensor in tensors:
            dense = tensor.detach().contiguous()
            with _peers():
                dist.broadcast(dense, 0)
            tensor.detach().copy_(dense)

    def start_sum(self, tensor: Tensor) -> dist.Work:
        """Begin to sum a tensor over the processes, in place; `finish_sum` waits for it."""
        with _peers():
            return dist.all_reduce(tensor, async_op=True)

    def finish_sum(self, work: dist.Work) -> None:
        """Let what follows (on a GPU: in the present stream) come after the sum."""
        with _peers():
            work.wait()


ALONE = World()


@contextmanager
def joined(options: Options) -> Iterator[World]:
    """Meet the processes that torchrun has started beside this one; `ALONE` where there are none.

    Tensors on GPUs go through NCCL, those on the CPU (losses, flags, picture pools) through gloo.
    Raises `InputError` where the processes of this machine cannot have a GPU each.
    """
    global _store
    size = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    elastic = dict(
        restarted=restarts > 0,
        may_restart=int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0,
    )
    if size == 1:
        yield World(**elastic)
        return
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = devices(options, local_size)[int(os.environ.get("LOCAL_RANK", 0))]
    if device != "cpu":
        torch.cuda.set_device(device)
    store, rank, size = next(dist.rendezvous("env://"))
    # torchrun keeps its store, and with it the addresses of processes that are gone
    _store = dist.PrefixStore(f"pix2pixhd_fast/{restarts}", store)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=_store, rank=rank, world_size=size)
    yield World(rank, size, device, **elastic)
    dist.destroy_process_group()  # not after an error: the others may never answer


def devices(options: Options, count: int) -> list[str]:
    """The device of each of the `count` processes of this machine, a GPU each or all on the CPU."""
    wanted = options.device
    if wanted == "auto":
        on_gpu = torch.cuda.is_available() and options.gpus[0] >= 0
        wanted = "cuda" if on_gpu else "cpu"
    if wanted == "cpu":
        return ["cpu"] * count
    if wanted != "cuda":
        raise InputError(
            "device must be auto, cuda or cpu where there are several processes, which take a GPU "
            f"each, got {wanted!r}"
        )
    visible = torch.cuda.device_count()
    if visible < count:
        raise InputError(
            f"{count} processes on one machine need a GPU each, but {visible} CUDA devices are "
            "visible: start fewer, or use --device cpu"
        )
    if options.device == "cuda" or len(options.gpus) == 1:
        return [f"cuda:{number}" for number in range(count)]
    listed = options.gpus[:count]
    if len(set(listed)) < count or not 0 <= min(listed) <= max(listed) < visible:
        raise InputError(
            f"gpu_ids must name a visible CUDA device (of {visible}) for each of the {count} "
            f"processes of this machine, got {options.gpu_ids}"
        )
    return [f"cuda:{number}" for number in listed]


def tells_of_error() -> bool:
    """Whether this process is to say what went wrong: the first one that asks.

    Before the processes have met, what goes wrong goes wrong in all: the main one tells.
    """
    if _store is None:
        return int(os.environ.get("RANK", 0)) == 0
    try:
        return _store.add("error", 1) == 1
    except RuntimeError:
        return True  # the store went with the process that kept it


def linger() -> None:
    """Wait for torchrun to end this process, so that it reports the one that failed, not this."""
    if dist.is_torchelastic_launched():
        time.sleep(LINGER)


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost("another process of this run has ended") from error
