"""Incoming: what was taken of the other side's messages, and the acknowledgement that is due.

Their handlers run in order, so one number says what was taken and one what was handled. Failures
are kept until the other side has said that it knows them: an acknowledgement that is lost takes
none with it. When an acknowledgement leaves, and on which connection, is the owner's.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from msgservice.faces.sessions.envelope import FAILED_MAX, REASON_MAX, Ack, Previous
from msgservice.faces.sessions.errors import BadPayload

FAILED_BYTES = 1024 * 1024  # of failures that are kept
FAILURE_BYTES = 64  # of a failure, at most, beside its reason
ACK_BYTES = 32 * 1024  # of failures in one acknowledgement


class Incoming:
    """The account of one side's messages, over the sessions whose numbers go on."""

    def __init__(self) -> None:
        self.session = ""
        self.handled = 0  # all up to this one were handled
        self.due = 0  # messages that no acknowledgement has named yet
        self._taken = 0
        self._is_first = True
        self._again = False  # the answer to something may be lost, or something is to be said
        self._failures: deque[tuple[int, str]] = deque()  # that may not be heard; in order
        self.failed_bytes = 0  # of these
        self._told = 0  # so many of them were named on this connection

    @property
    def previous(self) -> Previous | None:
        """The session that is, and up to where it was handled: a new one has to know.

        What may not be known to have failed is beyond that: it comes again, to be answered again.
        """
        if not self.session:
            return None
        return self.session, self._failures[0][0] - 1 if self._failures else self.handled

    @property
    def is_idle(self) -> bool:
        """Whether all that was taken is handled."""
        return self.handled == self._taken

    def begin(self, session: str) -> None:
        """Begin a session, with the numbers of the one before."""
        self.session = session
        self._is_first = True

    def accept(self, session: str, number: int) -> bool:
        """Whether a message is new: not taken before, and of the session that is.

        Raises `BadPayload` where one is missing before it, and where too many have failed of which
        the other side does not hear: it has to come back.
        """
        if session != self.session:
            return False
        if number <= self._taken:
            self._again = True
            self._is_first = False
            return False
        if number != self._taken + 1 and not self._is_first:
            raise BadPayload(f"number {number} after {self._taken}")
        if self.failed_bytes > FAILED_BYTES:
            raise BadPayload(f"{len(self._failures)} have failed that it does not hear of")
        self._is_first = False
        self._taken = number
        return True

    def done(self, number: int, failure: str | None = None) -> None:
        """Take note that the handler of a message has ended, and whether it failed."""
        self.handled = number
        self.due += 1
        if failure is not None:
            reason = failure[:REASON_MAX] or "failed"
            self._failures.append((number, reason))
            self.failed_bytes += _size(reason)

    def heard(self, session: str, number: int) -> None:
        """Take note that the other side knows the answers to all up to this one."""
        failures = self._failures
        while session == self.session and failures and failures[0][0] <= number:
            self.failed_bytes -= _size(failures.popleft()[1])
            self._told = max(0, self._told - 1)

    def say(self, *, anew: bool = False) -> None:
        """Let an acknowledgement be due; `anew`: with what earlier connections may have lost."""
        self._again = True
        if anew:
            self._told = 0

    def take_ack(self, heard: int | None = None, bytes_max: int = ACK_BYTES) -> Ack | None:
        """Return the acknowledgement of all that was handled, if one is due.

        Where failures do not fit, it goes as far as they do, and the next one is due at once.
        """
        if not self.session or not (self.due or self._again):
            return None
        self.due, self._again = 0, False
        upto = self.handled
        failed: list[tuple[int, str]] = []
        for failure in islice(self._failures, self._told, None):
            bytes_max -= _size(failure[1])
            if failed and (bytes_max < 0 or len(failed) == FAILED_MAX):
                upto, self._again = failure[0] - 1, True
                break
            failed.append(failure)
        self._told += len(failed)
        return Ack(self.session, upto, tuple(failed), heard)


def _size(reason: str) -> int:
    return len(reason.encode()) + FAILURE_BYTES
