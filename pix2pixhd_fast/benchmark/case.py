"""What is compared: one piece of work, done by several backends."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

FORWARD, FORWARD_BACKWARD, STEP = "forward", "forward+backward", "step"
PASSES = (FORWARD, FORWARD_BACKWARD, STEP)
OWN_BACKENDS = ("eager", "eager_channels_last", "compile", "fused")
# Fused on the channels of a label map: counted from the ids on, or made beforehand.
ON_CHANNELS = ("fused_one_hot", "fused_channels")
PEERS = ("onnxruntime", "openvino", "tensorrt")
BACKENDS = OWN_BACKENDS + ON_CHANNELS + PEERS

# Does the work once; returns the results to compare, in groups like "output" and "gradient".
Step = Callable[[], Mapping[str, list[Tensor]]]


class Unavailable(Exception):
    """A backend that a case cannot run on, with the reason in two or three words."""


@dataclass(frozen=True)
class Case:
    """One piece of work.

    `name` tells the cases of one `target` apart; `pass_name` is one of `PASSES`; `size` is (width,
    height). `prepare(backend, dtype)` makes inputs and weights, the same for every backend, and
    returns the step; it raises `Unavailable`. The step of "eager" in "fp32" is what all are
    compared with, in relative L2 error of each group of results, at most `tolerance`; integer
    results have tolerance 0. `floor_bytes` are what any implementation has to read and write,
    `flops` additions and multiplications; None where nothing of use can be said. `warm_ups` are the
    calls before the first that is timed.
    """

    target: str
    name: str
    pass_name: str
    size: tuple[int, int]
    batch: int
    dtype: str
    prepare: Callable[[str, str], Step]
    backends: tuple[str, ...]
    tolerance: float
    floor_bytes: int | None = None
    flops: int | None = None
    warm_ups: int = 1

    @property
    def title(self) -> str:
        """One line for headings."""
        width, height = self.size
        return (
            f"{self.target} {self.pass_name}, {self.name}, {width}x{height}, batch {self.batch}, "
            f"{self.dtype}"
        )
