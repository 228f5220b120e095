"""What a step would take on named cards: modelled from public figures, never measured here."""

from collections.abc import Iterable
from dataclasses import dataclass

from pix2pixhd_fast.profile.tracer import TracedLaunch

# Seconds charged to every kernel. Launching takes a GPU 2 to 3 us and eager PyTorch's host side 5
# to 10 us, much of it hidden behind long kernels: an assumption, not a measurement.
LAUNCH_SECONDS = 4e-6

# Of what cards are sold with, GDDR6 gives one part in 16 to error correction where that is switched
# on from the factory (L4, A10, L40S). Tensor rates are dense: data sheets often print twice that,
# for sparse weights. GeForce cards sum fp16 and bf16 in float32 at half of their rate with fp16
# sums.
SHEET = "data sheet"
MEASURED = "copy (read + write) and bf16 measured elsewhere; fp32, TF32 data sheet"


@dataclass(frozen=True)
class Card:
    """GiB of memory that programs see; bytes/s; dense FLOP/s in float32, TF32, bf16 (float32 sums).

    `source` says where the figures are from.
    """

    name: str
    memory: float
    bandwidth: float
    fp32: float
    tf32: float
    bf16: float
    source: str = SHEET


CARDS = (
    Card("A100 80GB SXM", 80, 2.039e12, 19.5e12, 156e12, 312e12),
    Card("H100 80GB SXM", 80, 3.0e12, 67e12, 494.5e12, 798e12, MEASURED),
    Card("H200 SXM", 140, 4.3e12, 67e12, 494.5e12, 790e12, MEASURED),
    Card("L40S", 45, 0.864e12, 91.6e12, 183e12, 362e12),
    Card("L4", 22.5, 0.300e12, 30.3e12, 60e12, 121e12, "data sheet, half of the sparse rates"),
    Card("A10", 22.5, 0.600e12, 31.2e12, 62.5e12, 125e12),
    Card("RTX 3090", 24, 0.936e12, 35.6e12, 35.6e12, 71e12, "white paper of GA102"),
    Card("RTX 4090", 24, 1.008e12, 82.6e12, 82.6e12, 165.2e12, "white paper of Ada"),
    Card("RTX 5090", 32, 1.792e12, 104.8e12, 104.8e12, 209.5e12, "white paper of Blackwell"),
    Card("RTX A6000", 48, 0.768e12, 38.7e12, 77.4e12, 154.8e12, "white paper of GA102"),
    Card("RTX 6000 Ada", 48, 0.960e12, 91.1e12, 182.1e12, 364.2e12, "white paper of Ada"),
)


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
