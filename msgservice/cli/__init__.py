"""The command line: an edge, which only calls the public API.

Its first moments stand here: what a command is, and all that needs, is imported behind them.
"""

from __future__ import annotations

import os
import sys

from msgservice.cli.signals import end_early_when_interrupted


def run() -> None:
    """Run the command that the process was called with."""
    end_early_when_interrupted()
    if sys.stdout is None:  # closed: the next file that is opened would be it
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115, PTH123
    from msgservice.cli.main import main

    main()
