"""The receiver that is a process of its own, as seen from where it is run: begun, told, killed.

What it does with a message is decided elsewhere; `child` has what runs there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from msgservice.cli.dev.child import LINE_BYTES_MAX
from msgservice.waiters import Waiters

SAID_BYTES = 2_000  # of its standard error that are kept, for when it ends by itself
STOP_SECONDS = 2.0  # for its answers that are on their way


class Child(ProcessProtocol):
    """One life of the process.

    `said(child, fields)` is called with what it says, and `ended(child)` when it has ended.
    `trouble`: the end of what it wrote to standard error.
    """

    def __init__(
        self,
        said: Callable[[Child, dict[str, Any]], None],
        ended: Callable[[Child], None],
    ) -> None:
        self._said, self._ended = said, ended
        self._rest = b""
        self._gone: Waiters[None] = Waiters()
        self.is_attached = self.is_killed = self.is_over = False
        self.trouble = b""
        self.pid = 0

    def begin(self, reactor: Any, *arguments: str) -> None:
        """Start the process."""
        # What is imported there is what is imported here, wherever the command was typed.
        home = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
        words = [sys.executable, "-P", "-m", "msgservice.cli.dev.child", *arguments]
        reactor.spawnProcess(self, words[0], words, env=dict(os.environ) | {"PYTHONPATH": path})

    def tell(self, **fields: Any) -> None:
        """Tell it what to do."""
        if not (self.is_over or self.is_killed):
            assert self.transport is not None
            self.transport.write(msgspec.json.encode(fields) + b"\n")

    def kill(self) -> None:
        """Kill it with SIGKILL: it can do nothing about it."""
        self.is_killed = True
        try:
            assert self.transport is not None
            self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            return  # by itself, or by somebody else

    def stop(self, clock: IReactorTime) -> Deferred[None]:
        """Let it end, and kill it where it does not; fires when it has ended."""
        if self.is_over:
            return succeed(None)
        assert self.transport is not None
        self.transport.closeStdin()
        late = clock.callLater(STOP_SECONDS, self.kill)
        gone = self._gone.wait()
        gone.addBoth(lambda _: late.cancel() if late.active() else None)
        return gone

    # --- from the process

    def connectionMade(self) -> None:
        """Note who it is: nobody knows that any more when it has ended."""
        assert self.transport is not None
        self.pid = self.transport.pid

    def outReceived(self, data: bytes) -> None:
        """Pass on each line that it says."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        assert len(self._rest) <= 2 * LINE_BYTES_MAX, "it is our own"
        for line in lines:
            fields = msgspec.json.decode(line)
            self.is_attached = self.is_attached or "attached" in fields
            self._said(self, fields)

    def errReceived(self, data: bytes) -> None:
        """Keep what went wrong."""
        self.trouble = (self.trouble + data)[-SAID_BYTES:]

    def processEnded(self, reason: Failure) -> None:
        """The process has ended, and all that it said is here."""
        self.is_over = True
        self._ended(self)
        self._gone.fire(None)
