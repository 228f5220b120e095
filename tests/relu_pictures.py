"""Pictures with many zeros and ties, for the tests of the ReLU codes."""

import hypothesis.strategies as st
import torch
from torch import Tensor

from tests.pictures import draw

# One element, less and more than a word, channels that nothing divides, odd sides, more than a
# block and than a program sums
SMALL = [
    (1, 1, 1, 1),
    (1, 1, 3, 3),
    (2, 3, 5, 7),
    (1, 8, 2, 4),
    (1, 70, 6, 5),
    (1, 16, 18, 17),
]


def coarse(n, c, h, w, dtype=torch.float32, seed=0) -> Tensor:
    """Halves of integers, so that sums are exact in every dtype; channels_last."""
    x = draw(n, c, h, w, layout="channels_last", seed=seed) - 1
    return (x.round() / 2).to(dtype)


@st.composite
def shapes(draw_one):
    n, h, w = (draw_one(st.integers(1, most)) for most in (3, 24, 60))
    return n, draw_one(st.integers(1, 9) | st.sampled_from([32, 67, 300])), h, w


def unpacked(codes: Tensor, bits: int) -> Tensor:
    """One integer for each element."""
    found = [codes >> place & (1 << bits) - 1 for place in range(0, 8, bits)]
    return torch.stack(found, -1).flatten()
