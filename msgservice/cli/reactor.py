"""The reactor of `msgservice node`: Twisted's for Linux, with less around what it calls.

Twisted calls each reader in a context that says whose log lines are those written with its old
`log.msg`. Nothing here writes such lines, and the node's own say what they are about. And what is
to be called when a turn is over (`clock.IAtTurnsEnd`) is a timer of Twisted's for each turn that
has some: made, sorted in and waited for.

A process that has a reactor already keeps it, and so does one of another system.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from twisted.internet.main import installReactor
from twisted.python import log
from zope.interface import implementer

from msgservice.clock import IAtTurnsEnd, TurnsEnd

try:
    from twisted.internet.epollreactor import EPollReactor
except ImportError:  # it is Linux's
    EPollReactor = None  # type: ignore[assignment,misc]  # which is what is asked for

IS_HAD = EPollReactor is not None
INSTALLED = "twisted.internet.reactor"


def install() -> None:
    """Install it, where it can be had and no other is installed."""
    if IS_HAD and INSTALLED not in sys.modules:
        installReactor(NodeReactor())


if EPollReactor is not None:

    @implementer(IAtTurnsEnd)
    class NodeReactor(EPollReactor):
        """Twisted's reactor on `epoll`, with less around what it calls."""

        def __init__(self) -> None:
            super().__init__()
            self._ends: list[TurnsEnd] = []

        def at_turns_end(self, call: Callable[[], None]) -> TurnsEnd:
            """See `IAtTurnsEnd`."""
            end = TurnsEnd(call)
            self._ends.append(end)
            return end

        def runUntilCurrent(self) -> None:
            """Twisted's method: calls what is due, and then what waits for the end of the turn."""
            super().runUntilCurrent()
            if self._ends:
                ends, self._ends = self._ends, []  # what these ask for is of the next turn
                for end in ends:
                    try:
                        end.come()
                    except Exception:  # a fault of one of them is not the others'
                        log.err()

        def timeout(self) -> float | None:
            """Twisted's method: returns the seconds that may be waited for events."""
            return 0.0 if self._ends else super().timeout()

        def doPoll(self, timeout: float | None) -> None:
            """Twisted's method: waits for events, and has each looked at."""
            selectables, act = self._selectables, self._doReadOrWrite
            events = self._poller.poll(-1 if timeout is None else timeout, len(selectables))
            for fd, event in events:
                selectable = selectables.get(fd)
                if selectable is not None:  # else one of those before has ended it
                    try:
                        act(selectable, fd, event)  # which a fault of its own ends
                    except Exception:  # in how it was told that it has ended
                        log.err()

        doIteration = doPoll
