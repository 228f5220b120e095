"""The choice between the reference arithmetic and the fused kernels."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pix2pixhd_fast.errors import InputError

BACKENDS = ("eager", "fused")


class _Choice(threading.local):
    """Each thread's own choice; torch.compile before 2.14 cannot trace a ContextVar."""

    name = "fused"


_choice = _Choice()


def current_backend() -> str:
    """Return the backend in force in this thread: "eager" or "fused"."""
    return _choice.name


def set_backend(name: str) -> None:
    """Choose the backend for what follows in this thread.

    "eager" runs every layer as the ordinary PyTorch module it is: the baseline, the reference and
    the exportable graph. "fused" (the default) runs our kernels wherever there is one for the
    layer, and the ordinary module elsewhere.
    """
    _check(name)
    _choice.name = name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use the backend `name` ("eager" or "fused") inside a `with` block."""
    _check(name)
    before, _choice.name = _choice.name, name
    try:
        yield
    finally:
        _choice.name = before


def _check(name: str) -> None:
    if name not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
