"""When a message has failed: it was retried often enough, and for long enough.

Part of `core.datagram.endpoint`. The age of messages is known by marks (so many were handed in by
then), the attempts of a message by the retransmissions of its chunk and the probes after it. Queued
messages that were never sent had no attempt of their own: they time out only if the peer is silent,
probed as often and not heard for as long.
"""

from __future__ import annotations

from msgservice.core.datagram.peers import Mark, Peer
from msgservice.core.datagram.table import SessionTable

# How finely the age of messages is known: as a part of the patience with them.
MARKS_PER_PATIENCE = 64


class Patience(SessionTable):
    """The timeouts of messages: gives up those that were retried often enough for long enough."""

    def _mark(self, peer: Peer, now: float) -> None:
        """Remember when the newest messages were handed in, as finely as MARKS_PER_PATIENCE
        says."""
        marks = peer.marks
        enqueued = peer.queue.enqueued
        if peer.idle:
            marks.clear()
            return
        if marks and marks[-1].ordinal >= enqueued:
            return
        assert self._patience is not None
        if len(marks) > 1 and now - marks[-2].at < self._patience / MARKS_PER_PATIENCE:
            marks[-1] = Mark(enqueued, now)
        else:
            marks.append(Mark(enqueued, now))

    def _due_marks(self, peer: Peer, now: float) -> int:
        """Return how many marks are as old as the patience; they stand in the order of time."""
        assert self._patience is not None
        due = 0
        for mark in peer.marks:
            if now < mark.at + self._patience:
                break
            due += 1
        return due

    def _is_silent(self, peer: Peer, mark: Mark, now: float) -> bool:
        """Whether queued messages below a mark time out: the peer was probed, and is silent.

        They had no attempt of their own, so nothing else can fail them.
        """
        assert self._patience is not None
        tried_at, retries = peer.tried_at, self._retries
        return now >= peer.heard_at + self._patience and (
            not retries or (len(tried_at) == retries and tried_at[0] >= max(peer.heard_at, mark.at))
        )

    def _gives_up(self, peer: Peer, now: float) -> bool:
        """Whether `_give_up` would find anything."""
        due = self._due_marks(peer, now)
        if not due:
            return False
        mark = peer.marks[due - 1]
        session = peer.session
        return (peer.queue.first_waiting < mark.ordinal and self._is_silent(peer, mark, now)) or (
            session is not None and session.sending.exhausted(mark.ordinal, self._retries)
        )

    def _give_up(self, peer: Peer, now: float) -> None:
        if self._patience is None:
            return
        due = self._due_marks(peer, now)
        if not due:
            return
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
        if not len(peer.queue) and peer.opening is not None:
            peer.opening = None
        if tokens:
            self._failures.append((peer.address, tokens, not peer.failed))
            peer.failed = True
