"""A summary as text for a terminal."""

from pix2pixhd_fast.profile.cards import CARDS
from pix2pixhd_fast.profile.measure import Measured
from pix2pixhd_fast.profile.summary import ModuleFigures, Summary

GIB = 2**30
RESERVE = 1.0


def summary_lines(summary: Summary) -> list[str]:
    """Totals, the peak, a table of modules and a table of cards."""
    return [*_totals(summary), "", *_modules(summary), "", *_cards(summary)]


def measured_lines(measured: Measured, traced: int) -> list[str]:
    """What was measured, beside the traced peak."""
    difference = measured.peak / traced - 1
    lines = [
        f"measured on {measured.device}: peak {_gib(measured.peak)}, traced {_gib(traced)} "
        f"({difference:+.1%}), {measured.seconds:.2f} s"
    ]
    if measured.reserved is not None:
        process = "unknown" if measured.process is None else _gib(measured.process)
        lines.append(f"  reserved by PyTorch {_gib(measured.reserved)}, process by NVML {process}")
    return lines


def _totals(summary: Summary) -> list[str]:
    total, peak = summary.total, summary.peak
    kernels = total.launches - total.allocations
    lines = [
        f"{summary.subject}  (traced, nothing was run)",
        f"  peak    {_gib(peak.bytes)}: {_kinds(peak.kinds)}",
        f"          at {peak.op} of {peak.module}, {peak.phase}",
        *(f"          {_gib(count)}  {name}, {kind}" for name, kind, count in peak.largest),
        f"  steady  {_gib(sum(summary.steady.values()))}: {_kinds(summary.steady)}",
        f"  inputs  {_gib(summary.inputs)} at most",
        f"  launches {total.launches} ({kernels} kernels, {total.allocations} allocations)",
        f"  traffic {_gib(total.traffic)} ({_gib(total.touched)} touched)",
        f"  arithmetic {_gmac(total.flops_forward + total.flops_backward)} GMAC",
    ]
    return lines


def _modules(summary: Summary) -> list[str]:
    width = max(len(m.name) for m in (*summary.modules, summary.total))
    heading = ("GiB", "weights", "own peak", "at peak", "launches", "traffic", "GMAC fwd", "bwd")
    rows = [_module_row(m, width) for m in (*summary.modules, summary.total)]
    return [f"  {heading[0]:<{width}}" + "".join(f"{h:>10}" for h in heading[1:]), *rows]


def _module_row(m: ModuleFigures, width: int) -> str:
    sizes = "".join(f"{count / GIB:>10.2f}" for count in (m.weights, m.peak, m.at_peak))
    flops = "".join(f"{_gmac(f):>10}" for f in (m.flops_forward, m.flops_backward))
    return f"  {m.name:<{width}}{sizes}{m.launches:>10}{m.traffic / GIB:>10.2f}{flops}"


def _cards(summary: Summary) -> list[str]:
    lines = [
        "  modelled, not measured: sum over kernels of max(bytes/bandwidth, FLOPs/rate) + 4 us"
    ]
    for card in CARDS:
        seconds = summary.seconds[card.name]
        fits = "fits" if summary.peak.bytes / GIB + RESERVE <= card.memory else "too large"
        lines.append(
            f"  {card.name:<14}{card.memory:>5} GiB  {fits:<10}{seconds * 1e3:>9.1f} ms  "
            f"({card.source})"
        )
    return lines


def _kinds(kinds: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count / GIB:.2f}" for kind, count in kinds.items() if count)


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"


def _gmac(flops: int) -> str:
    return f"{flops / 2e9:.1f}"
