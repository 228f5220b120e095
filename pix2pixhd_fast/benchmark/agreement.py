"""How far results are from those of eager float32."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Results = Mapping[str, list[Tensor]]


def kept(results: Results) -> dict[str, list[Tensor]]:
    """Copies that later steps do not change."""
    return {group: [t.detach().clone() for t in tensors] for group, tensors in results.items()}


def relative_error(results: Results, reference: Results) -> float:
    """The largest relative L2 error of a group of tensors, taken together; NaN where one is NaN.

    Infinite where shapes or groups differ. A group that is all zero bounds the norm itself.
    """
    if results.keys() != reference.keys():
        return math.inf
    errors = [_group_error(results[group], reference[group]) for group in reference]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


@torch.no_grad()
def _group_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    if [t.shape for t in actual] != [t.shape for t in expected]:
        return math.inf
    pairs = list(zip(actual, expected, strict=True))
    difference = math.hypot(*(_norm(a.float() - e.float()) for a, e in pairs))
    return difference / (math.hypot(*(_norm(e.float()) for e in expected)) or 1.0)


def _norm(t: Tensor) -> float:
    return torch.linalg.vector_norm(t, dtype=torch.float64).item()
