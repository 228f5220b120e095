"""synthesise pictures from a folder of label maps, onto a results page"""

import argparse

from pix2pixhd_fast.cli.flags import add_option_flags, options_from
from pix2pixhd_fast.inference.synthesizer import Synthesizer
from pix2pixhd_fast.training.distributed import joined


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option_flags(parser, "test")


def run(arguments: argparse.Namespace) -> int:
    options = options_from(arguments, "test")
    with joined(options) as world:
        Synthesizer(options, world).run()
    return 0
