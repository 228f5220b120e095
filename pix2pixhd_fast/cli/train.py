"""train G, D and E on folders of label maps and pictures"""

import argparse

from pix2pixhd_fast.cli.flags import add_option_flags, options_from
from pix2pixhd_fast.training.distributed import joined
from pix2pixhd_fast.training.trainer import Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option_flags(parser, "train")


def run(arguments: argparse.Namespace) -> int:
    options = options_from(arguments, "train")
    with joined(options) as world:
        Trainer(options, world).run()
    return 0
