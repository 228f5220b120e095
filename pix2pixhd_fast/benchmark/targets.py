"""The names of everything that can be run, and the cases behind them."""

from collections.abc import Iterator

from pix2pixhd_fast.benchmark.case import FORWARD, ON_CHANNELS, Case
from pix2pixhd_fast.benchmark.layers import NETWORKS
from pix2pixhd_fast.benchmark.networks import MODEL_TARGETS, model_steps, network_passes
from pix2pixhd_fast.benchmark.op_case import op_passes
from pix2pixhd_fast.benchmark.ops import OPS
from pix2pixhd_fast.benchmark.request import Request
from pix2pixhd_fast.errors import InputError

TARGETS = (*OPS, *NETWORKS, *MODEL_TARGETS)
# What runs where nobody says what: about two minutes on two cores.
QUICK = (("norm_act_pad", (2048, 1024)), ("instance_boundaries", (2048, 1024)), ("G", (1024, 512)))
_SMALLER = ("D", "E", "VGG", "training_step")


def check_targets(names: tuple[str, ...]) -> None:
    """Raise `InputError` for a name that is not in `TARGETS`."""
    for name in names:
        if name not in TARGETS:
            raise InputError(f"target must be one of {', '.join(TARGETS)}, got {name!r}")


def cases(request: Request) -> Iterator[Case]:
    """The cases of a request, one after another; nothing is drawn before it is prepared."""
    check_targets(request.targets)
    pairs = [(target, default_size(target)) for target in request.targets] or list(QUICK)
    seen = set()
    for target, default in pairs:
        for size in request.sizes or (default,):
            for dtype in request.dtypes:
                for case in _cases(target, request, size, dtype):
                    key = (target, case.name, case.pass_name, size, case.dtype)
                    if key not in seen and _asked_for(case, request):
                        seen.add(key)
                        yield case


def default_size(target: str) -> tuple[int, int]:
    """The size (width, height) at which a target runs where nobody says one."""
    return (1024, 512) if target in _SMALLER else (2048, 1024)


def _cases(target: str, request: Request, size: tuple[int, int], dtype: str) -> Iterator[Case]:
    if target in OPS:
        for op in OPS[target](request, size, dtype):
            yield from op_passes(target, op, request, size, dtype)
    elif target in NETWORKS:
        yield from network_passes(target, request, size, dtype)
    else:
        yield from model_steps(target, request, size, dtype)


def _asked_for(case: Case, request: Request) -> bool:
    """Networks run forward only, unless a pass is asked for; "fused" alone beside backends that a
    case has not would be a row without a baseline.
    """
    on_channels = set(request.backends) & set(ON_CHANNELS)
    if on_channels and not on_channels & set(case.backends):
        return False
    if request.passes:
        return case.pass_name in request.passes
    return case.target not in NETWORKS or case.pass_name == FORWARD
