"""Memory of one call, and of a backend from its beginning in a process of its own."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace

import torch

from pix2pixhd_fast import _resident
from pix2pixhd_fast.benchmark.case import Case
from pix2pixhd_fast.benchmark.method import Call
from pix2pixhd_fast.benchmark.request import Request

STEPS = 2  # the second one has the optimisers' state


@dataclass(frozen=True)
class Growth:
    """Bytes. `peak`: the most that a call took beyond what was there before it, by PyTorch's
    allocator on a GPU, on the CPU of resident memory (so without what the process kept from
    earlier calls and gives out again). `reserved`: of the allocator, on a GPU only.
    """

    peak: int
    reserved: int | None = None


def growth(call: Call, device: torch.device) -> Growth:
    """Make one call and say what it took beyond inputs, weights and everything else before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        return Growth(peak, torch.cuda.max_memory_reserved(device))
    _resident.reset_peak()
    before = _resident.present_bytes()
    call()
    return Growth(max(_resident.peak_bytes() - before, 0))


def in_own_process(request: Request, case: Case, backend: str) -> Growth | None:
    """Build one backend's step in a new process, run it twice, and say what that took in all:
    inputs, weights and results included, libraries not. None where the process fails.
    """
    asked = {
        "request": asdict(
            replace(
                request,
                targets=(case.target,),
                sizes=(case.size,),
                dtypes=(case.dtype,) if case.dtype in request.dtypes else request.dtypes,
                passes=(case.pass_name,),
            )
        ),
        "name": case.name,
        "dtype": case.dtype,
        "backend": backend,
        "threads": torch.get_num_threads(),
    }
    child = subprocess.run(
        [sys.executable, "-m", "pix2pixhd_fast.benchmark.own_process"],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if child.returncode:
        return None
    return Growth(**json.loads(child.stdout.splitlines()[-1]))
