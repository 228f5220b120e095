"""What a picture and a training step would take on named cards: modelled, never measured."""

from dataclasses import dataclass

from pix2pixhd_fast._backend import BACKENDS, backend
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.profile import Subject, record, summarise

SIZE = (2048, 1024)
GENERATOR = {"netG": "local", "ngf": 32, "num_D": 3, "vgg_weights": "random"}
SYNTHESIS, TRAINING = "synthesis", "training step"
# Names, options and backends; eager has nothing to compute again.
_STEPS: tuple[tuple[str, dict[str, object], tuple[str, ...]], ...] = (
    (SYNTHESIS, {"isTrain": False}, BACKENDS),
    (TRAINING, {}, BACKENDS),
    (f"{TRAINING}, `--amp bf16`", {"amp": "bf16"}, BACKENDS),
    (f"{TRAINING}, `--checkpoint all`", {"checkpoint": "all"}, ("fused",)),
    (f"{TRAINING}, both", {"amp": "bf16", "checkpoint": "all"}, ("fused",)),
)


@dataclass(frozen=True)
class Modelled:
    """One step under one backend: seconds by card, bytes at the peak, kernels, bytes moved."""

    what: str
    backend: str
    seconds: dict[str, float]
    peak: int
    launches: int
    traffic: int


def modelled_steps(
    size: tuple[int, int] = SIZE, generator: dict[str, object] | None = None
) -> list[Modelled]:
    """Synthesis and training steps of the paper's G1+G2 at `size`, float32 with TF32 but where it
    says bf16, under each backend.

    Traced on fake tensors: some seconds each.
    """
    found = []
    for what, options, backends in _STEPS:
        subject = Subject(Options(**{**(generator or GENERATOR), **options}), size)
        for name in backends:
            with backend(name):
                summary = summarise(subject, record(subject))
            total = summary.total
            figures = (summary.peak.bytes, total.launches, total.traffic)
            found.append(Modelled(what, name, summary.seconds, *figures))
    return found
