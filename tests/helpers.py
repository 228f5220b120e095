"""What several tests use: where reference data lies, and how far a tensor may be from it."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
# Recorded outputs of the original networks: the small files are here, the others are optional.
GOLDEN = ROOT / "tests/golden"
MORE_GOLDEN = Path(os.getenv("PIX2PIXHD_FAST_GOLDEN", ROOT.parent / "shared/golden"))
CITYSCAPES = Path(os.getenv("PIX2PIXHD_FAST_CITYSCAPES", ROOT.parent / "shared/data/cityscapes"))


def assert_close_l2(actual: Tensor, expected: Tensor, tol: float, name: str) -> None:
    """Assert that ||actual - expected|| <= tol * ||expected||, in float64; a NaN fails.

    Where `expected` is all zero, `tol` bounds ||actual|| itself. The message names the tensor
    `name`.
    """
    assert actual.shape == expected.shape, (
        f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    )
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    scale = torch.linalg.vector_norm(expected).item() or 1.0
    error = torch.linalg.vector_norm(actual - expected).item() / scale
    # Not `error > tol`: that is false for a NaN.
    assert error <= tol, f"{name}: relative L2 error {error:.3g}, allowed {tol:.3g}"


def cancelled_bias(net: nn.Module, key: str) -> bool:
    """Whether a norm right behind subtracts this bias again: its gradient is rounding noise."""
    parent, _, leaf = key.rpartition(".")
    sequence, _, index = parent.rpartition(".")
    behind = dict(net.named_modules()).get(f"{sequence}.{int(index) + 1}")
    return leaf == "bias" and isinstance(behind, nn.InstanceNorm2d | nn.BatchNorm2d)
