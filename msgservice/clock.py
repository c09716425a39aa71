"""Where time comes from: one place that decides between a real clock and a test's.

`reactor.seconds()` of Twisted's real reactors is the wall clock, which jumps; intervals are
measured with a monotonic clock. A test's `Clock` is monotonic, and the only time there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorCore


def monotonic_of(reactor: Any) -> Callable[[], float]:
    """Return the function that measures intervals beside this reactor, in seconds."""
    if IReactorCore.providedBy(reactor):
        return time.monotonic
    seconds: Callable[[], float] = reactor.seconds
    return seconds


def wall_of(reactor: Any) -> Callable[[], int]:
    """Return the function that tells the wall clock beside this reactor, in milliseconds."""
    if IReactorCore.providedBy(reactor):
        return lambda: time.time_ns() // 1_000_000
    return lambda: int(reactor.seconds() * 1000)
