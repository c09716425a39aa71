"""`Int32StringReceiver` whose cost is linear in the bytes, and whose limit is a limit.

Twisted's own copies all that it holds for each delivery, so a large frame that arrives in pieces
costs the square of its size; it goes on buffering after `lengthLimitExceeded`; and it does not
check what is sent. The wire, the methods to override and `MAX_LENGTH` are the same here.
"""

from __future__ import annotations

from typing import Any

from twisted.protocols.basic import Int32StringReceiver

from msgservice.core.framing import FrameSplitter, encode_prefix
from msgservice.errors import FrameTooLarge


class LinearStringReceiver(Int32StringReceiver):
    """Override `stringReceived`, or `strings_received` for all of one delivery at once.

    `lengthLimitExceeded` is called once, after the strings that came before the offending one;
    nothing is received from then on, and it closes the connection at once unless overridden.
    """

    transport: Any

    def __init__(self) -> None:
        self._splitter = FrameSplitter(self.MAX_LENGTH)
        self._ready: list[bytes] = []  # whole strings that wait for `resumeProducing`
        self._exceeded = False

    @property
    def length_limit(self) -> int:
        """The size that may be received now, in bytes: `MAX_LENGTH`, unless overridden."""
        return self.MAX_LENGTH

    def dataReceived(self, data: bytes) -> None:  # noqa: D102  # Twisted's
        if self._exceeded:
            return
        splitter = self._splitter
        splitter.limit = self.length_limit
        try:
            strings = splitter.feed(data)
        except FrameTooLarge as error:
            self._refused(error)
            return
        if strings or self._ready:
            self.strings_received(strings)

    def _refused(self, error: FrameTooLarge) -> None:
        """Pass on what came before the long string; that may have raised the limit for it."""
        while True:
            if strings := self._splitter.take_complete():
                self.strings_received(strings)
            if error.size > self.length_limit:
                break
            self._splitter.limit = self.length_limit
            try:
                strings = self._splitter.go_on()
            except FrameTooLarge as again:
                error = again
            else:
                if strings:
                    self.strings_received(strings)
                return
        self._exceeded = True
        self.lengthLimitExceeded(error.size)

    def strings_received(self, strings: list[bytes]) -> None:
        """Pass on the strings that one delivery completed: each to `stringReceived`.

        `pauseProducing` holds up the rest until `resumeProducing`.
        """
        self._ready += strings
        while self._ready and not self.paused:
            self.stringReceived(self._ready.pop(0))

    def lengthLimitExceeded(self, length: int) -> None:
        """Abort: `loseConnection` would wait for a peer that is at fault."""
        self.transport.abortConnection()

    def sendString(self, string: bytes) -> None:
        """Send `string`; `FrameTooLarge` if it is longer than `MAX_LENGTH`."""
        if len(string) > self.MAX_LENGTH:
            raise FrameTooLarge(len(string), self.MAX_LENGTH)
        self.transport.writeSequence((encode_prefix(len(string)), string))
