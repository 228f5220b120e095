"""encode the instances of a data set and cluster their features by class, for test to draw from"""

import argparse
from pathlib import Path

from pix2pixhd_fast.cli.flags import add_option_flags, options_from
from pix2pixhd_fast.features.clusters import Encoded, cluster
from pix2pixhd_fast.features.encoding import FeatureEncoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--convert",
        metavar="FILE",
        help="cluster this features.npy of the original (or .npz) instead of encoding pictures; "
        "the clusters are written beside it",
    )
    add_option_flags(parser, "test")
    parser.set_defaults(phase="train")


def run(arguments: argparse.Namespace) -> int:
    options = options_from(arguments, "test")
    name = f"features_clustered_{options.n_clusters:03d}.npz"
    if arguments.convert:
        encoded = Encoded.load(arguments.convert)
        bank, path = cluster(encoded, options.n_clusters, options.seed), Path(arguments.convert)
        bank.save(path.with_name(name))
        folder = path.parent
    else:
        encoder = FeatureEncoder(options)
        encoded, bank = encoder.encode()
        folder = encoder.folder
    clusters = sum(len(rows) for rows in bank.centers.values())
    print(
        f"{len(encoded.labels)} instances, {clusters} clusters of {len(bank.centers)} classes: "
        f"{folder / name}"
    )
    return 0
