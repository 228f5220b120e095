"""The mean over every instance: the instance-wise average pooling of pix2pixHD."""

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from pix2pixhd_fast._backend import current_backend
from pix2pixhd_fast._launches import Launch, bytes_of, copies_of, register_launches, scratch_of
from pix2pixhd_fast._library import define
from pix2pixhd_fast.errors import InputError

SUM_BLOCK = 65536


class InstanceMeans(NamedTuple):
    """The pooled features, and a row per instance: by picture, then by id.

    pooled: as `features`; images: int64 [K], the picture; ids: [K], the type of the given ids;
    means: [K, C], the dtype of `features`, differentiable; areas: int64 [K], pixels.
    """

    pooled: Tensor
    images: Tensor
    ids: Tensor
    means: Tensor
    areas: Tensor


@overload
def instance_mean_pool(
    features: Tensor, ids: Tensor, return_means: Literal[False] = False
) -> Tensor: ...


@overload
def instance_mean_pool(
    features: Tensor, ids: Tensor, return_means: Literal[True]
) -> InstanceMeans: ...


def instance_mean_pool(
    features: Tensor, ids: Tensor, return_means: bool = False
) -> Tensor | InstanceMeans:
    """Replace each value by the mean over its instance, per picture and channel (paper, 3.4).

    `features`: [N, C, H, W] floating, any strides. `ids`: [N, 1, H, W], any integer dtype, from 0
    up, in any order and with any gaps; pixels of one picture with the same id are an instance,
    whether they touch or not, and the same id in two pictures is two instances. Returns the shape
    and dtype of `features`, channels_last where `features` are and contiguous otherwise; with
    `return_means` an `InstanceMeans`, whose sizes depend on the values: on a GPU the host waits.

    The kernels add at most 64 values in a row in float32 and the sums of these in more, so that an
    instance of two million pixels keeps six digits; float64 stays float64. The same input gives the
    same bits, whatever the number of threads. On a GPU an instance that holds a value that is not
    finite becomes NaN. The gradient is the pooled gradient, any number of times.

    Raises `InputError` for other shapes or dtypes, and for negative ids. On a GPU the values of ids
    are not looked at, for which the host would have to wait: there negative ids are ids as well.
    """
    _check(features, ids)
    # uint32 does not fit into int32
    wide = ids.dtype.itemsize == 8 or ids.dtype == torch.uint32
    pooled_ids = ids.to(torch.int64 if wide else torch.int32)
    plain = features.dtype == torch.float64 and features.device.type != "cpu"
    if plain or current_backend() == "eager":
        pooled = instance_mean_pool_ref(features, pooled_ids)
    else:
        try:
            pooled = torch.ops.pix2pixhd_fast.instance_mean_pool(features, pooled_ids)
        except RuntimeError:
            # The kernel refuses negative ids by itself: a pass to look for them took a quarter of
            # its time (0.3 to 0.6 ms at 2048x1024).
            _check_values(pooled_ids)
            raise
    return _with_means(pooled, pooled_ids, ids.dtype) if return_means else pooled


def _check(features: Tensor, ids: Tensor) -> None:
    if features.dim() != 4 or not features.is_floating_point():
        raise InputError(
            f"features must be floating [N, C, H, W], got {features.dtype} {list(features.shape)}"
        )
    expected = (features.shape[0], 1, *features.shape[2:])
    if ids.shape != expected:
        raise InputError(
            f"ids must be [N, 1, H, W] with N, H, W of features {list(expected)}, "
            f"got {list(ids.shape)}"
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"ids must hold integers, got {ids.dtype}")


def _check_values(ids: Tensor) -> None:
    if ids.device.type != "cpu" or isinstance(ids, FakeTensor) or torch.compiler.is_compiling():
        return
    if ids.numel() and (least := int(ids.amin())) < 0:
        raise InputError(f"ids must be from 0 to 2**63 - 1, got {least}")


def _with_means(pooled: Tensor, ids: Tensor, dtype: torch.dtype) -> InstanceMeans:
    rows = []
    for image, (values, of_image) in enumerate(zip(pooled, ids, strict=True)):
        found, index, areas = of_image.flatten().unique(return_inverse=True, return_counts=True)
        pixels = torch.arange(len(index), device=ids.device)
        first = torch.zeros_like(found, dtype=torch.int64).scatter_(0, index, pixels)
        means = values.flatten(1)[:, first].T
        rows.append((torch.full_like(areas, image), found.to(dtype), means, areas))
    if not rows:
        none = ids.new_empty(0, dtype=torch.int64)
        return InstanceMeans(
            pooled, none, none.to(dtype), pooled.new_empty(0, pooled.shape[1]), none
        )
    return InstanceMeans(pooled, *(torch.cat(column) for column in zip(*rows, strict=True)))


