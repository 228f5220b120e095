"""Batches of an epoch, in an order that does not depend on the workers."""

import signal
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from pix2pixhd_fast.data.dataset import AlignedDataset, Sample, epoch_order
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import Options

Batch = dict[str, torch.Tensor | list[str]]
GRACE = 60  # seconds; cluster schedulers kill after about as long


def make_loader(
    dataset: AlignedDataset,
    options: Options,
    epoch: int = 1,
    start: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> DataLoader:
    """Batches of `batchSize` samples of one epoch: tensors [N, C, H, W], `path` a list of str.

    Order: the permutation of (seed, epoch) when training, unless `serial_batches`; otherwise as in
    `dataset`. The first `start` samples of that order are skipped. When training, a last batch that
    is not full is dropped. `nThreads` worker processes change neither order nor values, and the
    global random state is not touched. Batches are pinned when they go to a CUDA device. One `inst`
    of int64 makes that of its batch int64.

    Of several `processes`, which `batchSize` is a multiple of, process `rank` gets its share of
    every batch: neighbours in the order, so that the shares by rank make up the batch. When
    testing, `batchSize` is of one process and sample i belongs to process i modulo `processes`.

    Raises `InputError` for `start` < 0 and, when training, for fewer samples than `batchSize`;
    while iterating, in the place of the batch, for files that cannot be used and for samples of
    different sizes in one batch.
    """
    if start < 0:
        raise InputError(f"start must be the number of samples to skip, got {start}")
    if options.isTrain and options.batchSize > len(dataset):
        raise InputError(
            f"batchSize must be at most the number of samples, got {options.batchSize} "
            f"for {len(dataset)} samples in {options.dataroot}"
        )
    shuffled = options.isTrain and not options.serial_batches
    count = len(dataset)
    order = epoch_order(count, options.seed, epoch) if shuffled else range(count)
    batch, order = _share(order[start:], options, rank, processes)
    return _EpochLoader(
        _Reported(dataset),
        batch_size=batch,
        sampler=[(epoch, index) for index in order],
        num_workers=options.nThreads,
        collate_fn=collate,
        pin_memory=_uses_cuda(options),
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_main,
    )


def _share(
    order: Sequence[int], options: Options, rank: int, processes: int
) -> tuple[int, list[int]]:
    """The batch size of one process, and the samples that are its own."""
    if not options.isTrain:
        return options.batchSize, list(order[rank::processes])
    share, whole = options.batchSize // processes, options.batchSize
    firsts = range(rank * share, len(order) // whole * whole, whole)
    return share, [index for first in firsts for index in order[first : first + share]]


def collate(samples: list[Sample | InputError]) -> Batch | InputError:
    """Batch of samples of one size; an error among them, or of their sizes, takes its place."""
    failed = next((sample for sample in samples if isinstance(sample, InputError)), None)
    if failed is not None:
        return failed
    first = samples[0]
    for other in samples[1:]:
        if other["label"].shape != first["label"].shape:
            sizes = [f"{s['path']} is {_size(s['label'])}" for s in (first, other)]
            return InputError(
                f"pictures of one batch must be of the same size, but {sizes[0]} and {sizes[1]} "
                "after scaling and cropping: use --batchSize 1 or --resize_or_crop resize_and_crop"
            )
    if "inst" in first and any(sample["inst"].dtype == torch.int64 for sample in samples):
        samples = [sample | {"inst": sample["inst"].long()} for sample in samples]
    return default_collate(samples)


class _Reported(Dataset):
    """Gives an `InputError` instead of raising it: a worker would bury it in a traceback."""

    def __init__(self, dataset: AlignedDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample | InputError:
        try:
            return self.dataset[key]
        except InputError as error:
            return InputError(str(error))


class _EpochLoader(DataLoader):
    """Raises the `InputError` that takes the place of a batch."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            if isinstance(batch, InputError):
                raise batch
            yield batch


def _leave_signals_to_main(worker: int) -> None:
    """Ctrl-C, and SIGTERM of a cluster, reach all processes: workers serve until main ends them.

    Main ends a worker that does not answer by SIGTERM as well: the second one counts, and the first
    after `GRACE` seconds, so that no program waits for its workers for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _serve_a_little_longer)


def _serve_a_little_longer(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(GRACE)


def _uses_cuda(options: Options) -> bool:
    on_cuda = options.device.startswith("cuda") or (
        options.device == "auto" and not options.gpu_ids.strip().startswith("-")
    )
    return on_cuda and torch.cuda.is_available()


def _size(tensor: torch.Tensor) -> str:
    return f"{tensor.shape[-1]}x{tensor.shape[-2]}"
