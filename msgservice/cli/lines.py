"""Lines of a file or of standard input, as they come, without stopping the reactor."""

from __future__ import annotations

import os
from functools import partial

from twisted.internet.interfaces import IReactorFromThreads

from msgservice.errors import MessageTooLarge
from msgservice.limits import MAX_BATCH_MAX
from msgservice.threads import in_daemon_thread

CHUNK = 256 * 1024


class LineReader:
    """Reads a file descriptor; nothing is read before it is asked for."""

    def __init__(self, reactor: IReactorFromThreads, descriptor: int) -> None:
        self._reactor, self._descriptor = reactor, descriptor
        self._rest = bytearray()
        self._ended = False
        self.size = 0  # bytes read

    async def next_lines(self) -> list[bytes]:
        """Return the lines that came together, without their ends; empty at the end of the file.

        Raises `MessageTooLarge` for a line that no node could take, `OSError` where reading fails.
        """
        while not self._ended:
            data = await in_daemon_thread(self._reactor, partial(os.read, self._descriptor, CHUNK))
            self.size += len(data)
            if not data:
                self._ended = True
                return [bytes(self._rest)] if self._rest else []
            last = data.rfind(b"\n")
            if last < 0:
                self._rest += data
            else:
                lines = (bytes(self._rest) + data[:last]).split(b"\n")
                self._rest = bytearray(data[last + 1 :])
                return lines
            if len(self._rest) > MAX_BATCH_MAX:
                raise MessageTooLarge(len(self._rest), MAX_BATCH_MAX)
        return []
