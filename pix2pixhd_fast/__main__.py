"""`python -m pix2pixhd_fast` is `pix2pixhd-fast`."""

import sys

from pix2pixhd_fast.cli import main

sys.exit(main())
