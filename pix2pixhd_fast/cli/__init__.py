"""The command `pix2pixhd-fast`: parses flags, prints, sets the exit status; nothing else."""

from pix2pixhd_fast.cli.main import main

__all__ = ["main"]
