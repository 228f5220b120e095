"""SemanticMap: what it keeps, what it refuses, and that its methods are those of its channels."""

import pytest
import torch
import torch.nn.functional as F

from pix2pixhd_fast import InputError
from pix2pixhd_fast.semantic import SemanticMap


def scene(num_labels=5, dense=2) -> SemanticMap:
    labels = torch.randint(0, num_labels, (2, 1, 6, 7))
    labels[0, 0, 0, :3] = 999
    edges = torch.rand(2, 1, 6, 7) < 0.3
    return SemanticMap(labels, num_labels, edges, torch.rand(2, dense, 6, 7), ignore_label=999)


@pytest.mark.parametrize("num_labels", [1, 5, 255, 256, 1000])
def test_channels(num_labels):
    labels = torch.randint(0, num_labels, (2, 1, 6, 7))
    known = torch.rand(2, 1, 6, 7) < 0.8
    edges = (torch.rand(2, 1, 6, 7) < 0.3).to(torch.uint8)
    dense = torch.rand(2, 3, 6, 7)
    ids = labels.where(known, torch.tensor(70_000))
    found = SemanticMap(ids, num_labels, edges, dense, ignore_label=70_000)
    hot = F.one_hot(labels[:, 0], num_labels).movedim(3, 1) * known
    assert found.labels.dtype == (torch.uint8 if num_labels <= 255 else torch.int32)
    assert torch.equal(found.to_dense(), torch.cat((hot, edges, dense), 1))
    assert found.to_dense(torch.bfloat16).dtype == torch.bfloat16
    assert found.shape == found.to_dense().shape
    assert (found.num_semantic, found.num_channels) == (num_labels + 1, num_labels + 4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_ids_of_any_integer_type(dtype):
    labels = torch.tensor([0, 3, 255, 4]).reshape(1, 1, 2, 2)
    found = SemanticMap(labels.to(dtype), 5, ignore_label=255)
    assert torch.equal(found.labels, labels.to(torch.uint8))


def test_compact_ids_are_kept_where_they_are():
    labels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert SemanticMap(labels, 35, ignore_label=255).labels is labels


def test_a_class_that_is_ignored():
    found = SemanticMap(torch.tensor([[[[0, 1, 2]]]]), 3, ignore_label=1)
    assert torch.equal(found.to_dense()[0, :, 0], torch.tensor([[1.0, 0, 0], [0] * 3, [0, 0, 1]]))


def test_methods_are_those_of_the_channels():
    given = scene()
    dense = given.to_dense()
    assert torch.equal(given.flip().to_dense(), dense.flip(3))
    assert torch.equal(given.crop((4, 5)).to_dense(), dense[:, :, :4, :5])
    grown = F.pad(dense, (0, 1, 0, 2), mode="replicate")
    assert torch.equal(given.pad_by_edge((8, 8)).to_dense(), grown)
    assert torch.equal(given.pad_to(4).to_dense(), grown)
    assert given.pad_to(1).shape == given.shape
    assert torch.equal(given.with_dense(None).to_dense(), dense[:, :6])
    halves = [given.crop((6, 7)), given.flip()]
    assert torch.equal(SemanticMap.cat(halves).to_dense(), torch.cat((dense, dense.flip(3))))
    moved = given.to("cpu", torch.float16, non_blocking=True)
    assert (moved.dense.dtype, moved.labels.dtype) == (torch.float16, torch.uint8)
    assert given.device == torch.device("cpu")


def test_ids_are_looked_at_once():
    """The kept id of no class is none that the constructor would take."""
    given = scene()
    with pytest.raises(InputError, match="ids outside"):
        SemanticMap(given.labels, given.num_labels)
    assert torch.equal(given.flip().flip().labels, given.labels)


def test_cannot_be_changed():
    with pytest.raises(AttributeError):
        scene().num_labels = 3


def test_without_values():
    with torch._subclasses.FakeTensorMode():
        found = SemanticMap(torch.empty(1, 1, 4, 4, dtype=torch.int64), 5, ignore_label=9)
    assert (found.labels.dtype, found.shape) == (torch.uint8, (1, 5, 4, 4))


LABELS = torch.zeros(1, 1, 4, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LABELS + 5, 5), r"24 pixels with ids outside \[0, 5\), the largest 5"),
        ((LABELS - 1, 5), r"24 pixels with ids outside \[0, 5\), the largest -1"),
        ((LABELS, 0), "num_labels must be at least 1, got 0"),
        ((LABELS.float(), 5), "labels must hold integer ids, got torch.float32"),
        ((LABELS[0], 5), r"labels must be \[N, 1, H, W\], got \[1, 4, 6\]"),
        ((LABELS, 5, LABELS), "edges must be uint8 or bool, got torch.int64"),
        ((LABELS, 5, LABELS[..., 1:].bool()), r"edges must be \[1, 1, 4, 6\] like labels, got"),
        ((LABELS, 5, None, LABELS), "dense must hold floating values, got torch.int64"),
        ((LABELS, 5, None, LABELS[0].float()), r"dense must be \[1, C, H, W\], got \[1, 4, 6\]"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        SemanticMap(*arguments)


def test_refuses_what_is_not_of_one_size():
    with pytest.raises(InputError, match="dense must be .* like labels, got"):
        SemanticMap(LABELS, 5).with_dense(torch.zeros(1, 1, 2, 3)).to_dense()
    with pytest.raises(InputError, match="maps must have the same channels and sizes"):
        SemanticMap.cat([SemanticMap(LABELS, 5), SemanticMap(LABELS, 6)])
