"""say what a size costs in memory, kernels and arithmetic, without running it"""

import argparse
import json
from dataclasses import asdict

from pix2pixhd_fast._backend import BACKENDS, backend
from pix2pixhd_fast.cli.flags import add_option_flags, options_from
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.profile import (
    Subject,
    draw_timeline,
    largest_batch,
    largest_size,
    measure,
    record,
    summarise,
)
from pix2pixhd_fast.profile.text import RESERVE, measured_lines, summary_lines

GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", default="2048x1024", help="width x height (default: 2048x1024)")
    parser.add_argument(
        "--mode", choices=("train", "infer"), default="train", help="(default: train)"
    )
    parser.add_argument(
        "--weights",
        default="fp32",
        help="fp32, or for --mode infer bf16 or fp16: the whole generator in that type",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="fused", help="(default: fused)")
    parser.add_argument("--depth", type=int, default=1, help="parts of module names (default: 1)")
    parser.add_argument(
        "--fit", type=float, metavar="GIB", help="find the largest size and batch for this memory"
    )
    parser.add_argument(
        "--reserve",
        type=float,
        default=RESERVE,
        metavar="GIB",
        help=f"of --fit, for context, workspaces and fragmentation (default: {RESERVE})",
    )
    parser.add_argument("--timeline", metavar="FILE", help="write a PNG of the memory over time")
    parser.add_argument("--no_tf32", action="store_true", help="model float32 without TF32")
    parser.add_argument(
        "--measure", action="store_true", help="run two real steps too, on --device, and compare"
    )
    parser.add_argument("--json", action="store_true", help="print JSON; sizes in bytes")
    add_option_flags(parser, "train")


def run(arguments: argparse.Namespace) -> int:
    subject = _subject(arguments)
    with backend(arguments.backend):
        lines, found = _examine(subject, arguments)
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(lines))
    return 0


def _examine(subject: Subject, arguments: argparse.Namespace) -> tuple[list[str], dict]:
    recording = record(subject)
    summary = summarise(subject, recording, arguments.depth, not arguments.no_tf32)
    if arguments.timeline:
        draw_timeline(recording, summary, arguments.timeline)
    peak, found = summary.peak.bytes, summary.as_dict()
    lines = summary_lines(summary)
    if arguments.fit is not None:
        limit = int((arguments.fit - arguments.reserve) * GIB)
        found["fit"] = fit = {
            "limit": limit,
            "size": largest_size(subject, limit),
            "batch": largest_batch(subject, limit),
        }
        lines += ["", *_fit_lines(fit, arguments.fit)]
    if arguments.measure:
        measured = measure(subject, subject.options.device)
        found["measured"] = asdict(measured)
        lines += ["", *measured_lines(measured, peak)]
    return lines, found


def _subject(arguments: argparse.Namespace) -> Subject:
    if arguments.depth < 1:
        raise InputError(f"depth must be at least 1, got {arguments.depth}")
    if arguments.fit is not None and not arguments.fit > arguments.reserve >= 0:
        raise InputError(
            f"fit must be more than reserve ({arguments.reserve} GiB), got {arguments.fit}"
        )
    if "vgg_weights" not in arguments:
        arguments.vgg_weights = "random"
    options = options_from(arguments, "train", isTrain=arguments.mode == "train")
    return Subject(options, parse_size(arguments.size), arguments.weights)


def parse_size(text: str) -> tuple[int, int]:
    """A size like 2048x1024 as (width, height); `InputError` for another text."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise InputError(f"size must be WIDTHxHEIGHT like 2048x1024, got {text!r}")
    return int(sides[0]), int(sides[1])


def _fit_lines(fit: dict, gib: float) -> list[str]:
    limit = f"{gib:g} GiB ({fit['limit'] / GIB:.2f} without the reserve)"
    if not fit["size"]:
        return [f"nothing of these proportions fits {limit}"]
    (width, height), peak = fit["size"]
    lines = [f"largest size for {limit}: {width}x{height}, {peak / GIB:.2f} GiB"]
    if fit["batch"]:
        n, peak = fit["batch"]
        return [*lines, f"largest batch for {limit} at the given size: {n}, {peak / GIB:.2f} GiB"]
    return [*lines, f"at the given size not even one picture fits {limit}"]
