"""Lines of a file or of standard input, as they come, without stopping the reactor."""

from __future__ import annotations

import os
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from msgservice.errors import MessageTooLarge
from msgservice.limits import MAX_BATCH_MAX

CHUNK = 256 * 1024


class LineReader:
    """Reads a file descriptor; nothing is read before it is asked for.

    Each read has a thread of its own, which does not hold up the end of the process: one that
    waits for a terminal can wait for ever.
    """

    def __init__(self, reactor: Any, descriptor: int) -> None:
        self._reactor, self._descriptor = reactor, descriptor
        self._rest = bytearray()
        self._ended = False
        self.size = 0  # bytes read

    async def next_lines(self) -> list[bytes]:
        """Return the lines that came together, without their ends; empty at the end of the file.

        Raises `MessageTooLarge` for a line that no node could take.
        """
        while not self._ended:
            data = await self._read()
            self.size += len(data)
            if not data:
                self._ended = True
                return [bytes(self._rest)] if self._rest else []
            last = data.rfind(b"\n")
            if last < 0:
                self._rest += data
                if len(self._rest) > MAX_BATCH_MAX:
                    raise MessageTooLarge(len(self._rest), MAX_BATCH_MAX)
                continue
            lines = (bytes(self._rest) + data[:last]).split(b"\n")
            self._rest = bytearray(data[last + 1 :])
            return lines
        return []

    def _read(self) -> Deferred[bytes]:
        waiter: Deferred[bytes] = Deferred()

        def read() -> None:
            try:
                data: bytes | Failure = os.read(self._descriptor, CHUNK)
            except OSError:
                data = Failure()
            self._reactor.callFromThread(_fire, waiter, data)

        Thread(target=read, daemon=True).start()
        return waiter


def _fire(waiter: Deferred[bytes], result: bytes | Failure) -> None:
    if waiter.called:  # cancelled meanwhile
        return
    if isinstance(result, Failure):
        waiter.errback(result)
    else:
        waiter.callback(result)
