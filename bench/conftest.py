"""The same number of threads for every benchmark."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def threads():
    torch.set_num_threads(min(2, os.cpu_count() or 1))
