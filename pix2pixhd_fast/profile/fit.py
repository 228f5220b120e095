"""The largest picture and the largest batch that fit a given memory."""

from collections.abc import Callable
from dataclasses import replace

from pix2pixhd_fast.profile.subject import Subject, record
from pix2pixhd_fast.profile.summary import live_bytes


def peak_bytes(subject: Subject) -> int:
    """The peak of one step."""
    return int(live_bytes(record(subject)).max())


def largest_size(subject: Subject, limit: int) -> tuple[tuple[int, int], int] | None:
    """The largest (width, height) of the subject's proportions whose step takes at most `limit`
    bytes, and its peak; None if the smallest takes more.

    Heights are multiples of what the networks need, widths the nearest such multiple.
    """
    multiple = subject.options.size_multiple
    ratio = subject.size[0] / subject.size[1]

    def size(n: int) -> tuple[int, int]:
        return max(round(n * ratio), 1) * multiple, n * multiple

    n, peak = _largest(lambda n: peak_bytes(replace(subject, size=size(n))), limit, 2)
    return (size(n), peak) if n else None


def largest_batch(subject: Subject, limit: int) -> tuple[int, int] | None:
    """The largest batch at the subject's size that takes at most `limit` bytes, and its peak; None
    if one picture takes more.
    """

    def peak(n: int) -> int:
        return peak_bytes(replace(subject, options=replace(subject.options, batchSize=n)))

    n, bytes = _largest(peak, limit, 1)
    return (n, bytes) if n else None


def _largest(peak: Callable[[int], int], limit: int, power: int) -> tuple[int, int]:
    """The largest n >= 1 with peak(n) <= limit and its peak; (0, peak(1)) if there is none.

    `peak` must rise. It is tried where a line in n**power through the two highest known points
    meets the limit, which is nearly right from the second try on.
    """
    known = {1: peak(1)}
    if known[1] > limit:
        return 0, known[1]
    low, high = 1, None
    while high is None or high - low > 1:
        guess = _crossing(known, limit, power) if len(known) > 1 else 4
        guess = min(max(guess, low + 1), 4 * low if high is None else high - 1)
        known[guess] = peak(guess)
        if known[guess] <= limit:
            low = guess
        else:
            high = guess
    return low, known[low]


def _crossing(known: dict[int, int], limit: int, power: int) -> int:
    (a, peak_a), (b, peak_b) = sorted(known.items(), key=lambda item: abs(item[1] - limit))[:2]
    slope = (peak_b - peak_a) / (b**power - a**power)
    if slope <= 0:
        return 2 * max(a, b)
    return int(max(a**power + (limit - peak_a) / slope, 1) ** (1 / power) + 1e-9)
