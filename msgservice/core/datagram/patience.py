"""When a message has failed: it was retried often enough, and for long enough.

Part of `core.datagram.endpoint`; changes the marks of a peer, and nothing else of it. The age of
messages is known by marks (so many were handed in by then), the attempts of a message by the
retransmissions of its chunk and the probes after it. Queued messages that were never sent had no
attempt of their own: they time out only if the peer is silent, probed as often and not heard for as
long.
"""

from __future__ import annotations

from msgservice.core.datagram.peers import Mark, Peer

# How finely the age of messages is known: as a part of the patience with them.
MARKS_PER_PATIENCE = 64


class Patience:
    """The timeouts of messages: gives up those that were retried `retries` times, for so many
    `seconds`."""

    def __init__(self, seconds: float, retries: int) -> None:
        self._seconds = seconds
        self._retries = retries

    def mark(self, peer: Peer, now: float) -> None:
        """Remember when the newest messages were handed in, as finely as MARKS_PER_PATIENCE
        says."""
        marks = peer.marks
        enqueued = peer.queue.enqueued
        if peer.idle:
            marks.clear()
            return
        if marks and marks[-1].ordinal >= enqueued:
            return
        if len(marks) > 1 and now - marks[-2].at < self._seconds / MARKS_PER_PATIENCE:
            marks[-1] = Mark(enqueued, now)
        else:
            marks.append(Mark(enqueued, now))

    def deadlines(self, peer: Peer, now: float) -> list[float]:
        """Return when messages may have failed next."""
        marks = peer.marks
        if not marks:
            return []
        # Where only tries are missing, each of them has a time of its own.
        if self._gives_up(peer, now):
            return [now]
        begins = (marks[0].at, peer.heard_at)
        return [at + self._seconds for at in begins if at + self._seconds > now]

    def _due_marks(self, peer: Peer, now: float) -> int:
        """Return how many marks are as old as the patience; they stand in the order of time."""
        due = 0
        for mark in peer.marks:
            if now < mark.at + self._seconds:
                break
            due += 1
        return due

    def _is_silent(self, peer: Peer, mark: Mark, now: float) -> bool:
        """Whether queued messages below a mark time out: the peer was probed, and is silent.

        They had no attempt of their own, so nothing else can fail them.
        """
        tried_at, retries = peer.tried_at, self._retries
        return now >= peer.heard_at + self._seconds and (
            not retries or (len(tried_at) == retries and tried_at[0] >= max(peer.heard_at, mark.at))
        )

    def _gives_up(self, peer: Peer, now: float) -> bool:
        """Whether `give_up` would find anything."""
        due = self._due_marks(peer, now)
        if not due:
            return False
        mark = peer.marks[due - 1]
        session = peer.session
        return (peer.queue.first_waiting < mark.ordinal and self._is_silent(peer, mark, now)) or (
            session is not None and session.sending.exhausted(mark.ordinal, self._retries)
        )

    def give_up(self, peer: Peer, now: float) -> list[object] | None:
        """Give up the messages that have failed, and return their tokens; None while none is old
        enough."""
        due = self._due_marks(peer, now)
        if not due:
            return None
        ordinal = peer.marks[due - 1].ordinal
        tokens: list[object] = []
        session = peer.session
        if session is not None:
            tokens += session.sending.give_up(ordinal, self._retries)
        if self._is_silent(peer, peer.marks[due - 1], now):
            waiting = peer.queue.take_below(ordinal)
            tokens += waiting
            if session is not None and waiting:
                session.sending.skip_waiting(len(waiting))
        # The newest mark stays while anything below it is open or waits.
        del peer.marks[: due if peer.first_unsettled >= ordinal else due - 1]
        return tokens
