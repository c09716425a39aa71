"""Incoming: what was taken of the other side's messages, and the acknowledgement that is due.

Their handlers run in order, so one number says what was taken and one what was handled. When an
acknowledgement leaves, and on which connection, is the owner's.
"""

from __future__ import annotations

from msgservice.faces.sessions.envelope import FAILED_MAX, REASON_MAX, Ack, Previous
from msgservice.faces.sessions.errors import BadPayload


class Incoming:
    """The account of one side's messages, over the sessions whose numbers go on."""

    def __init__(self) -> None:
        self.session = ""
        self.handled = 0  # all up to this one were handled
        self.due = 0  # messages that no acknowledgement has named yet
        self._taken = 0
        self._is_first = True
        self._again = False  # something came again: the answer to it may be lost
        self._failed: list[tuple[int, str]] = []

    @property
    def previous(self) -> Previous | None:
        """The session that is, and up to where it was handled: a new one has to know."""
        return (self.session, self.handled) if self.session else None

    def begin(self, session: str) -> None:
        """Begin a session, with the numbers of the one before."""
        self.session = session
        self._is_first = True

    def accept(self, session: str, number: int) -> bool:
        """Whether a message is new: not taken before, and of the session that is.

        Raises `BadPayload` where one is missing before it.
        """
        if session != self.session:
            return False
        if number <= self._taken:
            self._again = True
            self._is_first = False
            return False
        if number != self._taken + 1 and not self._is_first:
            raise BadPayload(f"number {number} after {self._taken}")
        self._is_first = False
        self._taken = number
        return True

    def done(self, number: int, failure: str | None = None) -> None:
        """Take note that the handler of a message has ended, and whether it failed."""
        self.handled = number
        self.due += 1
        if failure is not None:
            self._failed.append((number, failure[:REASON_MAX] or "failed"))

    def take_ack(self) -> Ack | None:
        """Return the acknowledgement of all that was handled, if one is due."""
        if not self.session or not (self.due or self._again):
            return None
        self.due, self._again = 0, False
        failed, self._failed = self._failed[:FAILED_MAX], self._failed[FAILED_MAX:]
        upto = self.handled
        if self._failed:  # the rest is told by the next one
            upto = failed[-1][0]
            self.due = len(self._failed)
        return Ack(self.session, upto, tuple(failed))
