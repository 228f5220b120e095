"""Flags of the command line, made from the fields of `Options`."""

import argparse
from dataclasses import Field, fields

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import NO_LIMIT, Options

_ALIASES = {"style_seed": ["--style-seed"]}
# flags of the original that lead to TensorRT and ONNX there
_REFUSED = ("export_onnx", "engine", "onnx")


def add_option_flags(parser: argparse.ArgumentParser, command: str) -> None:
    """Add a flag for every option of `command` ("train" or "test"), with the original's name."""
    for option in _options_of(command):
        flag = f"--{option.name}"
        help = option.metadata["help"].replace("%", "%%")
        if option.type is bool:
            parser.add_argument(flag, action="store_true", help=help)
        else:
            text = {NO_LIMIT: "all", "": "none"}.get(option.default, option.default)
            choices = option.metadata["choices"]
            parser.add_argument(
                flag,
                *_ALIASES.get(option.name, []),
                type=option.type,
                default=argparse.SUPPRESS,
                metavar="{" + ",".join(choices) + "}" if choices else option.type.__name__.upper(),
                help=f"{help} (default: {text})",
            )
    for name in _REFUSED:
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def options_from(
    arguments: argparse.Namespace, command: str, isTrain: bool | None = None
) -> Options:
    """Build the `Options` of `command` from parsed flags; `isTrain` by default as it says."""
    given = vars(arguments)
    for name in _REFUSED:
        if name in given:
            raise InputError(f"--{name} is not available: networks run in PyTorch here")
    names = {option.name for option in _options_of(command)}
    chosen = {name: value for name, value in given.items() if name in names}
    return Options(isTrain=command == "train" if isTrain is None else isTrain, **chosen)


def _options_of(command: str) -> list[Field]:
    return [o for o in fields(Options) if o.metadata["phase"] in ("both", command)]
