"""Runs cases: first whether results agree, then times, memory and rates, as rows of the table."""

import datetime
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from pix2pixhd_fast.benchmark import machine, results
from pix2pixhd_fast.benchmark.agreement import kept, relative_error
from pix2pixhd_fast.benchmark.case import PEERS, Case, Step, Unavailable
from pix2pixhd_fast.benchmark.ceilings import Ceilings
from pix2pixhd_fast.benchmark.gpu_state import gpu_state
from pix2pixhd_fast.benchmark.memory import growth, in_own_process
from pix2pixhd_fast.benchmark.method import (
    Clock,
    calls_per_sample,
    clock_of,
    interleave,
    number_of_repeats,
    speed_up,
    spread,
    warm_up,
)
from pix2pixhd_fast.benchmark.request import Request
from pix2pixhd_fast.benchmark.results import OK, WRONG, Row
from pix2pixhd_fast.benchmark.targets import NETWORKS, check_targets

Tell = Callable[[str], None]
# A peer may use its own arithmetic: it is told from a wrong one, not held to ours.
PEER_FACTOR = 10
# What others wrote may fail in its own ways, without an end to the run.
FOREIGN = ("compile", *PEERS)


@dataclass
class _Contestant:
    """A backend of a case: its step, or why there is none."""

    backend: str
    step: Step | None = None
    error: float | None = None
    reason: str = ""