def instance_mean_pool_ref(features: Tensor, ids: Tensor) -> Tensor:
    _check_values(ids)
    if features.numel() == 0:
        return _new_result(features, ids)
    means = [
        _mean_by_id(image.flatten(1), i.flatten()) for image, i in zip(features, ids, strict=True)
    ]
    pooled = torch.stack(means).view(features.shape)
    return pooled.contiguous(memory_format=_format_of(features))


def _mean_by_id(values: Tensor, ids: Tensor) -> Tensor:
    """values [C, P], ids [P] -> [C, P]."""
    _, index, counts = torch.unique(ids, return_inverse=True, return_counts=True)
    pixels, instances = len(index), len(counts)
    blocks = -(-pixels // SUM_BLOCK)
    block = torch.arange(pixels, device=ids.device) // SUM_BLOCK
    wide = torch.promote_types(values.dtype, torch.float32)
    sums = values.new_zeros((values.shape[0], blocks * instances), dtype=wide)
    sums = sums.index_add(1, block * instances + index, values.to(wide))
    means = sums.view(-1, blocks, instances).sum(1) / counts
    # gathered before it is rounded: the sum over an instance in backward needs float32 too
    return means[:, index].to(values.dtype)


def _format_of(features: Tensor) -> torch.memory_format:
    last = not features.is_contiguous() and features.is_contiguous(
        memory_format=torch.channels_last
    )
    return torch.channels_last if last else torch.contiguous_format


def _new_result(features: Tensor, ids: Tensor) -> Tensor:
    return torch.empty_like(features, memory_format=_format_of(features))


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx, dy: Tensor) -> tuple[Tensor, None]:
    (ids,) = ctx.saved_tensors
    return torch.ops.pix2pixhd_fast.instance_mean_pool(dy, ids), None


# As in csrc/instance_mean_pool.cuh: `Scratch`.
_STRIP, _GROUP, _RECORD = 512, 4, 24


def scratch_bytes(images: int, channels: int, pixels: int) -> int:
    """The bytes that the CUDA kernels work in: enough for an instance in every pixel.

    What is touched of it grows with the number of runs of instances, but for the table.
    """
    groups, strips = -(-channels // _GROUP), -(-pixels // _STRIP)
    table = (pixels + pixels // 4 + 4) // 4 * 4
    records = groups * strips * (_STRIP * _RECORD + 4)
    return images * (4 * table + pixels * (4 + 12 * channels) + records)


def _launches(features: Tensor, ids: Tensor, result: Tensor) -> list[Launch]:
    """Records and the sums of instances, which are few, are not in it."""
    if features.numel() == 0:
        return []
    dense = features.is_contiguous() or features.is_contiguous(memory_format=torch.channels_last)
    given = [*([] if dense else [features]), *([] if ids.is_contiguous() else [ids])]
    copies = copies_of(given)
    images, channels, height, width = features.shape
    pixels = height * width
    scratch = scratch_bytes(images, channels, pixels) + scratch_of(copies)
    table = 4 * images * ((pixels + pixels // 4 + 4) // 4 * 4)
    id_bytes = bytes_of(ids)
    read = -(-channels // _GROUP) * id_bytes + bytes_of(features)
    moved = {
        "clear_table": (0, table),
        "sum_strips": (read, 0),
        "raise_peaks": (0, 0),
        "add_records": (0, 0),
        "write_means": (id_bytes, bytes_of(result)),
    }
    launches = [
        Launch(f"instance_mean_pool.{name}", *bytes_, scratch=scratch)
        for name, bytes_ in moved.items()
    ]
    return [*copies, *launches]


define("instance_mean_pool", "(Tensor features, Tensor ids) -> Tensor", instance_mean_pool_ref)
# The reference asks how many instances there are, which a tensor without values cannot say.
torch.library.register_fake("pix2pixhd_fast::instance_mean_pool", _new_result)
torch.library.register_autograd(
    "pix2pixhd_fast::instance_mean_pool", _backward, setup_context=_setup_context
)
register_launches("instance_mean_pool", _launches)
