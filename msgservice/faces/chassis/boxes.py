"""Where a handler's mailboxes meet its connection: the two ends of its outboxes, and the moment at
which its control is told that no more will come.
"""

from __future__ import annotations

from collections.abc import Callable

from msgservice.faces.axon.Ipc import is_closing
from msgservice.faces.axon.mailbox import Mailbox

# Steps in which a handler may leave its data unread before it is told that the connection is over.
UNREAD_STEPS_MAX = 2


class SocketBox(Mailbox):
    """The end of a handler's outbox: the socket. Bytes only."""

    __slots__ = ("_write",)

    def __init__(self, write: Callable[[bytes], None], *, bytes_max: int) -> None:
        super().__init__("socket", None, bytes_max=bytes_max)
        self._write = write

    def put(self, message: object) -> None:
        """Write `message`; `TypeError` if it is not bytes."""
        if type(message) is not bytes:
            if not isinstance(message, bytes | bytearray | memoryview):
                raise TypeError(f"a socket takes bytes, not {type(message).__name__}")
            message = bytes(message)
        self._write(message)


class SignalBox(Mailbox):
    """The end of a handler's signal: an announced end closes the connection."""

    __slots__ = ("_close",)

    def __init__(self, close: Callable[[], None]) -> None:
        super().__init__("close", None)
        self._close = close

    def put(self, message: object) -> None:
        """Close the connection if `message` announces an end; anything else means nothing here."""
        if is_closing(message):
            self._close()


def announce_end(box: Mailbox, tell: Callable[[], None]) -> None:
    """Call `tell` once, as soon as whoever reads `box` has taken all of it and run once more.

    One that leaves messages unread is waited for during `UNREAD_STEPS_MAX` of its steps; one that
    has stopped, or awaits something else, not at all and as long as it takes.
    """
    reader = box.owner
    if reader is None or reader.stopped:
        tell()
        return
    was_empty = not len(box)
    taken = box.taken
    unread_steps = 0

    def ran() -> None:
        nonlocal was_empty, taken, unread_steps
        unread_steps = unread_steps + 1 if len(box) and box.taken == taken else 0
        if reader.stopped or (was_empty and not len(box)) or unread_steps >= UNREAD_STEPS_MAX:
            reader.after_step = None
            tell()
            return
        was_empty = not len(box)
        taken = box.taken
        reader.wake()

    reader.after_step = ran
    reader.wake()
