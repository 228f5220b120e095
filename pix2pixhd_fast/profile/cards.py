"""What a step would take on named cards: modelled from public figures, never measured here."""

from collections.abc import Iterable
from dataclasses import dataclass

from pix2pixhd_fast.profile.tracer import TracedLaunch

# Seconds charged to every kernel. Launching takes a GPU 2 to 3 us and eager PyTorch's host side 5
# to 10 us, much of it hidden behind long kernels: an assumption, not a measurement.
LAUNCH_SECONDS = 4e-6

SHEET = "data sheet"


@dataclass(frozen=True)
class Card:
    """GiB of memory; bytes/s; dense FLOP/s in float32, TF32 and bf16 (with float32 sums).

    `source` says which figures are not from the data sheet.
    """

    name: str
    memory: float
    bandwidth: float
    fp32: float
    tf32: float
    bf16: float
    source: str = SHEET


CARDS = (
    Card("A100 80GB", 80, 2.039e12, 19.5e12, 156e12, 312e12),
    Card(
        "H100 80GB", 80, 3.0e12, 67e12, 494e12, 798e12,
        "copy (read + write) and bf16 measured elsewhere; fp32, TF32 data sheet",
    ),
    Card(
        "H200", 141, 4.3e12, 67e12, 494e12, 790e12,
        "copy (read + write) and bf16 measured elsewhere; fp32, TF32 data sheet",
    ),
    Card("L40S", 48, 0.864e12, 91.6e12, 183e12, 362e12),
    Card("RTX 3090", 24, 0.936e12, 35.6e12, 35.6e12, 71e12),
    Card("RTX 4090", 24, 1.008e12, 82.6e12, 82.6e12, 165.2e12),
    Card("RTX 5090", 32, 1.792e12, 104.8e12, 104.8e12, 209.5e12),
    Card("RTX A6000", 48, 0.768e12, 38.7e12, 77.4e12, 154.8e12),
    Card("RTX 6000 Ada", 48, 0.960e12, 91.1e12, 182.1e12, 364.2e12),
)  # fmt: skip


def modelled_seconds(launches: Iterable[TracedLaunch], card: Card, tf32: bool = True) -> float:
    """The sum over kernels of max(bytes touched / bandwidth, FLOPs / rate) and of 4 us each.

    Data-sheet rates are reached by no real kernel, so the result is a lower bound for eager
    PyTorch on such cards. Convolutions of float32 are taken at the TF32 rate, PyTorch's default,
    or without `tf32` at that of float32.
    """
    single = card.tf32 if tf32 else card.fp32
    total = 0.0
    for cost in (launch.cost for launch in launches):
        if not cost.allocates:
            rate = card.bf16 if cost.low else single
            total += LAUNCH_SECONDS + max(cost.touched / card.bandwidth, cost.flops / rate)
    return total
