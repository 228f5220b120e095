"""What a picture and a training step would take on named cards: modelled, never measured."""

from dataclasses import dataclass

from pix2pixhd_fast._backend import BACKENDS, backend
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.profile import Subject, record, summarise

SIZE = (2048, 1024)
GENERATOR = {"netG": "local", "ngf": 32, "num_D": 3, "vgg_weights": "random"}


@dataclass(frozen=True)
class Modelled:
    """One step under one backend: seconds by card, bytes at the peak."""

    what: str
    backend: str
    seconds: dict[str, float]
    peak: int


def modelled_steps(
    size: tuple[int, int] = SIZE, generator: dict[str, object] | None = None
) -> list[Modelled]:
    """Synthesis and training step of the paper's G1+G2 at `size`, float32 with TF32, each backend.

    Traced on fake tensors: some seconds each.
    """
    found = []
    for what, training in (("synthesis", False), ("training step", True)):
        subject = Subject(Options(isTrain=training, **(generator or GENERATOR)), size)
        for name in BACKENDS:
            with backend(name):
                summary = summarise(subject, record(subject))
            found.append(Modelled(what, name, summary.seconds, summary.peak.bytes))
    return found
