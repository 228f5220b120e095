"""write the feature maps of a data set to files, for training with --load_features"""

import argparse

from pix2pixhd_fast.cli.flags import add_option_flags, options_from
from pix2pixhd_fast.features.encoding import DTYPES, FeatureEncoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16")
    add_option_flags(parser, "test")
    parser.set_defaults(phase="train")


def run(arguments: argparse.Namespace) -> int:
    folder = FeatureEncoder(options_from(arguments, "test")).precompute(arguments.dtype)
    print(f"wrote {folder}")
    return 0