class Runner:
    """Runs the cases of a request on its device; `tell` gets a line of progress now and then.

    `clock` and `ceilings` are for tests.
    """

    def __init__(
        self,
        request: Request,
        tell: Tell,
        clock: Clock | None = None,
        ceilings: Ceilings | None = None,
    ):
        check_targets(request.targets)
        self.request = request
        self._tell = tell
        _warn_of_others(tell)
        self.device = torch.device(request.device)
        if request.threads:
            torch.set_num_threads(request.threads)
        self._clock = clock or clock_of(self.device)
        self._ceilings = ceilings or Ceilings(self.device)
        self._about = {
            "device": machine.device_name(self.device),
            "threads": str(torch.get_num_threads()),
            "commit": machine.commit(),
        }

    def run(self, cases: Iterator[Case]) -> Iterator[tuple[Case, list[Row]]]:
        """The rows of each case, one per backend; status "ok", "wrong", or why it did not run.

        A wrong one has its error and no time.
        """
        for case in cases:
            self._tell(case.title)
            yield case, self._measure(case)
            gc.collect()

    def _measure(self, case: Case) -> list[Row]:
        contestants = self._checked(case)
        able = {c.backend: c.step for c in contestants if c.step is not None}
        figures = self._timed(case, able) if able else {}
        for backend, step in able.items():
            figures[backend] |= self._memory(case, backend, step)
        return [self._row(case, c, figures.get(c.backend, {})) for c in contestants]

    def _checked(self, case: Case) -> list[_Contestant]:
        """Run each backend once and compare it with eager float32."""
        exact = "fp32" if case.dtype in ("bf16", "fp16", "tf32") else case.dtype
        baseline = case.prepare("eager", exact)
        self._tell("  checking: eager, the reference")
        reference = kept(baseline())
        found = []
        for backend in self._backends(case):
            own = backend == "eager" and exact == case.dtype
            found.append(
                _Contestant(backend, baseline, 0.0)
                if own
                else self._check(case, backend, reference)
            )
        return found

    def _check(self, case: Case, backend: str, reference: dict) -> _Contestant:
        self._tell(f"  checking: {backend}")
        try:
            if backend not in case.backends:
                raise Unavailable(f"not for {case.target}")
            step = case.prepare(backend, case.dtype)
            error = relative_error(step(), reference)
        except Unavailable as why:
            return _Contestant(backend, reason=str(why))
        except Exception as error:
            if backend not in FOREIGN:
                raise
            return _Contestant(backend, reason=f"failed: {type(error).__name__}")
        allowed = case.tolerance * (PEER_FACTOR if backend in PEERS else 1)
        # not `error > allowed`: that is false for a NaN
        if not error <= allowed:
            return _Contestant(backend, error=error, reason=WRONG)
        return _Contestant(backend, step, error)

    def _backends(self, case: Case) -> tuple[str, ...]:
        if self.request.backends:
            return self.request.backends
        more = ("eager_channels_last",) if case.target in NETWORKS else ()
        return ("eager", *more, "fused")

    def _timed(self, case: Case, steps: dict[str, Step]) -> dict[str, Row]:
        seconds = {}
        for backend, step in steps.items():
            self._tell(f"  warming up: {backend}")
            seconds[backend] = warm_up(step, self._clock, case.warm_ups)
        per_sample = {backend: calls_per_sample(s) for backend, s in seconds.items()}
        total = sum(seconds[backend] * n for backend, n in per_sample.items())
        repeats = self.request.repeats or number_of_repeats(total)

        def tell(repeat: int, latest: dict[str, float]) -> None:
            times = ", ".join(f"{backend} {s * 1e3:.4g} ms" for backend, s in latest.items())
            self._tell(f"  repeat {repeat}/{repeats}: {times}")

        samples = interleave(steps, per_sample, repeats, self._clock, tell)
        return {
            backend: {
                "calls": str(per_sample[backend]),
                **_time_columns(samples, backend),
                **self._rates(case, spread(values).median),
                **self._gpu_columns(steps[backend], spread(values).median),
            }
            for backend, values in samples.items()
        }

    def _rates(self, case: Case, seconds: float) -> Row:
        product = self._ceilings.product(case.dtype)
        return {
            "images_per_s": _digits(case.batch / seconds),
            "gb_per_s": _digits(case.floor_bytes and case.floor_bytes / seconds / 1e9),
            "copy_gb_per_s": _digits(self._ceilings.copy() / 1e9),
            "gflop_per_s": _digits(case.flops and case.flops / seconds / 1e9),
            "matmul_gflop_per_s": _digits(product and product / 1e9),
        }

    def _gpu_columns(self, step: Step, seconds: float) -> Row:
        state = gpu_state(step, self._clock, seconds, self.device)
        if state is None:
            return {}
        return {
            "joules": _digits(state.joules),
            "sm_mhz": str(state.sm_mhz),
            "temperature_c": str(state.temperature_c),
        }

    def _memory(self, case: Case, backend: str, step: Step) -> Row:
        gc.collect()
        call = growth(step, self.device)
        found = {"call_bytes": str(call.peak)}
        if call.reserved is not None:
            found["reserved_bytes"] = str(call.reserved)
        if self.request.memory:
            self._tell(f"  memory of {backend}, in a process of its own")
            own = in_own_process(self.request, case, backend)
            found["process_bytes"] = "" if own is None else str(own.peak)
        return found

    def _row(self, case: Case, contestant: _Contestant, figures: Row) -> Row:
        row = dict.fromkeys(results.COLUMNS, "")
        now = datetime.datetime.now(datetime.UTC)
        return row | {
            "target": case.target,
            "case": case.name,
            "pass": case.pass_name,
            "backend": contestant.backend,
            "size": f"{case.size[0]}x{case.size[1]}",
            "batch": str(case.batch),
            "dtype": case.dtype,
            **self._about,
            "versions": machine.versions(contestant.backend),
            "date": now.isoformat(timespec="seconds"),
            "status": contestant.reason or OK,
            "error": "" if contestant.error is None else f"{contestant.error:.3g}",
            **figures,
        }


def _warn_of_others(tell: Tell) -> None:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.5 * cores:
        tell(f"the machine is busy (load {load:.1f} on {cores} cores): times will spread")


def _time_columns(samples: dict[str, list[float]], backend: str) -> Row:
    first = next(iter(samples))
    times = spread(samples[backend])
    ratio = speed_up(samples[first], samples[backend])
    return {
        "repeats": str(len(samples[backend])),
        "ratio_to": first,
        "median_ms": _digits(times.median * 1e3),
        "p20_ms": _digits(times.p20 * 1e3),
        "p80_ms": _digits(times.p80 * 1e3),
        "ratio": _digits(ratio.median),
        "ratio_p20": _digits(ratio.p20),
        "ratio_p80": _digits(ratio.p80),
    }


def _digits(value: float | None) -> str:
    return "" if not value else f"{value:.5g}"
