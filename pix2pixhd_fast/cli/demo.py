"""draw a data set, train a small model on it, and show what it learnt"""

import argparse
from pathlib import Path

from pix2pixhd_fast.demo import Demo
from pix2pixhd_fast.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", default="demo", help="where everything is written (default: demo)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=4.5,
        help="about how long to train, at most 8 epochs (default: 4.5)",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws other scenes (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")


def run(arguments: argparse.Namespace) -> int:
    if not arguments.minutes > 0:
        raise InputError(f"minutes must be positive, got {arguments.minutes}")
    if arguments.seed < 0:
        raise InputError(f"seed must be at least 0, got {arguments.seed}")
    folder = Path(arguments.folder)
    page = Demo(folder, arguments.minutes, arguments.seed, arguments.device).run()
    print(f"open {page}")
    return 0
