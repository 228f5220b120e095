"""What a step costs in memory, kernels, bytes and arithmetic, traced without running it."""

from pix2pixhd_fast.profile.cards import CARDS, Card, modelled_seconds
from pix2pixhd_fast.profile.counting import register_flop_formulas
from pix2pixhd_fast.profile.fit import largest_batch, largest_size
from pix2pixhd_fast.profile.measure import Measured, measure
from pix2pixhd_fast.profile.subject import Subject, record
from pix2pixhd_fast.profile.summary import Summary, summarise
from pix2pixhd_fast.profile.timeline import draw_timeline

__all__ = [
    "CARDS",
    "Card",
    "Measured",
    "Subject",
    "Summary",
    "draw_timeline",
    "largest_batch",
    "largest_size",
    "measure",
    "modelled_seconds",
    "record",
    "summarise",
]

register_flop_formulas()
