"""What a user asks for, checked before any work."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from pix2pixhd_fast.benchmark.case import BACKENDS, PASSES
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import Options

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
GPU_DTYPES = ("fp16", "tf32")
LARGEST_BATCH = 4
# What the paper and the original's scripts use at a width, from the widest; flags override it.
GENERATORS = (
    (4096, {"netG": "local", "n_local_enhancers": 2, "ngf": 16, "num_D": 3}),
    (2048, {"netG": "local", "ngf": 32, "num_D": 3}),
    (0, {"netG": "global"}),
)


@dataclass(frozen=True)
class Request:
    """What to run. Empty `sizes`, `backends` and `passes` mean the defaults of each target.

    `flags` are fields of `Options` that the user gave; the others follow from the size. `repeats` 0
    lets the time of a call decide; `threads` 0 leaves PyTorch's number. Raises `InputError`.
    """

    targets: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...] = ()
    dtypes: tuple[str, ...] = ("fp32",)
    backends: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    batch: int = 1
    flags: Mapping[str, object] = field(default_factory=dict)
    device: str = "cpu"
    threads: int = 0
    repeats: int = 0
    all_shapes: bool = False
    memory: bool = False

    def __post_init__(self):
        _check_words("dtype", self.dtypes, tuple(DTYPES))
        _check_words("backend", self.backends, BACKENDS)
        _check_words("pass", self.passes, PASSES)
        for dtype in self.dtypes:
            if dtype in GPU_DTYPES and not self.device.startswith("cuda"):
                raise InputError(
                    f"dtype {dtype} needs a GPU, and the device is {self.device}: use fp32 or bf16"
                )
        if not 1 <= self.batch <= LARGEST_BATCH:
            raise InputError(f"batch must be 1 to {LARGEST_BATCH}, got {self.batch}")
        for name in ("threads", "repeats"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.flags.get("amp", "off") != "off":
            raise InputError(f"amp follows from dtype here, got {self.flags['amp']}: use dtype")

    def options(self, size: tuple[int, int], **changes: object) -> Options:
        """The options at a size: the paper's generator for its width, flags, then `changes`."""
        paper = next(values for width, values in GENERATORS if size[0] >= width)
        given = {"vgg_weights": "random", **paper, **self.flags}
        return Options(**{**given, "batchSize": self.batch, **changes})


def _check_words(name: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    for word in given:
        if word not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, got {word!r}")
