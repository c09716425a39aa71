"""Outgoing: the messages towards one side that wait, or wait for their answer; numbered, bounded.

    add ─► waiting ─ take ─► unanswered ─ acknowledge ─► settled
              ▲────── rewind ───┘  the connection was lost: the same again, in order

Numbers begin at 1 and go on from session to session, as long as the other side remembers the one
before: so what it has, it knows again. To one that does not, all is numbered anew. What becomes
bytes, and when it is written, is the owner's.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed

from msgservice.errors import MessageTooLarge
from msgservice.faces.sessions.errors import BadAck, QueueFull
from msgservice.faces.sessions.handlers import check_thread
from msgservice.waiters import Waiters

ENVELOPE_BYTES = 1024  # of a payload, at most, beside the content or the failures


class Entry:
    """An outgoing message, and the receipt of it: its prepared content, number, and outcome."""

    __slots__ = (
        "_error",
        "_is_settled",
        "_waiters",
        "ends_with_process",
        "is_shutdown",
        "number",
        "prepared",
        "tries",
        "was_sent",
    )

    def __init__(
        self, prepared: bytes, *, is_shutdown: bool = False, ends_with_process: bool = False
    ) -> None:
        self.prepared = prepared
        self.is_shutdown = is_shutdown
        # Who sends it counts how often it was sent, and so to how many processes.
        self.ends_with_process = ends_with_process
        self.number = 0
        self.tries = 0  # connections that ended with it
        self.was_sent = False  # in this session or another
        self._is_settled = False
        self._error: Exception | None = None
        self._waiters: Waiters[None] | None = None

    def acknowledged(self) -> Deferred[None]:
        """Fire when the other side's handler has ended well.

        Fails with `HandlerFailed` where it did not, and with `RemoteLeft` where nobody knows.
        """
        check_thread()
        if not self._is_settled:
            if self._waiters is None:
                self._waiters = Waiters()
            return self._waiters.wait()
        return succeed(None) if self._error is None else fail(self._error)

    def settle(self, error: Exception | None = None) -> None:
        """Take note of what became of it, for good: what is said first holds."""
        if self._is_settled:
            return
        self._is_settled, self._error = True, error
        waiters, self._waiters = self._waiters, None
        if waiters is not None and error is None:
            waiters.fire(None)
        elif waiters is not None and error is not None:
            waiters.fail(error)


class Outgoing:
    """The queue towards one side, over the sessions with it."""

    def __init__(self, *, messages_max: int, bytes_max: int) -> None:
        self.session = ""
        self.takes()
        self.messages = 0
        self.bytes = 0
        self._messages_max, self._bytes_max = messages_max, bytes_max
        self._waiting: deque[Entry] = deque()
        self._unanswered: deque[Entry] = deque()
        self._unanswered_bytes = 0  # of payloads, at most
        self._last = 0  # the last number that was given
        self.answered = 0  # and that was answered

    def takes(self, size_max: int = sys.maxsize, window: tuple[int, int] | None = None) -> None:
        """Take note of what the other side takes: bytes of a message, and `window`.

        That is messages, and bytes of payloads, that it takes unanswered; of one always all.
        """
        self.size_max = size_max
        self.window = window or (sys.maxsize, sys.maxsize)

    @property
    def has_waiting(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._waiting)

    @property
    def first_sent(self) -> Entry | None:
        """The first of what waits, if it was sent before."""
        first = self._waiting[0] if self._waiting else None
        return first if first is not None and first.number else None

    @property
    def unanswered(self) -> int:
        """Messages that were taken and are not answered."""
        return len(self._unanswered)

    def add(self, entry: Entry) -> None:
        """Let a message wait. Raises `MessageTooLarge`, `QueueFull`; one alone has room."""
        if len(entry.prepared) > self.size_max:
            raise MessageTooLarge(len(entry.prepared), self.size_max)
        if self.messages >= self._messages_max:
            raise QueueFull("queue_messages", self._messages_max)
        if self.messages and self.bytes + len(entry.prepared) > self._bytes_max:
            raise QueueFull("queue_bytes", self._bytes_max)
        self._waiting.append(entry)
        self.messages += 1
        self.bytes += len(entry.prepared)

    def begin(self, session: str, *, continues: bool, upto: int = 0) -> list[Entry]:
        """Begin a session; return those that end with the one before, in order.

        `continues`: the other side knows the numbers of the session before, and has handled `upto`:
        they are settled. Else it is another process, and a shutdown was not meant for that.
        Raises `BadAck` for an `upto` that was never sent.
        """
        ended = self._settle(upto) if continues else []
        self.session = session
        self.rewind()
        if not continues:
            self._last = self.answered = 0
            ended = self.remove(lambda entry: entry.is_shutdown)
            for entry in self._waiting:
                if not entry.number:
                    break
                entry.number = 0
        return ended

    def remove(self, is_meant: Callable[[Entry], bool]) -> list[Entry]:
        """Return those of what waits that are meant, in order: they wait no more.

        They must have no number that the other side waits for.
        """
        removed = [entry for entry in self._waiting if is_meant(entry)]
        if removed:
            self._waiting = deque(entry for entry in self._waiting if not is_meant(entry))
            self._count_off(removed)
        return removed

    def rewind(self) -> None:
        """Let what is unanswered wait again, under its numbers: its connection is gone."""
        self._waiting.extendleft(reversed(self._unanswered))
        self._unanswered.clear()
        self._unanswered_bytes = 0

    def take(self, bytes_max: int, *, at_end: bool = False) -> list[Entry]:
        """Return what is to be written next, numbered: at least one if any waits.

        Unless that is beyond the window; `at_end`: whether or not. Nothing goes with what is behind
        a shutdown.
        """
        taken: list[Entry] = []
        waiting = self._waiting
        under_way, (messages_max, size_max) = len(self._unanswered), self.window
        while waiting and (not taken or len(waiting[0].prepared) <= bytes_max):
            size = self._unanswered_bytes + len(waiting[0].prepared) + ENVELOPE_BYTES
            if under_way and not at_end and (under_way >= messages_max or size > size_max):
                break
            self._unanswered_bytes = size
            under_way += 1
            entry = waiting.popleft()
            bytes_max -= len(entry.prepared)
            if not entry.number:
                self._last += 1
                entry.number = self._last
                entry.was_sent = True
            taken.append(entry)
            if entry.is_shutdown:
                break
        self._unanswered += taken
        return taken

    def acknowledge(self, session: str, upto: int) -> list[Entry]:
        """Return those that are answered by this, in order; none where it is of another session.

        Raises `BadAck` for what was never sent.
        """
        return self._settle(upto) if session == self.session else []

    def settle_first(self, count: int) -> list[Entry]:
        """Return the first so many of the unanswered, which count as answered now."""
        settled = [self._unanswered.popleft() for _ in range(count)]
        self._unanswered_bytes -= _payload_bytes(settled)
        self._count_off(settled)
        return settled

    def end(self) -> list[Entry]:
        """Return all, in order: nothing waits any more. Numbers go on from here."""
        self.rewind()
        ended = list(self._waiting)
        self._waiting.clear()
        self._count_off(ended)
        return ended

    def _settle(self, upto: int) -> list[Entry]:
        if upto > self._last:
            raise BadAck(f"number {upto} is acknowledged, {self._last} was the last sent")
        settled: list[Entry] = []
        # What waits to be sent again may be answered as well, by an answer that was on its way.
        for queue in (self._unanswered, self._waiting):
            while queue and 0 < queue[0].number <= upto:
                settled.append(queue.popleft())
            if queue is self._unanswered:
                self._unanswered_bytes -= _payload_bytes(settled)
        self.answered = max(self.answered, upto)
        self._count_off(settled)
        return settled

    def _count_off(self, entries: list[Entry]) -> None:
        self.messages -= len(entries)
        self.bytes -= sum(len(entry.prepared) for entry in entries)


def _payload_bytes(entries: list[Entry]) -> int:
    return sum(len(entry.prepared) + ENVELOPE_BYTES for entry in entries)
