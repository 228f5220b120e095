"""Label maps: `SemanticMap`, checks, one-hot, padding."""

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from pix2pixhd_fast.errors import InputError

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # cannot be compared


@dataclass(frozen=True, eq=False)
class SemanticMap:
    """What the networks read of a scene, as ids: one-hot channels that are never written out.

    Stands for the channels one-hot of `labels` | `edges` | `dense`, in this order.

    labels: [N, 1, H, W] integer ids in [0, num_labels), or `ignore_label` (where that is not
    negative), which is in no class: all its one-hot channels are 0. Kept as uint8 where num_labels
    is at most 255, else as int32; every kept id from num_labels on is in no class.
    edges: boundary map, uint8 (or bool) [N, 1, H, W] of 0 and 1, or None.
    dense: floating [N, C, H, W], or None; for a level of the pyramid (`ops.label_conv2d`) pooled
    to its size.

    Raises `InputError` for what does not fit, above all for other ids; tensors without values
    (tracing) are not looked into. The methods give new maps of the same contents and look at no id
    again.
    """

    labels: Tensor
    num_labels: int
    edges: Tensor | None = None
    dense: Tensor | None = None
    ignore_label: InitVar[int] = -1

    def __post_init__(self, ignore_label: int) -> None:
        if self.num_labels < 1:
            raise InputError(f"num_labels must be at least 1, got {self.num_labels}")
        labels, edges = self.labels, self.edges
        if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
            raise InputError(f"labels must hold integer ids, got {labels.dtype}")
        if labels.dim() != 4 or labels.shape[1] != 1:
            raise InputError(f"labels must be [N, 1, H, W], got {list(labels.shape)}")
        object.__setattr__(self, "edges", _checked_edges(labels, edges))
        _check_dense(labels, self.dense)
        labels = labels.long() if labels.dtype in _UNSIGNED else labels
        check_labels(labels, self.num_labels, ignore_label)
        object.__setattr__(self, "labels", _kept(labels, self.num_labels, ignore_label))

    @property
    def num_semantic(self) -> int:
        """The channels of labels and edges."""
        return self.num_labels + (self.edges is not None)

    @property
    def num_channels(self) -> int:
        """The channels that the map stands for."""
        return self.num_semantic + (0 if self.dense is None else self.dense.shape[1])

    @property
    def shape(self) -> torch.Size:
        """[N, num_channels, H, W], as that of `to_dense()`."""
        n, _, h, w = self.labels.shape
        return torch.Size((n, self.num_channels, h, w))

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def to_dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The channels [N, num_channels, H, W] as one tensor of `dtype`."""
        semantic = semantic_channels(self.labels, self.edges, self.num_labels, dtype)
        if self.dense is None:
            return semantic
        if self.dense.shape[2:] != self.labels.shape[2:]:
            raise InputError(
                f"dense must be {list(self.labels.shape[2:])} like labels, "
                f"got {list(self.dense.shape[2:])}"
            )
        return torch.cat((semantic, self.dense.to(dtype)), dim=1)

    def with_dense(self, dense: Tensor | None) -> "SemanticMap":
        """The map with other dense channels, or none."""
        _check_dense(self.labels, dense)
        return self._derived(self.labels, self.edges, dense)

    def with_edges(self, edges: Tensor | None) -> "SemanticMap":
        """The map with another boundary map, or none."""
        return self._derived(self.labels, _checked_edges(self.labels, edges), self.dense)

    def flip(self) -> "SemanticMap":
        """Mirrored from left to right."""
        return self.each(lambda x: x.flip(3))

    def pad_by_edge(self, size: tuple[int, int]) -> "SemanticMap":
        """Extended to `size` (H, W) on the right and at the bottom by its edge.

        A boundary map is that of an extended instance map only where it was taken of that one:
        extend the ids, then mark.
        """
        return pad_by_edge(self, size)

    def pad_to(self, multiple: int) -> "SemanticMap":
        """`pad_by_edge` to the next sides that are multiples of `multiple`."""
        h, w = self.labels.shape[2:]
        return self.pad_by_edge((-(-h // multiple) * multiple, -(-w // multiple) * multiple))

    def crop(self, size: tuple[int, int]) -> "SemanticMap":
        """The upper left part of `size` (H, W): views."""
        return self.each(lambda x: x[..., : size[0], : size[1]])

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> "SemanticMap":
        """On `device`; `dtype` is that of the dense channels."""

        def moved(x: Tensor) -> Tensor:
            wanted = dtype if x.is_floating_point() else None
            return x.to(device=device, dtype=wanted, non_blocking=non_blocking)

        return self.each(moved)

    def pin_memory(self) -> "SemanticMap":
        """In page-locked memory, from which copies to a GPU can overlap with work."""
        return self.each(Tensor.pin_memory)

    @staticmethod
    def cat(maps: "Sequence[SemanticMap]") -> "SemanticMap":
        """One batch of several, which must have the same channels and sizes."""
        first = maps[0]
        for other in maps[1:]:
            if other.shape[1:] != first.shape[1:] or other.num_labels != first.num_labels:
                raise InputError(
                    f"maps must have the same channels and sizes, got {list(first.shape)} and "
                    f"{list(other.shape)}"
                )
        parts = zip(*((m.labels, m.edges, m.dense) for m in maps), strict=True)
        return first._derived(*(None if p[0] is None else torch.cat(p) for p in parts))

    def each(self, change: Callable[[Tensor], Tensor]) -> "SemanticMap":
        """The map of which `change` gives labels, edges and dense channels."""
        parts = (self.labels, self.edges, self.dense)
        return self._derived(*(None if x is None else change(x) for x in parts))

    def _derived(self, labels: Tensor, edges: Tensor | None, dense: Tensor | None) -> "SemanticMap":
        """Without a look at ids that were looked at."""
        found = object.__new__(SemanticMap)
        parts = {"labels": labels, "num_labels": self.num_labels, "edges": edges, "dense": dense}
        for name, value in parts.items():
            object.__setattr__(found, name, value)
        return found


def _checked_edges(labels: Tensor, edges: Tensor | None) -> Tensor | None:
    """The boundary map as uint8."""
    if edges is None:
        return None
    if edges.dtype not in (torch.uint8, torch.bool):
        raise InputError(f"edges must be uint8 or bool, got {edges.dtype}")
    if edges.shape != labels.shape:
        raise InputError(f"edges must be {list(labels.shape)} like labels, got {list(edges.shape)}")
    return edges.to(torch.uint8)


def _check_dense(labels: Tensor, dense: Tensor | None) -> None:
    if dense is None:
        return
    if not dense.is_floating_point():
        raise InputError(f"dense must hold floating values, got {dense.dtype}")
    if dense.dim() != 4 or dense.shape[0] != labels.shape[0]:
        raise InputError(f"dense must be [{labels.shape[0]}, C, H, W], got {list(dense.shape)}")


def _kept(labels: Tensor, num_labels: int, ignore_label: int) -> Tensor:
    """Checked ids in the dtype that they are kept in, those to ignore outside of the classes."""
    dtype = torch.uint8 if num_labels <= 255 else torch.int32
    if 0 <= ignore_label < num_labels or ignore_label > torch.iinfo(dtype).max:
        labels = labels.to(torch.int64)
        labels = labels.masked_fill(labels == ignore_label, num_labels)
    return labels.to(dtype)


def check_labels(label: Tensor, label_nc: int, ignore_label: int) -> None:
    """Raise `InputError`, which names the worst id, unless all are in [0, label_nc) or ignored.

    `label`: integer ids of any shape. Tensors without values (tracing) pass.
    """
    if isinstance(label, FakeTensor) or label.is_meta or label.numel() == 0:
        return
    wrong = (label < 0) | (label >= label_nc)
    if ignore_label >= 0:
        wrong &= label != ignore_label
    if wrong.any():
        worst = label[wrong].max().item()
        raise InputError(
            f"label has {int(wrong.sum())} pixels with ids outside [0, {label_nc}), the largest "
            f"{worst}: label_nc must be larger than every id, or ignore_label must name it"
        )


def one_hot(label: Tensor, label_nc: int, ignore_label: int) -> Tensor:
    """Integer ids [N, 1, H, W] -> float32 [N, label_nc, H, W]; `ignore_label` is zero in all."""
    n, _, h, w = label.shape
    channels = torch.zeros((n, label_nc, h, w), device=label.device)
    index = label.long()
    if ignore_label < 0:
        return channels.scatter_(1, index, 1.0)
    known = (index != ignore_label).float()
    return channels.scatter_(1, index.masked_fill(index == ignore_label, 0), known)


def semantic_channels(
    labels: Tensor, edges: Tensor | None, num_labels: int, dtype: torch.dtype
) -> Tensor:
    """The channels one-hot | edge of the parts of a `SemanticMap`."""
    channels = one_hot(labels.long().clamp(max=num_labels), num_labels, num_labels).to(dtype)
    return channels if edges is None else torch.cat((channels, (edges != 0).to(dtype)), dim=1)


def append_channels(scene: Tensor | SemanticMap, x: Tensor) -> Tensor | SemanticMap:
    """The channels of `scene`, then those of x [N, C, H, W]: the last dense channels of a map."""
    if not isinstance(scene, SemanticMap):
        return torch.cat((scene, x), dim=1)
    return scene.with_dense(x if scene.dense is None else torch.cat((scene.dense, x), dim=1))


def pad_by_edge(x: Tensor | SemanticMap, size: tuple[int, int]) -> Tensor | SemanticMap:
    """Extend [N, C, H, W] of any dtype to `size` on the right and at the bottom by its edge."""
    if isinstance(x, SemanticMap):
        return x.each(lambda part: pad_by_edge(part, size))
    for dim, after in zip((2, 3), size, strict=True):
        before = x.shape[dim]
        if after > before:
            index = torch.arange(after, device=x.device).clamp_(max=before - 1)
            x = x.index_select(dim, index)
    return x
