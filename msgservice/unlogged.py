"""Standard error of a program that has no log: what a client or receiver waits for is said there.

Twisted keeps all but critical events to itself until a program begins its log, and most programs
of a few lines never do. What is logged stands where it happens; nothing is worded here.
"""

from __future__ import annotations

import sys
from typing import cast

from twisted.logger import (
    ILogObserver,
    LogEvent,
    LogLevel,
    LogPublisher,
    formatEvent,
    globalLogBeginner,
    globalLogPublisher,
)

from msgservice.core.reasons import one_line
from msgservice.log_lines import OURS

# The key of an event that is no warning and said all the same: what was waited for is there.
SAID = "said_without_log"
_LEVELS = (LogLevel.warn, LogLevel.error)  # critical events are said by Twisted itself


def speak(publisher: LogPublisher = globalLogPublisher) -> None:
    """Standard error has our warnings, and what ends them, until the program begins its log.

    Whoever makes a client or a receiver for a program calls this; the first call does it.
    """
    publisher.addObserver(cast("ILogObserver", _say))


def _say(event: LogEvent) -> None:
    namespace = event.get("log_namespace") or ""
    if namespace.partition(".")[0] != OURS or _has_log():
        return
    if event.get("log_level") not in _LEVELS and SAID not in event:
        return
    text = formatEvent(event)
    failure = event.get("log_failure")
    if failure is not None:
        text = f"{text}: {failure.type.__name__}: {failure.getErrorMessage()}"
    if sys.stderr is None or sys.stderr.closed:
        return
    try:
        sys.stderr.write(f"{OURS}: {one_line(text)}\n")
        sys.stderr.flush()
    except OSError:
        return  # nobody reads it, and that is no trouble of who is logging


def _has_log() -> bool:
    # Twisted has no public word for it; while this is one, it keeps the events and shows none. One
    # without it counts as having a log: nothing is said twice.
    return getattr(globalLogBeginner, "_temporaryObserver", None) is None
