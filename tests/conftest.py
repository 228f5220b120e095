"""The same random numbers, memory and threads for every test; reference data."""

import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from torch import Tensor

from pix2pixhd_fast._backend import BACKENDS, backend
from tests.helpers import CITYSCAPES, GOLDEN, MORE_GOLDEN, ROOT

if importlib.util.find_spec("pix2pixhd_fast.kernels") is None:
    # Nothing is installed: the package runs where it lies, and its kernels lie beside it.
    _spec = importlib.util.spec_from_file_location(
        "pix2pixhd_fast.kernels", ROOT / "kernels/__init__.py"
    )
    sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def repeatable():
    """Seeds; one thread, the fastest here; new memory is NaN, so that what is unwritten shows."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once under each backend; its name."""
    with backend(request.param):
        yield request.param


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """A function that loads `<name>.npz` of the recorded reference data, or skips the test."""

    def load(name: str) -> dict[str, Tensor]:
        for folder in (GOLDEN, MORE_GOLDEN):
            path = folder / f"{name}.npz"
            if path.is_file():
                with np.load(path) as arrays:
                    return {key: torch.from_numpy(arrays[key]) for key in arrays}
        pytest.skip(f"no {name}.npz in {GOLDEN} or {MORE_GOLDEN} (PIX2PIXHD_FAST_GOLDEN)")

    return load


@pytest.fixture(scope="session")
def cityscapes() -> Path:
    """The folder with train_label, train_inst, ... of real scenes, or the test is skipped."""
    if not CITYSCAPES.is_dir():
        pytest.skip(f"no folder {CITYSCAPES} (PIX2PIXHD_FAST_CITYSCAPES)")
    return CITYSCAPES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
