"""Times ops, networks and steps on several backends, keeps the rows and reports them."""

from pix2pixhd_fast.benchmark.compare import change_lines, changes, older_rows
from pix2pixhd_fast.benchmark.report import write_report
from pix2pixhd_fast.benchmark.request import Request
from pix2pixhd_fast.benchmark.runner import Runner
from pix2pixhd_fast.benchmark.targets import TARGETS, cases

__all__ = [
    "TARGETS",
    "Request",
    "Runner",
    "cases",
    "change_lines",
    "changes",
    "older_rows",
    "write_report",
]
