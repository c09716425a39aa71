"""Signals before there is a reactor to hear them, and after it has ended.

While a command runs they are the reactor's, and `session` says what becomes of the command.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

from msgservice.cli.exit_codes import ExitCode

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _end(number: int, frame: FrameType | None) -> None:
    # Nothing was done yet, so there is nothing to close. Raising would end in the middle of an
    # import, and be told as that.
    os._exit(ExitCode.INTERRUPTED)


def end_early_when_interrupted() -> None:
    """Let a signal end this process with its exit code from now on, where it is not ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _end)


def leave_to(reactor: Any) -> None:
    """Let SIGINT be a reactor's that has begun to run: it takes that of nobody by itself."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, reactor.sigInt)


def give_back() -> None:
    """Let the reactor that is run next take SIGINT, as it does where it is Python's own."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore() -> None:
    """Let no signal replace the exit code any more.

    The interpreter gives up what Python code handles while it ends, and a signal that came then
    would be the end.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
